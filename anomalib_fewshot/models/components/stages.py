# Copyright (C) 2026 anomalib-fewshot contributors
# SPDX-License-Identifier: Apache-2.0

"""A convolutional timm model, cut into stages, so that a feature map can be changed on its way."""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import nn

from anomalib_fewshot.errors import ArgumentError

from .backbone import feature_info
from .weights import create_backbone


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
        ArgumentError: If there is no such layer, if the model cannot be cut, or as :class:`Backbone` does.
        MissingDataError: If there are no weights.
    """
    info = feature_info(name)
    default = [index for index, layer in enumerate(info) if layer["reduction"] in strides]
    wanted = sorted(set(layers if layers is not None else default))
    if not wanted or not set(wanted) <= set(range(len(info))):
        msg = f"`layers` must be indices of the {len(info)} feature maps of {name}, got {wanted}."
        raise ArgumentError(msg)
    features = create_backbone(name, pre_trained, weights, {"features_only": True, "out_indices": wanted})
    features = features.to(memory_format=torch.channels_last)  # faster on a processor
    stages = _cut(features, [info[index]["module"].replace(".", "_") for index in wanted])
    if not _is_cut_right(features, stages):
        msg = f"`backbone` must be a convolutional model that runs part after part, such as a ResNet, got {name!r}."
        raise ArgumentError(msg)
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
