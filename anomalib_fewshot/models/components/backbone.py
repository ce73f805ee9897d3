# Copyright (C) 2026 anomalib-fewshot contributors
# SPDX-License-Identifier: Apache-2.0

"""Feature maps of any timm model."""

import logging
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass
from functools import cache
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from timm.layers import Conv2dSame, Format, FrozenBatchNormAct2d
from timm.utils.model import freeze_batch_norm_2d
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torchvision.ops.misc import FrozenBatchNorm2d

from anomalib_fewshot.errors import ArgumentError

from .weights import CREATION_ERRORS, check_name, create_backbone, create_blueprint

logger = logging.getLogger(__name__)

FROZEN = (FrozenBatchNorm2d, FrozenBatchNormAct2d)
FOLDABLE = (nn.Conv2d, Conv2dSame)  # others may change their weights before they use them
PROBE_SIZE = (64, 64)
MAX_FOLD_ERROR = 1e-3  # of a feature map's largest value


class Backbone(nn.Module):
    """Feature maps of a timm model, from shallow to deep, with its batch normalization frozen.

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
        grids (list[tuple[int, int]]): Height and width of all maps, for images of ``image_size``.
        layers (list[int]): Positions of the asked-for maps among those that ``forward`` returns.
        channels (list[int]): Channels of each map that ``forward`` returns.
        is_folded (torch.Tensor): Whether batch normalization is merged into convolutions, a boolean scalar. A state
            dict with another value changes the network: it scores as the one that was saved.

    Raises:
        ArgumentError: If there is no such model or layer, if it has no feature maps, if the size does not fit it,
            or if the file does not fit the model.
        MissingDataError: If the weights are neither in a file, in a package nor to be had from the hub.
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
        info = feature_info(name)
        wanted = sorted(layers if layers is not None else _default_layers(info))
        if layers is None and not wanted:
            msg = f"`layers` must be given for {name}, whose {len(info)} feature maps have neither stride 8 nor 16."
            raise ArgumentError(msg)
        if not wanted or not set(wanted) <= set(range(len(info))):
            msg = f"`layers` must be indices of the {len(info)} feature maps of {name}, got {list(wanted)}."
            raise ArgumentError(msg)
        self.name = name
        self.image_size = image_size = (image_size[0], image_size[1])
        indices = sorted({*wanted, len(info) - 1})
        arguments: dict = {"features_only": True, "out_indices": indices}
        if _is_transformer(info):
            patch = info[0]["reduction"]
            if any(side % patch for side in image_size):
                msg = f"`image_size` must be a multiple of the patch of {name}, {patch}, got {image_size}."
                raise ArgumentError(msg)
            arguments["img_size"] = image_size
        self._arguments = arguments
        self.channels = [info[index]["num_chs"] for index in indices]
        network = create_backbone(name, pre_trained, weights, arguments)
        self.grids = _check_maps(name, network, image_size, self.channels)
        # A few images make poor batch statistics. Lightning keeps the mode of each module: a mode would not last.
        features = freeze_batch_norm_2d(network)
        self.features = features.to(memory_format=torch.channels_last)  # faster on a processor
        self.layers = [indices.index(layer) for layer in wanted]
        self.register_buffer("is_folded", torch.tensor(data=False))
        self.is_folded: torch.Tensor
        self.train()

    @torch.no_grad()
    def fold_batch_norm(self) -> None:
        """Merge each batch normalization into the convolution before it, where this leaves the feature maps unchanged.

        A copy of the network with random weights is folded first, and its feature maps before and after are compared on
        one random image. If they differ by more than a thousandth of a map's largest value, the network stays unfolded:
        the output of one of its convolutions is used elsewhere, too, or its attention amplifies rounding. A checkpoint
        keeps the decision, see ``is_folded``. Folded weights cannot be trained.
        """
        if self.is_folded or not any(isinstance(module, FROZEN) for module in self.features.modules()):
            return
        rng = torch.Generator().manual_seed(0)
        copy = deepcopy(self.features).eval()
        _draw_weights(copy, rng)
        image = _probe_image(copy, self.image_size, rng)
        before = [feature_map.clone() for feature_map in copy(image)]
        pairs = _find_pairs(copy, image)
        _fold_pairs(copy, pairs)
        if not _are_close(copy(image), before):
            logger.info("The batch normalization of %s is not folded: it would change the feature maps.", self.name)
            return
        _fold_pairs(self.features, pairs)
        self.is_folded.fill_(value=True)

    @torch.no_grad()
    def _load_from_state_dict(self, state_dict: dict[str, torch.Tensor], prefix: str, *args: Any) -> None:  # noqa: ANN401
        """Bring the network in the form, folded or not, of the weights that follow."""
        is_folded = state_dict.get(f"{prefix}is_folded")
        if is_folded is not None and bool(is_folded) != bool(self.is_folded):
            self._replace_network(is_folded=bool(is_folded))
        super()._load_from_state_dict(state_dict, prefix, *args)

    def _replace_network(self, *, is_folded: bool) -> None:
        """Create the network anew, without weights."""
        network = freeze_batch_norm_2d(create_blueprint(self.name, self._arguments, "cpu")).eval()
        if is_folded:
            image = _probe_image(network, self.image_size, torch.Generator().manual_seed(0))
            _fold_pairs(network, _find_pairs(network, image))
        parameters = list(self.features.parameters())
        network = network.to(parameters[0].device, parameters[0].dtype, memory_format=torch.channels_last)
        self.features = network.requires_grad_(any(parameter.requires_grad for parameter in parameters))
        self.train(self.training)

    def train(self, mode: bool = True) -> "Backbone":
        """Set the mode of all but batch normalization: that of LeViT, which is one-dimensional, cannot be replaced."""
        super().train(mode)
        for module in self.features.modules():
            if isinstance(module, _BatchNorm):
                module.eval()
        return self

    def forward(self, images: torch.Tensor) -> list[torch.Tensor]:
        """Return the feature maps.

        Args:
            images (torch.Tensor): Normalised images, shape ``(B, 3, H, W)``.

        Returns:
            list[torch.Tensor]: Maps of shape ``(B, C, h, w)``, the last one being the model's last.
        """
        return _channels_first(self.features, self.features(images))


@dataclass(frozen=True)
class _Pair:
    """Names of a convolution and of the normalization that takes its output."""

    conv: str
    norm: str


def _draw_weights(network: nn.Module, rng: torch.Generator) -> None:
    """Draw vectors between 0.5 and 1.5, since initial statistics and scales would hide a wrong fold, and matrices."""
    for tensor in chain(network.parameters(), network.buffers()):
        if tensor.is_floating_point() and tensor.numel() == max(tensor.shape, default=1):
            tensor.copy_(torch.rand(tensor.shape, generator=rng) + 0.5)
        elif isinstance(tensor, nn.Parameter):
            fan_in = tensor.numel() / len(tensor)
            tensor.copy_(torch.randn(tensor.shape, generator=rng) / fan_in**0.5)


def _probe_image(network: nn.Module, image_size: tuple[int, int], rng: torch.Generator) -> torch.Tensor:
    """Return a random image: a small one, which takes little time, if the network accepts it."""
    small, large = (torch.rand(1, 3, *size, generator=rng) for size in (PROBE_SIZE, image_size))
    parameter = next(network.parameters())
    try:
        network(small.to(parameter))
    except CREATION_ERRORS:
        return large.to(parameter)
    return small.to(parameter)


def _find_pairs(network: nn.Module, image: torch.Tensor) -> list[_Pair]:
    """Return which normalization takes the output of which convolution when an image passes."""
    names = {module: name for name, module in network.named_modules()}
    outputs: dict[int, tuple[nn.Module, torch.Tensor]] = {}  # holds each tensor, so that its id stays its own
    pairs: dict[str, _Pair] = {}

    def record(module: nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
        if type(module) in FOLDABLE:
            outputs[id(output)] = (module, output)
        elif isinstance(module, FROZEN) and id(inputs[0]) in outputs:
            conv = outputs[id(inputs[0])][0]
            pairs[names[module]] = _Pair(names[conv], names[module])

    hooks = [module.register_forward_hook(record) for module in names if isinstance(module, (nn.Conv2d, *FROZEN))]
    try:
        network(image)
    finally:
        for hook in hooks:
            hook.remove()
    return list(pairs.values())


def _fold_pairs(network: nn.Module, pairs: Sequence[_Pair]) -> None:
    for pair in pairs:
        norm = network.get_submodule(pair.norm)
        _fold(network.get_submodule(pair.conv), norm)
        rest = [getattr(norm, part) for part in ("drop", "act") if hasattr(norm, part)]
        network.set_submodule(pair.norm, nn.Sequential(*rest))


def _are_close(maps: Sequence[torch.Tensor], expected: Sequence[torch.Tensor]) -> bool:
    for own, other in zip(maps, expected, strict=True):
        if not (own - other).abs().max() <= MAX_FOLD_ERROR * other.abs().max():  # NaN is not close
            return False
    return True


def _fold(conv: nn.Module, norm: nn.Module) -> None:
    """Give a convolution the weights that include the frozen normalization after it."""
    scale = norm.weight.double() * (norm.running_var.double() + norm.eps).rsqrt()
    bias = 0 if conv.bias is None else conv.bias.double()
    bias = norm.bias.double() + (bias - norm.running_mean.double()) * scale
    conv.weight = nn.Parameter((conv.weight * scale[:, None, None, None]).to(conv.weight), requires_grad=False)
    conv.bias = nn.Parameter(bias.to(conv.weight), requires_grad=False)


@cache
def feature_info(name: str) -> tuple[dict, ...]:
    """Return the stride, channels and name of every feature map of a model.

    Raises:
        ArgumentError: If there is no such model, or if it has no feature maps.
    """
    check_name(name)
    try:
        info = tuple(create_blueprint(name, {"features_only": True}).feature_info.info)
    except CREATION_ERRORS as error:
        msg = f"`backbone` must be a model with feature maps, got {name!r} ({_first_line(error)})."
        raise ArgumentError(msg) from error
    if not info:
        msg = f"`backbone` must be a model with feature maps, got {name!r}."
        raise ArgumentError(msg)
    return info


def _check_maps(
    name: str,
    network: nn.Module,
    image_size: tuple[int, int],
    channels: list[int],
) -> list[tuple[int, int]]:
    """Return the height and width of the feature maps for images of a size.

    Raises:
        ArgumentError: If the model has no feature maps for this size.
    """
    rule = f"`backbone` and `image_size` must fit each other, got {name!r} and {image_size}"
    network.eval()
    try:
        maps = _maps_of(network, image_size, "meta")
    except CREATION_ERRORS:  # perhaps an operation that the meta device lacks
        try:
            maps = _maps_of(network, image_size, "cpu")
        except CREATION_ERRORS as error:
            msg = f"{rule}: {_first_line(error)}. Choose the size that the backbone was made for, or another backbone."
            raise ArgumentError(msg) from error
    shapes = [tuple(feature_map.shape) for feature_map in maps]
    if any(len(shape) != 4 or 0 in shape for shape in shapes) or [shape[1] for shape in shapes] != channels:
        msg = f"{rule}, which gives feature maps of the shapes {shapes}, not with {channels} channels."
        raise ArgumentError(msg)
    return [(height, width) for _, _, height, width in shapes]


@torch.no_grad()
def _maps_of(network: nn.Module, image_size: tuple[int, int], device: str) -> list[torch.Tensor]:
    """Return the feature maps that a copy gives of an empty image. On the meta device they have a shape only."""
    memo: dict[int, Any] = {}
    if device == "meta":  # the copy has no weights of its own
        for tensor in chain(network.parameters(), network.buffers()):
            memo[id(tensor)] = tensor.to(device)
    return _channels_first(network, deepcopy(network, memo)(torch.zeros(1, 3, *image_size, device=device)))


def _channels_first(network: nn.Module, maps: list[torch.Tensor]) -> list[torch.Tensor]:
    """Return maps of shape ``(B, C, h, w)``: those of Swin, for example, are ``(B, h, w, C)``."""
    if getattr(network, "output_fmt", None) != Format.NHWC:
        return maps
    return [feature_map.movedim(-1, 1) for feature_map in maps]


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0].rstrip(".") if lines else type(error).__name__


def _is_transformer(info: Sequence[dict]) -> bool:
    return len({layer["reduction"] for layer in info}) == 1


def _default_layers(info: Sequence[dict]) -> list[int]:
    if _is_transformer(info):
        return [2 * len(info) // 3 - 1, len(info) - 1]
    return [index for index, layer in enumerate(info) if layer["reduction"] in {8, 16}]
