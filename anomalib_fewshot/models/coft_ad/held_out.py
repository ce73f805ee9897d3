# Copyright (C) 2026 anomalib-fewshot contributors
# SPDX-License-Identifier: Apache-2.0

"""The support in parts that can be held out: their features, and how Gaussians fitted without them see these."""

from collections.abc import Callable, Iterable, Sequence
from functools import reduce
from operator import add
from typing import NamedTuple

import torch
from torch.nn import functional as F  # noqa: N812

from anomalib_fewshot.models.components import Moments, seeded_generator, symmetry, turned_views

from .density import FEATURE_GROUPS
from .gaussian import symmetric_whitening
from .neighbors import thinned


class Features(NamedTuple):
    """Features of B images.

    Args:
        embeddings (torch.Tensor): Image embeddings, shape ``(B, E)``.
        patches (list[torch.Tensor]): Patches of each group that has a Gaussian, shape ``(B, h, w, D)``.
        raw (torch.Tensor): Patches of the memory bank, shape ``(B, h, w, D)``.
    """

    embeddings: torch.Tensor
    patches: list[torch.Tensor]
    raw: torch.Tensor


Describe = Callable[[torch.Tensor], Features]  # as CoftADModel.features
Augment = Callable[[torch.Tensor, torch.Generator], torch.Tensor]
Synthesize = Callable[[torch.Tensor, torch.Generator], tuple[torch.Tensor, torch.Tensor]]

MAX_FOLDS = 32  # parts of the support: single images, unless there are more
FITTED_VIEWS, HELD_OUT_VIEWS, ANOMALIES = 1, 2, 3  # streams of random numbers, each with one for each image
MAX_TURNS = 8  # in which they are held out for the fine-tuning
MAX_HELD_OUT = 64  # images that are held out; of more, the first
VIEWS_OF_SINGLE = 8  # views of a single image that are held out; of others one
ANOMALOUS_PIXELS = 2  # times a cell's side in pixels: a cell with more changed pixels, or half of its own, is anomalous


class Fold(NamedTuple):
    """Features of a part of the support that is held out as a whole: of an image, or of a 32nd of many.

    Args:
        moments (list[Moments]): Moments of the image embeddings and of the patches of each group of features, over the
            views that the Gaussians are fitted to.
        embeddings (torch.Tensor): Embeddings of V views of M images, each image's first being itself, ``(M, V, E)``.
        patches (list[torch.Tensor]): Patches of each group of the same, shape ``(M, V, h, w, D)``.
        raw (torch.Tensor): Patches of the memory bank of the same, shape ``(M, V, h, w, D)``.
        anomalous (list[torch.Tensor]): The N anomalous patches of anomalies synthesised from them, shape ``(N, D)``.
        turned (torch.Tensor | None): Patches of the memory bank of the first image at A angles, :func:`thinned`,
            shape ``(A, h', w', D)``.
    """

    moments: list[Moments]
    embeddings: torch.Tensor
    patches: list[torch.Tensor]
    raw: torch.Tensor
    anomalous: list[torch.Tensor]
    turned: torch.Tensor | None = None

    @property
    def images(self) -> Features:
        """Features of the images as they are."""
        return Features(self.embeddings[:, 0], [part[:, 0] for part in self.patches], self.raw[:, 0])

    @property
    def views(self) -> Features:
        """Features of the views of the first image."""
        return Features(self.embeddings[0, 1:], [part[0, 1:] for part in self.patches], self.raw[0, 1:])


class HeldOut(NamedTuple):
    """Patches as Gaussians see them that were fitted without their images.

    Args:
        normal (list[torch.Tensor]): Whitened patches of each group of features, of M views, shape ``(M, h, w, D)``.
        anomalous (list[torch.Tensor]): The N anomalous patches of synthesised anomalies, shape ``(N, D)``.
        is_single_image (bool): Whether there is one image: its views are no held-out images.
    """

    normal: list[torch.Tensor]
    anomalous: list[torch.Tensor]
    is_single_image: bool


