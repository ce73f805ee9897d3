# Copyright (C) 2026 anomalib-fewshot contributors
# SPDX-License-Identifier: Apache-2.0

"""One small member of each timm family: it works as a backbone, or it is refused in one line."""

import pytest
import timm
import torch
from timm.data import resolve_data_config
from torch import nn

from anomalib_fewshot import CoftAD
from anomalib_fewshot.errors import ArgumentError
from anomalib_fewshot.models.components import Backbone, normalization_of
from anomalib_fewshot.models.components.backbone import FROZEN

SEED = 1
OTHER_SIZE = (96, 160)
FAMILIES = {
    "beit": "beit_base_patch16_224",
    "byoanet": "halonet_h1",
    "byobnet": "mobileone_s1",
    "cait": "cait_xxs24_224",
    "coat": "coat_tiny",
    "convit": "convit_tiny",
    "convmixer": "convmixer_768_32",
    "convnext": "convnext_zepto_rms",
    "cpubone": "cpubone_nano",
    "crossvit": "crossvit_tiny_240",
    "csatv2": "csatv2",
    "cspnet": "cs3darknet_focus_s",
    "cspnext": "cspnext_tiny",
    "davit": "davit_tiny",
    "deepseek_vit": "deepseek_vit_412m",
    "deit": "deit_tiny_patch16_224",
    "densenet": "densenet121",
    "dla": "dla46x_c",
    "dpn": "dpn48b",
    "edgenext": "edgenext_xx_small",
    "efficientformer": "efficientformer_l1",
    "efficientformer_v2": "efficientformerv2_s0",
    "efficientnet": "mobilenetv2_035",
    "efficientvim": "efficientvim_m1",
    "efficientvit_mit": "efficientvit_b0",
    "efficientvit_msra": "efficientvit_m0",
    "eva": "vit_tiny_patch16_dinov3_qkvb",
    "fasternet": "fasternet_t0",
    "fastvit": "fastvit_t8",
    "focalnet": "focalnet_tiny_srf",
    "gcvit": "gcvit_xxtiny",
    "gemma4_vit": "gemma4_vit_167m",
    "ghostnet": "ghostnet_050",
    "hardcorenas": "hardcorenas_b",
    "hgnet": "hgnetv2_b0",
    "hiera": "hiera_tiny_224",
    "hieradet_sam2": "sam2_hiera_tiny",
    "hrnet": "hrnet_w18_small",
    "iformer": "iformer_t",
    "inception_next": "inception_next_atto",
    "inception_resnet_v2": "inception_resnet_v2",
    "inception_v3": "inception_v3",
    "inception_v4": "inception_v4",
    "lcnetv2": "lcnetv2_small",
    "levit": "levit_128s",
    "lowformer": "lowformer_b0",
    "mambaout": "mambaout_femto",
    "maxxvit": "maxvit_pico_rw_256",
    "metaformer": "poolformerv2_s12",
    "mlp_mixer": "gmlp_ti16_224",
    "mobilenetv3": "mobilenetv3_small_050",
    "mobilenetv5": "mobilenetv5_300m",
    "mobilevit": "mobilevit_xxs",
    "mvitv2": "mvitv2_tiny",
    "naflexvit": "naflexvit_base_patch16_gap",
    "nasnet": "nasnetalarge",
    "nest": "nest_tiny",
    "nextvit": "nextvit_small",
    "nfnet": "nf_regnet_b0",
    "pit": "pit_ti_224",
    "pnasnet": "pnasnet5large",
    "pvt_v2": "pvt_v2_b0",
    "qwen3_vit": "qwen3_vit_88m",
    "rdnet": "rdnet_tiny",
    "regnet": "regnetx_002",
    "repghost": "repghostnet_050",
    "repvit": "repvit_m1",
    "res2net": "res2next50",
    "resnest": "resnest14d",
    "resnet": "resnet10t",
    "resnetv2": "resnetv2_18",
    "rexnet": "rexnet_100",
    "selecsls": "selecsls42",
    "senet": "legacy_seresnet18",
    "sequencer": "sequencer2d_s",
    "shvit": "shvit_s1",
    "sknet": "skresnet18",
    "starnet": "starnet_s050",
    "swiftformer": "swiftformer_xs",
    "swin_transformer": "swin_tiny_patch4_window7_224",
    "swin_transformer_v2": "swinv2_tiny_window8_256",
    "swin_transformer_v2_cr": "swinv2_cr_tiny_224",
    "tiny_vit": "tiny_vit_5m_224",
    "tnt": "tnt_s_legacy_patch16_224",
    "tresnet": "tresnet_m",
    "twins": "twins_svt_small",
    "vgg": "vgg11",
    "visformer": "visformer_tiny",
    "vision_transformer": "vit_tiny_patch16_224",
    "vision_transformer_hybrid": "vit_tiny_r_s16_p8_224",
    "vision_transformer_relpos": "vit_srelpos_small_patch16_224",
    "vision_transformer_sam": "samvit_base_patch16",
    "vitamin": "vitamin_small_224",
    "volo": "volo_d1_224",
    "vovnet": "ese_vovnet19b_slim_dw",
    "xception": "legacy_xception",
    "xception_aligned": "xception41p",
    "xcit": "xcit_nano_12_p8_224",
}
# timm does not take an image size for the first; the others have no map of stride 8 or 16 and need `layers`.
REFUSED = {"convmixer", "crossvit", "sequencer"}

