# Copyright (C) 2026 anomalib-fewshot contributors
# SPDX-License-Identifier: Apache-2.0

"""Which other categories are like the target: those that a registration network learns from."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import torch
from anomalib.data import AnomalibDataset
from torch.nn import functional as F  # noqa: N812

from anomalib_fewshot.models.components import Backbone

MAX_COMPARED = 16  # images of another category that are compared with the support


def first_images(data: AnomalibDataset) -> Iterator[torch.Tensor]:
    """Yield the first images of a dataset, each of shape ``(1, 3, H, W)``: their sizes may differ."""
    for index in range(min(len(data), MAX_COMPARED)):
        item: Any = data[index]
        yield item.image[None]


def deepest_features(
    name: str,
    pre_trained: bool,
    weights: str | None,
    device: torch.device,
) -> Callable[[torch.Tensor], torch.Tensor]:
    """Return what embeds images, ``(B, 3, H, W)`` -> ``(B, E)``: the mean of the last map of a convolutional backbone.

    Args:
        name (str): Name of a timm model.
        pre_trained (bool): Load weights.
        weights (str | None): File with the weights, see :class:`Backbone`.
        device (torch.device): Device of the images.
    """
    backbone = Backbone(name, None, pre_trained, weights).eval().to(device)
    return lambda images: backbone(images)[-1].mean((-2, -1))


@torch.no_grad()
def similarities(
    embed: Callable[[torch.Tensor], torch.Tensor],
    support: Iterable[torch.Tensor],
    others: Mapping[str, Iterable[torch.Tensor]],
) -> dict[str, float]:
    """Return how like each other category is to the target.

    Args:
        embed (Callable[[torch.Tensor], torch.Tensor]): Returns the embeddings of images: ``(B, 3, H, W)`` ->
            ``(B, E)``.
        support (Iterable[torch.Tensor]): Images of the target, in batches.
        others (Mapping[str, Iterable[torch.Tensor]]): Normal images of each other category, in batches.

    Returns:
        dict[str, float]: Cosine of the embeddings of a support image and of the most similar image of each category,
        the mean over the support, between -1 and 1.
    """

    def directions(batches: Iterable[torch.Tensor]) -> torch.Tensor:
        return F.normalize(torch.cat([embed(images) for images in batches]), dim=-1)

    target = directions(support)
    return {name: float((target @ directions(batches).T).amax(1).mean()) for name, batches in others.items()}