def describe(
    features: Describe,
    batches: Iterable[torch.Tensor],
    augment: Augment,
    *,
    num_views: int,
    seed: int,
    synthesize: Synthesize | None = None,
    quarter_turns: bool = False,
    num_angles: int = 0,
) -> list[Fold]:
    """Compute all features of the support that a fit needs, whatever it holds out.

    Args:
        features (Describe): Returns the features of normalized images, shape ``(B, 3, H, W)``.
        batches (Iterable[torch.Tensor]): Normalized images in a fixed order, which decides the folds and the views,
            each batch of shape ``(B, 3, H, W)``.
        augment (Augment): Returns a random view of each image.
        num_views (int): Views of an image that the Gaussians are fitted to, the image itself among them.
        seed (int): Seed of the views and anomalies. It and the position of an image decide those of the image: neither
            the batches nor whether there are anomalies have an influence.
        synthesize (Synthesize | None): Returns anomalies synthesised from an image of shape ``(3, H, W)``, and their
            masks. Defaults to ``None``: no anomalies.
        quarter_turns (bool): Turn and mirror each of an image's views by another of the eight symmetries of a square.
            Defaults to ``False``.
        num_angles (int): Number of angles, from 0 to 360 degrees, that each fold's first image is turned by. Defaults
            to ``0``.

    Returns:
        list[Fold]: Each image; of more than 32, as many parts.

    Raises:
        ValueError: If there is no image.
    """
    moments: list[list[Moments]] = []
    images: list[torch.Tensor] = []
    count = 0
    for batch in batches:
        for image in batch:
            own = _moments(features, image, count, augment, num_views, seed, quarter_turns=quarter_turns)
            if count < MAX_FOLDS:
                moments.append(own)
            else:
                fold = count % MAX_FOLDS
                moments[fold] = [one + two for one, two in zip(moments[fold], own, strict=True)]
            if count < MAX_HELD_OUT:
                images.append(image)
            count += 1
    if count == 0:
        msg = "The support must have an image, got none."
        raise ValueError(msg)
    described = []
    for number, image in enumerate(images):
        rng = seeded_generator(seed, HELD_OUT_VIEWS, number)
        views = augment(image.expand(VIEWS_OF_SINGLE if count == 1 else 1, -1, -1, -1), rng)
        own_features = features(torch.cat([image[None], views]))
        anomalous = [part[0, 0, :0] for part in own_features.patches]
        if synthesize is not None:
            anomalies, masks = synthesize(image, seeded_generator(seed, ANOMALIES, number))
            cells = features(anomalies).patches
            anomalous = [part[anomalous_cells(masks, part.shape[1:3])] for part in cells]
        described.append((*own_features, anomalous))
    folds = []
    for number, fitted in enumerate(moments):
        embeddings, patches, raw, cells_of_groups = zip(*described[number::MAX_FOLDS], strict=True)
        folds.append(
            Fold(
                fitted,
                torch.stack(embeddings),
                [torch.stack(parts) for parts in zip(*patches, strict=True)],
                torch.stack(raw),
                [torch.cat(parts) for parts in zip(*cells_of_groups, strict=True)],
            ),
        )
    if num_angles == 0:
        return folds
    return [
        fold._replace(
            turned=torch.cat([thinned(features(view).raw) for view in turned_views(image[None], num_angles)]),
        )
        for fold, image in zip(folds, images, strict=False)
    ]


def hold_out(folds: Sequence[Fold]) -> tuple[list[Moments], HeldOut]:
    """Whiten each part of the support by Gaussians of the others: of more than eight parts, eight times an eighth.

    A single part has no others: its views are whitened by its own Gaussians, but not the images, which are fitted to.

    Args:
        folds (Sequence[Fold]): Parts of the support.

    Returns:
        tuple[list[Moments], HeldOut]: Moments of the image embeddings and of the patches of each group, over all parts;
        and their patches.
    """
    total = _total(folds)
    if len(folds) == 1:
        (own,) = folds
        gaussians = _gaussians(total, own.raw.device)
        whitened = [_whiten(gaussians, [part[:, 1:] for part in own.patches], own.anomalous)]
    else:
        whitened = []
        for turn in range(min(MAX_TURNS, len(folds))):
            held_out = folds[turn::MAX_TURNS]
            others = [one - two for one, two in zip(total, _total(held_out), strict=True)]
            gaussians = _gaussians(others, folds[0].raw.device)
            whitened += [_whiten(gaussians, fold.patches, fold.anomalous) for fold in held_out]
    normal, anomalous = (
        [torch.cat(group) for group in zip(*parts, strict=True)] for parts in zip(*whitened, strict=True)
    )
    return total, HeldOut(normal, anomalous, is_single_image=len(folds) == 1)


def _total(folds: Sequence[Fold]) -> list[Moments]:
    return [reduce(add, parts) for parts in zip(*(fold.moments for fold in folds), strict=True)]


def _gaussians(moments: list[Moments], device: torch.device) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Return mean and whitening of each group of patches."""
    pairs = zip(FEATURE_GROUPS, moments[1:], strict=True)
    fitted = (symmetric_whitening(own, group.regularization) for group, own in pairs)
    return [(mean.to(device), whitening.to(device)) for mean, whitening in fitted]


def _whiten(
    gaussians: list[tuple[torch.Tensor, torch.Tensor]],
    normal: list[torch.Tensor],
    anomalous: list[torch.Tensor],
) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """Return patches of each group whitened by Gaussians: ``(M, V, h, w, D)`` -> ``(M V, h, w, D)``, and ``(N, D)``."""
    normal = [part.flatten(0, 1) for part in normal]
    white = ([(p - mean) @ w for p, (mean, w) in zip(parts, gaussians, strict=True)] for parts in (normal, anomalous))
    return next(white), next(white)


def _moments(
    features: Describe,
    image: torch.Tensor,
    number: int,
    augment: Augment,
    num_views: int,
    seed: int,
    *,
    quarter_turns: bool,
) -> list[Moments]:
    """Return the moments of the views of an image, ``(3, H, W)``, that its number in the support decides."""
    views = [image[None]]
    if num_views > 1:
        bases = [symmetry(image[None], view if quarter_turns else 0) for view in range(1, num_views)]
        views.append(augment(torch.cat(bases), seeded_generator(seed, FITTED_VIEWS, number)))
    own = features(torch.cat(views))
    return [Moments.of(own.embeddings), *(Moments.of(part) for part in own.patches)]


def anomalous_cells(masks: torch.Tensor, grid: tuple[int, int] | torch.Size) -> torch.Tensor:
    """Return which cells of a grid show an anomaly: masks of shape ``(B, H, W)`` -> ``(B, h, w)``, boolean."""
    fraction = F.adaptive_avg_pool2d(masks.float(), grid)
    return fraction > min(ANOMALOUS_PIXELS * grid[0] / masks.shape[-2], 0.5)
