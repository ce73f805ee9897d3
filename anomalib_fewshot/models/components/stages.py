# Copyright (C) 2026 anomalib-fewshot contributors
# SPDX-License-Identifier: Apache-2.0

"""Convolutional timm models as a sequence of stages, so that code can modify the feature maps between them."""

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
    """Split a convolutional timm model into stages that end at selected feature maps.

    Args:
        name (str): Name of a timm model whose modules run sequentially.
        layers (Sequence[int] | None): Indices of the feature maps in timm's ``feature_info``. Modules after the last
            one are removed. Defaults to ``None``: the maps with one of the ``strides``.
        pre_trained (bool): Load pretrained weights. Defaults to ``True``.
        weights (str | Path | None): File with the weights, see :class:`Backbone`. Defaults to ``None``.
        strides (Sequence[int]): Strides of the feature maps if ``layers`` is ``None``. Defaults to ``(4, 8, 16)``.

    Returns:
        tuple[nn.ModuleList, list[int], list[int]]: Stages, and the number of channels and the stride of each stage.

    Raises:
        ArgumentError: If a layer is unknown or the model is not sequential. See also :class:`Backbone`.
        MissingDataError: If no source provides the weights.
    """
    info = feature_info(name)
    if layers is None:
        layers = [index for index, layer in enumerate(info) if layer["reduction"] in strides]
    indices = sorted(set(layers))
    if not indices or not set(indices) <= set(range(len(info))):
        msg = f"`layers` must be indices of the {len(info)} feature maps of {name}, got {indices}."
        raise ArgumentError(msg)
    features = create_backbone(name, pre_trained, weights, {"features_only": True, "out_indices": indices})
    features = features.to(memory_format=torch.channels_last)  # faster on a CPU
    stages = _split(features, [info[index]["module"].replace(".", "_") for index in indices])
    if not _has_same_outputs(features, stages):
        msg = f"`backbone` must be a sequential convolutional model, such as a ResNet, got {name!r}."
        raise ArgumentError(msg)
    return stages, [info[index]["num_chs"] for index in indices], [info[index]["reduction"] for index in indices]


def _split(features: nn.Module, ends: list[str]) -> nn.ModuleList:
    """Split a feature extractor after each of the named modules."""
    names: list[str] = []
    blocks: list[nn.Module] = []
    for name, child in features.named_children():
        if isinstance(child, nn.Sequential) and len(child) > 0:
            names += [f"{name}_{number}_" for number, _ in child.named_children()]
            blocks += child.children()
        else:
            names.append(f"{name}_")
            blocks.append(child)
    stages = nn.ModuleList()
    start = 0
    for end_name in ends:
        end = 0
        for number, name in enumerate(names, start=1):
            if name.startswith(f"{end_name}_"):
                end = number
        stages.append(nn.Sequential(*blocks[start:end]))
        start = end
    return stages


@torch.no_grad()
def _has_same_outputs(features: nn.Module, stages: nn.ModuleList) -> bool:
    """Return whether the stages, run sequentially, reproduce the feature maps of the model."""
    training = features.training
    features.eval()
    maps = torch.linspace(-1, 1, 3 * 64 * 64).view(1, 3, 64, 64).sin()
    try:
        for expected in features(maps):
            maps, stages = stages[0](maps), stages[1:]
            if maps.ndim != 4 or not torch.equal(maps, expected):
                return False
    except (AssertionError, AttributeError, RuntimeError, TypeError, ValueError):  # a ViT, or modules in another order
        return False
    finally:
        features.train(training)
    return True
