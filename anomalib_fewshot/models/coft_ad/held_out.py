# Copyright (C) 2026 anomalib-fewshot contributors
# SPDX-License-Identifier: Apache-2.0

"""Held-out normal images, and anomalies synthesised from them, as Gaussians fitted without them see them."""

from collections.abc import Callable, Iterable
from itertools import repeat
from typing import NamedTuple

import torch
from torch.nn import functional as F  # noqa: N812

from anomalib_fewshot.models.components import Moments, seeded_generator

from .density import FEATURE_GROUPS
from .gaussian import Gaussian, symmetric_whitening

Features = Callable[[torch.Tensor], tuple[torch.Tensor, list[torch.Tensor]]]  # as CoftADModel.features
Augment = Callable[[torch.Tensor, torch.Generator], torch.Tensor]
Synthesize = Callable[[torch.Tensor, torch.Generator], tuple[torch.Tensor, torch.Tensor]]

MAX_FOLDS = 8  # parts of the images that are held out in turn
MAX_HELD_OUT = 64  # images that are held out; of more, the first
VIEWS_OF_SINGLE = 8  # held-out views of a single image; of others, the image and one view
ANOMALOUS_PIXELS = 2  # times a cell's side in pixels: a cell with more changed pixels, or half of its own, is anomalous


class HeldOut(NamedTuple):
    """Features of M views of held-out images, whitened by Gaussians fitted without them.

    Args:
        image_distances (torch.Tensor): Distances of the image embeddings, shape ``(M,)``.
        normal (list[torch.Tensor]): Patches of each group of features, shape ``(M, h, w, D)``.
        anomalous (list[torch.Tensor]): The N anomalous patches of synthesised anomalies, shape ``(N, D)``.
        is_single_image (bool): Whether there is one image: its views are no held-out images.
    """

    image_distances: torch.Tensor
    normal: list[torch.Tensor]
    anomalous: list[torch.Tensor]
    is_single_image: bool


def leave_one_out(
    features: Features,
    batches: Iterable[torch.Tensor],
    augment: Augment,
    *,
    num_views: int,
    seed: int,
    synthesize: Synthesize | None = None,
) -> tuple[list[Moments], HeldOut]:
    """Compute the moments of all images, and hold out each image in turn: of more than eight, an eighth of them.

    A held-out image and a view of it are whitened by Gaussians of the other images. A single image has no others: views
    that its Gaussian was not fitted to are whitened.

    Args:
        features (Features): Returns image embeddings, shape ``(B, E)``, and the patches of each group of features,
            shape ``(B, h, w, D)``.
        batches (Iterable[torch.Tensor]): Normalized images in a fixed order, which decides the folds and the views,
            each batch of shape ``(B, 3, H, W)``.
        augment (Augment): Returns a random view of each image.
        num_views (int): Views of an image that the Gaussians are fitted to, the image itself among them.
        seed (int): Seed of the views and anomalies. Views do not depend on whether there are anomalies.
        synthesize (Synthesize | None): Returns anomalies synthesised from an image of shape ``(3, H, W)``, and their
            masks. Defaults to ``None``: no anomalies.

    Returns:
        tuple[list[Moments], HeldOut]: Moments of the image embeddings and of the patches of each group, over all images
        and views; and the held-out images.

    Raises:
        ValueError: If there is no image.
    """
    density_rng, held_out_rng, anomaly_rng = (seeded_generator(seed, stream) for stream in (1, 2, 3))
    folds: list[list[Moments]] = []
    images: list[torch.Tensor] = []
    count = 0
    for batch in batches:
        views = [batch, *(augment(images, density_rng) for images in repeat(batch, num_views - 1))]
        for view in views:
            _add_by_fold(folds, features(view), count)
        images += batch[: max(0, MAX_HELD_OUT - count)].unbind()
        count += len(batch)
    if count == 0:
        msg = "The support must have an image, got none."
        raise ValueError(msg)
    total = [sum(parts[1:], parts[0]) for parts in zip(*folds, strict=True)]
    parts = []
    for number, image in enumerate(images):
        own = folds[number % MAX_FOLDS]
        others = total if count == 1 else [one - two for one, two in zip(total, own, strict=True)]
        views = augment(image.expand(VIEWS_OF_SINGLE if count == 1 else 1, -1, -1, -1), held_out_rng)
        views = views if count == 1 else torch.cat([image[None], views])
        anomalies = None if synthesize is None else synthesize(image, anomaly_rng)
        parts.append(whiten_held_out(features, others, views, anomalies))
    distances, *groups = zip(*parts, strict=True)
    normal, anomalous = ([torch.cat(group) for group in zip(*of_all, strict=True)] for of_all in groups)
    return total, HeldOut(torch.cat(distances), normal, anomalous, is_single_image=count == 1)


def _add_by_fold(folds: list[list[Moments]], features: tuple[torch.Tensor, list[torch.Tensor]], start: int) -> None:
    """Add the moments of each of a batch of images to those of its fold, the images being counted from ``start``."""
    embeddings, patches = features
    for row in range(len(embeddings)):
        fold = (start + row) % MAX_FOLDS
        own = [Moments.of(embeddings[row, None]), *(Moments.of(part[row]) for part in patches)]
        if fold == len(folds):
            folds.append(own)
        else:
            folds[fold] = [one + two for one, two in zip(folds[fold], own, strict=True)]


def whiten_held_out(
    features: Features,
    others: list[Moments],
    views: torch.Tensor,
    anomalies: tuple[torch.Tensor, torch.Tensor] | None,
) -> tuple[torch.Tensor, list[torch.Tensor], list[torch.Tensor]]:
    """Whiten a held-out image by the Gaussians of the other images.

    Args:
        features (Features): See :func:`leave_one_out`.
        others (list[Moments]): Moments of the other images.
        views (torch.Tensor): Normalized views of the image, shape ``(M, 3, H, W)``.
        anomalies (tuple[torch.Tensor, torch.Tensor] | None): Normalized anomalies synthesised from it, shape
            ``(A, 3, H, W)``, and their masks, shape ``(A, H, W)``.

    Returns:
        tuple[torch.Tensor, list[torch.Tensor], list[torch.Tensor]]: The first three parts of :class:`HeldOut`.
    """
    embeddings, patches = features(views)
    gaussians = [
        [part.to(embeddings.device) for part in symmetric_whitening(moments, group.regularization)]
        for group, moments in zip(FEATURE_GROUPS, others[1:], strict=True)
    ]
    normal = [(part - mean) @ whitening for part, (mean, whitening) in zip(patches, gaussians, strict=True)]
    anomalous = [part.flatten(0, -2)[:0] for part in normal]
    if anomalies is not None:
        images, masks = anomalies
        cells = [part[anomalous_cells(masks, part.shape[1:3])] for part in features(images)[1]]
        anomalous = [(part - mean) @ whitening for part, (mean, whitening) in zip(cells, gaussians, strict=True)]
    image_density = Gaussian(embeddings.shape[-1]).to(embeddings.device)
    image_density.fit(others[0])
    return image_density(embeddings), normal, anomalous


def anomalous_cells(masks: torch.Tensor, grid: tuple[int, int] | torch.Size) -> torch.Tensor:
    """Return which cells of a grid show an anomaly: masks of shape ``(B, H, W)`` -> ``(B, h, w)``, boolean."""
    fraction = F.adaptive_avg_pool2d(masks.float(), grid)
    return fraction > min(ANOMALOUS_PIXELS * grid[0] / masks.shape[-2], 0.5)
