# Copyright (C) 2026 anomalib-fewshot contributors
# SPDX-License-Identifier: Apache-2.0

"""What a density has not seen: normal images left out of it, and anomalies made of them."""

from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import torch
from torch.nn import functional as F  # noqa: N812

from anomalib_fewshot.models.components import Moments

from .density import GroupDensity
from .gaussian import Gaussian, symmetric_whitening

Embed = Callable[[torch.Tensor], tuple[torch.Tensor, list[torch.Tensor]]]  # as CoftADModel.embeddings

MAX_FOLDS = 8  # parts of the images that are left out in turn
ANOMALOUS_PIXELS = 2  # times a cell's side in pixels: a cell with more changed pixels, or half of its own, is anomalous


class LeftOut(NamedTuple):
    """Images, M of them, as densities see them that have not seen them.

    Args:
        images (torch.Tensor): Distances of the images, shape ``(M,)``.
        normal (list[torch.Tensor]): Their positions for each group of features, whitened, shape ``(M, h, w, D)``.
        anomalous (list[torch.Tensor]): Positions of synthesised anomalies, whitened likewise, shape ``(N, D)``.
    """

    images: torch.Tensor
    normal: list[torch.Tensor]
    anomalous: list[torch.Tensor]

    @classmethod
    def cat(cls, parts: Sequence["LeftOut"]) -> "LeftOut":
        """Return all parts as one."""
        images, normal, anomalous = zip(*parts, strict=True)
        groups = [[torch.cat(group) for group in zip(*of_all, strict=True)] for of_all in (normal, anomalous)]
        return cls(torch.cat(images), *groups)


def moments_by_fold(
    embed: Embed,
    views: Iterable[tuple[list[str], torch.Tensor]],
) -> tuple[dict[str, int], dict[int, list[Moments]]]:
    """Return the moments that densities are fitted from, of each fold by itself.

    Args:
        embed (Embed): Embeds images and their positions.
        views (Iterable[tuple[list[str], torch.Tensor]]): Paths and normalised views, shape ``(B, 3, H, W)``.

    Returns:
        tuple[dict[str, int], dict[int, list[Moments]]]: The fold of each path, in turn, and by fold the moments of the
        image embeddings, and of the positions for each group of features.
    """
    folds: dict[str, int] = {}
    moments: dict[int, list[Moments]] = {}
    for paths, images in views:
        embeddings, positions = embed(images)
        for row, path in enumerate(paths):
            fold = folds.setdefault(path, len(folds) % MAX_FOLDS)
            own = [Moments.of(embeddings[row, None]), *(Moments.of(part[row]) for part in positions)]
            moments[fold] = add(moments[fold], own) if fold in moments else own
    return folds, moments


def add(first: Sequence[Moments], second: Sequence[Moments]) -> list[Moments]:
    """Return the moments of both."""
    return [mine.plus(theirs) for mine, theirs in zip(first, second, strict=True)]


def subtract(first: Sequence[Moments], second: Sequence[Moments]) -> list[Moments]:
    """Return the moments of the first without the second."""
    return [mine.minus(theirs) for mine, theirs in zip(first, second, strict=True)]


def show(
    embed: Embed,
    densities: Iterable[GroupDensity],
    others: Sequence[Moments],
    views: torch.Tensor,
    anomalies: tuple[torch.Tensor, torch.Tensor] | None,
) -> LeftOut:
    """Show an image to the densities of others.

    Args:
        embed (Embed): Embeds images and their positions.
        densities (Iterable[GroupDensity]): Densities of the groups of features.
        others (Sequence[Moments]): Moments of the other images.
        views (torch.Tensor): Normalised views of the image, shape ``(M, 3, H, W)``.
        anomalies (tuple[torch.Tensor, torch.Tensor] | None): Normalised anomalies that were made of it, shape
            ``(A, 3, H, W)``, and their masks, shape ``(A, H, W)``.
    """
    embeddings, positions = embed(views)
    gaussians = [
        [part.to(embeddings.device) for part in symmetric_whitening(moments, density.group.floor)]
        for density, moments in zip(densities, others[1:], strict=True)
    ]
    normal = [(part - mean) @ whitening for part, (mean, whitening) in zip(positions, gaussians, strict=True)]
    anomalous = [part.flatten(0, -2)[:0] for part in normal]
    if anomalies is not None:
        images, masks = anomalies
        cells = [part[touched(masks, part.shape[1:3])] for part in embed(images)[1]]
        anomalous = [(part - mean) @ whitening for part, (mean, whitening) in zip(cells, gaussians, strict=True)]
    image_density = Gaussian(embeddings.shape[-1]).to(embeddings.device)
    image_density.fit(others[0])
    return LeftOut(image_density(embeddings), normal, anomalous)


def touched(masks: torch.Tensor, grid: tuple[int, int] | torch.Size) -> torch.Tensor:
    """Return which cells of a grid show an anomaly: masks of shape ``(B, H, W)`` -> ``(B, h, w)``, boolean."""
    share = F.adaptive_avg_pool2d(masks.float(), grid)
    return share > min(ANOMALOUS_PIXELS * grid[0] / masks.shape[-2], 0.5)