pytestmark = pytest.mark.nightly


def draw_norms(network: nn.Module) -> None:
    """Draw statistics and scales: those of a new network are 0 and 1, which hides a wrong fold."""
    rng = torch.Generator().manual_seed(SEED)
    for norm in network.modules():
        if isinstance(norm, FROZEN):
            for part, low in (("weight", 0.5), ("bias", -0.5), ("running_mean", -0.5), ("running_var", 0.5)):
                tensor = getattr(norm, part)
                tensor.data.copy_(torch.rand(tensor.shape, generator=rng) + low)


def create(name: str, size: tuple[int, int]) -> tuple[Backbone | None, str]:
    """Return a backbone, or nothing and the reason."""
    with torch.random.fork_rng():
        torch.manual_seed(SEED)
        try:
            return Backbone(name, pre_trained=False, image_size=size).eval(), ""
        except ArgumentError as error:
            return None, str(error)


def status_of(name: str) -> str:
    """Return whether a backbone is folded, unfolded, without batch normalization, or refused.

    Raises:
        AssertionError: If it is not refused in one line, and does not give the same maps in each form.
    """
    size = tuple(resolve_data_config({}, pretrained_cfg=timm.get_pretrained_cfg(name).to_dict())["input_size"][1:])
    model, reason = create(name, size)
    if model is None:
        assert name in reason
        assert "\n" not in reason
        return f"refused: {reason}"
    images = torch.rand(1, 3, *size, generator=torch.Generator().manual_seed(SEED))
    if not any(isinstance(module, FROZEN) for module in model.modules()):
        check_maps(model, images)
        return "without batch normalization"
    draw_norms(model)
    model, images = model.double(), images.double()  # random weights amplify rounding
    expected = check_maps(model, images)
    model.fold_batch_norm()
    maps = check_maps(model, images)
    for own, other in zip(maps, expected, strict=True):
        assert (own - other).abs().max() <= 1e-3 * other.abs().max()
    loaded = create(name, size)[0].double()
    loaded.load_state_dict(model.state_dict())
    for own, other in zip(loaded(images), maps, strict=True):
        torch.testing.assert_close(own, other, rtol=0, atol=0)
    left = sum(isinstance(module, FROZEN) for module in model.modules())
    return f"folded, {left} normalizations left" if model.is_folded else f"unfolded, {left} normalizations"


def check_maps(model: Backbone, images: torch.Tensor) -> list[torch.Tensor]:
    """Return the feature maps of images, which are finite and have the channels that the model states."""
    maps = [feature_map.clone() for feature_map in model(images)]
    assert [feature_map.shape[1] for feature_map in maps] == model.channels
    assert all(feature_map.isfinite().all() for feature_map in maps)
    return maps


@torch.no_grad()
@pytest.mark.parametrize("family", FAMILIES)
def test_family_works_or_is_refused(family: str) -> None:
    status = status_of(FAMILIES[family])
    assert status.startswith("refused") == (family in REFUSED), status


@torch.no_grad()
@pytest.mark.parametrize("name", FAMILIES.values())
def test_image_of_another_size_gives_maps_or_one_line(name: str) -> None:
    model, reason = create(name, OTHER_SIZE)
    if model is None:
        assert name in reason
        assert "\n" not in reason
        return
    check_maps(model, torch.zeros(1, 3, *OTHER_SIZE))


@pytest.mark.parametrize("name", FAMILIES.values())
def test_images_are_normalized_as_the_backbone_expects(name: str) -> None:
    expected = resolve_data_config({}, pretrained_cfg=timm.get_pretrained_cfg(name).to_dict())
    mean, std = normalization_of(CoftAD.configure_pre_processor((64, 64), name))
    assert (mean, std) == (list(expected["mean"]), list(expected["std"]))


def test_every_family_is_listed() -> None:
    assert set(FAMILIES) == set(timm.list_modules())
