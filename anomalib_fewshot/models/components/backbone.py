# Copyright (C) 2026 anomalib-fewshot contributors
# SPDX-License-Identifier: Apache-2.0

"""Feature maps of any timm model."""

from collections.abc import Sequence
from pathlib import Path

import timm
import torch
from timm.layers import Conv2dSame, Format, FrozenBatchNormAct2d
from timm.utils.model import freeze_batch_norm_2d
from torch import nn
from torchvision.ops.misc import FrozenBatchNorm2d

from .weights import check_name, create_backbone

FROZEN = (FrozenBatchNorm2d, FrozenBatchNormAct2d)
FOLDABLE = (nn.Conv2d, Conv2dSame)  # others may change their weights before they use them


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
        info = feature_info(name)
        wanted = sorted(layers if layers is not None else _default_layers(info))
        if not wanted or not set(wanted) <= set(range(len(info))):
            msg = f"`layers` must be indices of the {len(info)} feature maps of {name}, got {list(wanted)}."
            raise ValueError(msg)
        self.image_size = image_size
        indices = sorted({*wanted, len(info) - 1})
        arguments: dict = {"features_only": True, "out_indices": indices}
        if _is_transformer(info):
            patch = info[0]["reduction"]
            if any(side % patch for side in image_size):
                msg = f"`image_size` must be a multiple of the patch of {name}, {patch}, got {tuple(image_size)}."
                raise ValueError(msg)
            arguments["img_size"] = tuple(image_size)
        # A few images make poor batch statistics. Lightning keeps the mode of each module: a mode would not last.
        features = freeze_batch_norm_2d(create_backbone(name, pre_trained, weights, arguments))
        self.features = features.to(memory_format=torch.channels_last)  # faster on a processor
        self.channels_last = getattr(self.features, "output_fmt", None) == Format.NHWC  # Swin's maps, for one
        self.layers = [indices.index(layer) for layer in wanted]
        self.channels = [info[index]["num_chs"] for index in indices]

    @torch.no_grad()
    def fold_batch_norm(self) -> None:
        """Make each batch normalization part of the convolution before it: equal to rounding, in less time.

        The weights are not to be trained any more. An image passes, to see which convolution is before which.
        """
        outputs: dict[int, tuple[nn.Conv2d, torch.Tensor]] = {}  # with the tensor: its id is not given again
        pairs: dict[nn.Module, nn.Conv2d] = {}

        def see(module: nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
            if type(module) in FOLDABLE:
                outputs[id(output)] = (module, output)
            elif isinstance(module, FROZEN) and id(inputs[0]) in outputs:
                pairs[module] = outputs[id(inputs[0])][0]

        modules = [module for module in self.modules() if isinstance(module, (nn.Conv2d, *FROZEN))]
        hooks = [module.register_forward_hook(see) for module in modules]
        self.features(next(self.parameters()).new_zeros(1, 3, *self.image_size))
        for hook in hooks:
            hook.remove()
        for name, norm in [*self.named_modules()]:
            if norm in pairs:
                _fold(pairs[norm], norm)
                rest = [getattr(norm, part) for part in ("drop", "act") if hasattr(norm, part)]
                self.set_submodule(name, nn.Sequential(*rest))

    def forward(self, images: torch.Tensor) -> list[torch.Tensor]:
        """Return the feature maps.

        Args:
            images (torch.Tensor): Normalised images, shape ``(B, 3, H, W)``.

        Returns:
            list[torch.Tensor]: Maps of shape ``(B, C, h, w)``, the last one being the model's last.
        """
        maps = self.features(images)
        return [m.movedim(-1, 1) for m in maps] if self.channels_last else maps


def _fold(conv: nn.Conv2d, norm: nn.Module) -> None:
    """Give a convolution the weights that make a frozen normalization after it needless."""
    scale = norm.weight.double() * (norm.running_var.double() + norm.eps).rsqrt()
    bias = 0 if conv.bias is None else conv.bias.double()
    bias = norm.bias.double() + (bias - norm.running_mean.double()) * scale
    conv.weight = nn.Parameter((conv.weight * scale[:, None, None, None]).to(conv.weight), requires_grad=False)
    conv.bias = nn.Parameter(bias.to(conv.weight), requires_grad=False)


def feature_info(name: str) -> list[dict]:
    """Return the stride, channels and name of every feature map of a model."""
    check_name(name)
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
