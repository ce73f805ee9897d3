# Copyright (C) 2026 anomalib-fewshot contributors
# SPDX-License-Identifier: Apache-2.0

"""Similarity between the target category and other categories, which selects the training categories."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import torch
from anomalib.data import AnomalibDataset
from torch.nn import functional as F  # noqa: N812

from anomalib_fewshot.models.components import Backbone

MAX_COMPARED_IMAGES = 16  # images per category that are compared with the support set


def first_images(data: AnomalibDataset) -> Iterator[torch.Tensor]:
    """Yield the first images of a dataset one by one, shape ``(1, 3, H, W)``, because their sizes may differ."""
    for index in range(min(len(data), MAX_COMPARED_IMAGES)):
        item: Any = data[index]
        yield item.image[None]


def feature_extractor(
    name: str,
    pre_trained: bool,
    weights: str | None,
    device: torch.device,
) -> Callable[[torch.Tensor], torch.Tensor]:
    """Return a function that averages the last feature map of a backbone: ``(B, 3, H, W)`` -> ``(B, E)``.

    Args:
        name (str): Name of a convolutional timm model.
        pre_trained (bool): Load pretrained weights.
        weights (str | None): File with the weights, see :class:`Backbone`.
        device (torch.device): Device of the images.
    """
    backbone = Backbone(name, None, pre_trained, weights).eval().to(device)
    return lambda images: backbone(images)[-1].mean((-2, -1))


@torch.no_grad()
def category_similarities(
    embed: Callable[[torch.Tensor], torch.Tensor],
    support: Iterable[torch.Tensor],
    categories: Mapping[str, Iterable[torch.Tensor]],
) -> dict[str, float]:
    """Return the similarity of each category to the support set.

    For each support image, the highest cosine similarity to an image of the category counts. The result is the mean
    over the support set.

    Args:
        embed (Callable[[torch.Tensor], torch.Tensor]): Function that embeds images: ``(B, 3, H, W)`` -> ``(B, E)``.
        support (Iterable[torch.Tensor]): Batches of support images.
        categories (Mapping[str, Iterable[torch.Tensor]]): Batches of normal images of each category.

    Returns:
        dict[str, float]: Similarity of each category, between -1 and 1.
    """
    target = _unit_embeddings(embed, support)
    similarities = {}
    for name, batches in categories.items():
        cosines = target @ _unit_embeddings(embed, batches).T
        similarities[name] = float(cosines.amax(1).mean())
    return similarities


def _unit_embeddings(
    embed: Callable[[torch.Tensor], torch.Tensor],
    batches: Iterable[torch.Tensor],
) -> torch.Tensor:
    return F.normalize(torch.cat([embed(images) for images in batches]), dim=-1)
