# Copyright (C) 2026 anomalib-fewshot contributors
# SPDX-License-Identifier: Apache-2.0

"""Feature extraction with any timm model."""

import logging
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass
from functools import cache
from itertools import chain
from pathlib import Path
from typing import Any, cast

import torch
from timm.layers import Conv2dSame, Format, FrozenBatchNormAct2d
from timm.utils.model import freeze_batch_norm_2d
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torchvision.ops.misc import FrozenBatchNorm2d

from anomalib_fewshot.errors import ArgumentError

from .weights import CREATION_ERRORS, check_name, create_backbone, create_blueprint, first_weights_hash

logger = logging.getLogger(__name__)

FROZEN = (FrozenBatchNorm2d, FrozenBatchNormAct2d)
FOLDABLE = (nn.Conv2d, Conv2dSame)  # other convolutions may transform their weights in the forward pass
PROBE_SIZE = (64, 64)
MAX_FOLD_ERROR = 1e-3  # relative to the largest absolute value of a feature map


class Backbone(nn.Module):
    """Feature extractor based on a timm model with frozen batch normalization.

    Args:
        name (str): Name of a timm model with feature maps, convolutional or ViT.
        layers (Sequence[int] | None): Indices of the feature maps in timm's ``feature_info``. The last map is always
            returned in addition. Defaults to ``None``: strides 8 and 16 of a convolutional model; of a ViT, the
            blocks at a third and at two thirds of the depth.
        pre_trained (bool): Load pretrained weights. Defaults to ``True``.
        weights (str | Path | None): File with the weights in timm's naming. Defaults to ``None``: the installed weight
            package, or else the timm hub and its cache.
        image_size (tuple[int, int]): Height and width of the images. Only a ViT needs it. Defaults to ``(224, 224)``.

    Attributes:
        grids (list[tuple[int, int]]): Height and width of each output map for images of ``image_size``.
        layers (list[int]): Positions of the requested maps in the output of ``forward``.
        channels (list[int]): Number of channels of each output map.
        weights_hash (str): Hash of the first weights, before batch normalization is folded.
        is_folded (torch.Tensor): Whether batch normalization is folded into the convolutions, a boolean scalar. Loading
            a state dict with another value rebuilds the network in the saved form.

    Raises:
        ArgumentError: If the model or a layer is unknown, if the model has no feature maps, or if the image size or the
            weight file is incompatible with the model.
        MissingDataError: If no source provides the weights.
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
            msg = (
                f"`layers` must be set for {name}, because none of its {len(info)} feature maps has stride 8 or 16. "
                "Set the indices of the feature maps."
            )
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
                msg = f"`image_size` must be a multiple of the patch size of {name}, {patch}, got {image_size}."
                raise ArgumentError(msg)
            arguments["img_size"] = image_size
        self._arguments = arguments
        self.channels = [info[index]["num_chs"] for index in indices]
        network = create_backbone(name, pre_trained, weights, arguments)
        self.weights_hash = first_weights_hash(network)
        self.grids = _check_maps(name, network, image_size, self.channels)
        # Batch statistics of a few images are unreliable. The evaluation mode is not enough, because Lightning resets
        # the mode of each module.
        features = freeze_batch_norm_2d(network)
        self.features = features.to(memory_format=torch.channels_last)  # faster on a CPU
        self.layers = [indices.index(layer) for layer in wanted]
        self.register_buffer("is_folded", torch.tensor(data=False))
        self.is_folded: torch.Tensor
        self.train()

    @torch.no_grad()
    def fold_batch_norm(self) -> None:
        """Fold each batch normalization into the preceding convolution if the feature maps stay the same.

        The method first folds a copy with random weights and compares its feature maps on one random image. The network
        is not folded if a map changes by more than 0.1 % of its largest value. Such a change means that a convolution
        output has a second consumer, or that attention amplifies rounding errors. A checkpoint stores the result, see
        ``is_folded``. Folded weights are not trainable.
        """
        if self.is_folded or not any(isinstance(module, FROZEN) for module in self.features.modules()):
            return
        rng = torch.Generator().manual_seed(0)
        copy = deepcopy(self.features).eval()
        _randomize_weights(copy, rng)
        image = _probe_image(copy, self.image_size, rng)
        before = [feature_map.clone() for feature_map in copy(image)]
        pairs = _find_pairs(copy, image)
        _fold_pairs(copy, pairs)
        if not _are_close(copy(image), before):
            logger.info("Batch normalization of %s is not folded, because this would change its output.", self.name)
            return
        _fold_pairs(self.features, pairs)
        self.is_folded.fill_(value=True)

    @torch.no_grad()
    def _load_from_state_dict(self, state_dict: dict[str, torch.Tensor], prefix: str, *args: Any) -> None:  # noqa: ANN401
        """Load weights after converting the network to their form, folded or not."""
        is_folded = state_dict.get(f"{prefix}is_folded")
        if is_folded is not None and bool(is_folded) != bool(self.is_folded):
            self._replace_network(is_folded=bool(is_folded))
        super()._load_from_state_dict(state_dict, prefix, *args)

    def _replace_network(self, *, is_folded: bool) -> None:
        """Replace the network with an uninitialized one in the given form."""
        network = freeze_batch_norm_2d(create_blueprint(self.name, self._arguments, "cpu")).eval()
        if is_folded:
            image = _probe_image(network, self.image_size, torch.Generator().manual_seed(0))
            _fold_pairs(network, _find_pairs(network, image))
        parameters = list(self.features.parameters())
        network = network.to(parameters[0].device, parameters[0].dtype, memory_format=torch.channels_last)
        self.features = network.requires_grad_(any(parameter.requires_grad for parameter in parameters))
        self.train(self.training)

    def train(self, mode: bool = True) -> "Backbone":
        """Set the mode of all modules except batch normalization.

        timm does not freeze one-dimensional batch normalization, such as that of LeViT.
        """
        super().train(mode)
        for module in self.features.modules():
            if isinstance(module, _BatchNorm):
                module.eval()
        return self

    def forward(self, images: torch.Tensor) -> list[torch.Tensor]:
        """Return the feature maps.

        Args:
            images (torch.Tensor): Normalized images, shape ``(B, 3, H, W)``.

        Returns:
            list[torch.Tensor]: Feature maps from shallow to deep, each of shape ``(B, C, h, w)``.
        """
        return _channels_first(self.features, self.features(images))


@dataclass(frozen=True)
class _Pair:
    """Names of a convolution and of the batch normalization after it."""

    conv: str
    norm: str


def _randomize_weights(network: nn.Module, rng: torch.Generator) -> None:
    """Draw random weights and batch statistics.

    Initial statistics of 0 and 1 would hide a wrong fold, so vectors are drawn between 0.5 and 1.5.
    """
    for tensor in chain(network.parameters(), network.buffers()):
        if tensor.is_floating_point() and tensor.numel() == max(tensor.shape, default=1):
            tensor.copy_(torch.rand(tensor.shape, generator=rng) + 0.5)
        elif isinstance(tensor, nn.Parameter):
            fan_in = tensor.numel() / len(tensor)
            tensor.copy_(torch.randn(tensor.shape, generator=rng) / fan_in**0.5)


def _probe_image(network: nn.Module, image_size: tuple[int, int], rng: torch.Generator) -> torch.Tensor:
    """Return a random image, a small one for speed if the network accepts it."""
    parameter = next(network.parameters())
    small = torch.rand(1, 3, *PROBE_SIZE, generator=rng)
    large = torch.rand(1, 3, *image_size, generator=rng)
    try:
        network(small.to(parameter))
    except CREATION_ERRORS:
        return large.to(parameter)
    return small.to(parameter)


def _find_pairs(network: nn.Module, image: torch.Tensor) -> list[_Pair]:
    """Return each convolution whose output a batch normalization consumes, found in a forward pass."""
    names = {module: name for name, module in network.named_modules()}
    outputs: dict[int, tuple[nn.Module, torch.Tensor]] = {}  # keeps the tensors alive, so that no id is reused
    pairs: dict[str, _Pair] = {}

    def record(module: nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
        if type(module) in FOLDABLE:
            outputs[id(output)] = (module, output)
        elif isinstance(module, FROZEN) and id(inputs[0]) in outputs:
            conv = outputs[id(inputs[0])][0]
            pairs[names[module]] = _Pair(names[conv], names[module])

    observed = [module for module in names if isinstance(module, (nn.Conv2d, *FROZEN))]
    hooks = [module.register_forward_hook(record) for module in observed]
    try:
        network(image)
    finally:
        for hook in hooks:
            hook.remove()
    return list(pairs.values())


def _fold_pairs(network: nn.Module, pairs: Sequence[_Pair]) -> None:
    for pair in pairs:
        conv = cast("nn.Conv2d", network.get_submodule(pair.conv))
        norm = cast("FrozenBatchNorm2d | FrozenBatchNormAct2d", network.get_submodule(pair.norm))
        _fold(conv, norm)
        rest = [getattr(norm, part) for part in ("drop", "act") if hasattr(norm, part)]
        network.set_submodule(pair.norm, nn.Sequential(*rest))


def _are_close(maps: Sequence[torch.Tensor], expected: Sequence[torch.Tensor]) -> bool:
    for feature_map, reference in zip(maps, expected, strict=True):
        error = (feature_map - reference).abs().max()
        if not error <= MAX_FOLD_ERROR * reference.abs().max():  # `not <=` also rejects NaN
            return False
    return True


def _fold(conv: nn.Conv2d, norm: FrozenBatchNorm2d | FrozenBatchNormAct2d) -> None:
    """Fold a frozen batch normalization into the preceding convolution."""
    scale = norm.get_buffer("weight").double() * (norm.get_buffer("running_var").double() + norm.eps).rsqrt()
    bias: torch.Tensor | int = 0 if conv.bias is None else conv.bias.double()
    bias = norm.get_buffer("bias").double() + (bias - norm.get_buffer("running_mean").double()) * scale
    conv.weight = nn.Parameter((conv.weight * scale[:, None, None, None]).to(conv.weight), requires_grad=False)
    conv.bias = nn.Parameter(bias.to(conv.weight), requires_grad=False)


@cache
def feature_info(name: str) -> tuple[dict, ...]:
    """Return the stride, channels and name of every feature map of a timm model.

    Raises:
        ArgumentError: If the model is unknown or has no feature maps.
    """
    check_name(name)
    try:
        network: Any = create_blueprint(name, {"features_only": True})
        info = tuple(network.feature_info.info)
    except CREATION_ERRORS as error:
        msg = f"`backbone` must be a model with feature maps, got {name!r} ({_first_line(error)})."
        raise ArgumentError(msg) from error
    if not info:
        msg = f"`backbone` must be a model with feature maps, got {name!r}."
        raise ArgumentError(msg)
    return info


def size_multiple(name: str) -> int:
    """Return the largest stride of a timm model. Height and width of an image should be multiples of it."""
    return max(layer["reduction"] for layer in feature_info(name))


def _check_maps(
    name: str,
    network: nn.Module,
    image_size: tuple[int, int],
    channels: list[int],
) -> list[tuple[int, int]]:
    """Check that a network returns feature maps for an image size, and return their height and width.

    Raises:
        ArgumentError: If the network fails or returns other shapes.
    """
    rule = f"`backbone` and `image_size` must be compatible, got {name!r} and {image_size}"
    network.eval()
    try:
        maps = _maps_of(network, image_size, "meta")
    except CREATION_ERRORS:  # the meta device may lack an operation
        try:
            maps = _maps_of(network, image_size, "cpu")
        except CREATION_ERRORS as error:
            msg = f"{rule}: {_first_line(error)}. Use the image size of the pretrained backbone or another backbone."
            raise ArgumentError(msg) from error
    shapes = [tuple(feature_map.shape) for feature_map in maps]
    has_empty_maps = any(len(shape) != 4 or 0 in shape for shape in shapes)
    if has_empty_maps or [shape[1] for shape in shapes] != channels:
        msg = (
            f"{rule}: the feature maps have the shapes {shapes}, expected {channels} channels. Increase `image_size` "
            "or use another backbone."
        )
        raise ArgumentError(msg)
    return [(height, width) for _, _, height, width in shapes]


@torch.no_grad()
def _maps_of(network: nn.Module, image_size: tuple[int, int], device: str) -> list[torch.Tensor]:
    """Return the feature maps of an all-zero image. On the meta device they have shapes but no values."""
    memo: dict[int, Any] = {}
    if device == "meta":  # the copy then allocates no weights
        for tensor in chain(network.parameters(), network.buffers()):
            memo[id(tensor)] = tensor.to(device)
    return _channels_first(network, deepcopy(network, memo)(torch.zeros(1, 3, *image_size, device=device)))


def _channels_first(network: nn.Module, maps: list[torch.Tensor]) -> list[torch.Tensor]:
    """Return feature maps in the layout ``(B, C, h, w)``. Swin, for example, returns ``(B, h, w, C)``."""
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
        return [len(info) // 3, 2 * len(info) // 3 - 1]  # the last block describes the object rather than its parts
    return [index for index, layer in enumerate(info) if layer["reduction"] in {8, 16}]
