# Copyright (C) 2026 anomalib-fewshot contributors
# SPDX-License-Identifier: Apache-2.0

"""Folds of the support set: their features, and how Gaussians that were fitted without a fold whiten it.

In this folder, "out of fold" always means: seen by a fit without the fold of the image.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import reduce
from hashlib import sha256
from operator import add
from typing import TypeVar

import torch
from torch.nn import functional as F  # noqa: N812

from anomalib_fewshot.errors import SupportError
from anomalib_fewshot.models.components import Moments, rotated_views, seeded_generator, symmetric_whitening, symmetry

from .features import FeatureGroup, Features, subsample_grid

T = TypeVar("T")
Batches = Iterable[torch.Tensor]
Extract = Callable[[torch.Tensor], Features]
Augment = Callable[[torch.Tensor, torch.Generator], torch.Tensor]
Synthesize = Callable[[torch.Tensor, torch.Generator], tuple[torch.Tensor, torch.Tensor]]

FITTED_VIEWS, OUT_OF_FOLD_VIEWS, ANOMALIES = 1, 2, 3  # random streams, each with a generator for each image
FIRST_POOL_NUMBER = 2**16  # of the random streams of unlabeled images
NUM_ANOMALY_IMAGES = 6  # expected number of images with a pool that anomalies are synthesized from
MIN_POOL_SIZE = 8  # unlabeled images: fewer are not used
MAX_POOL_SIZE = 128  # unlabeled images that a model is fitted to. Of more, a random choice
MAX_SQUEEZE = 1.5  # ratio of the sides up to which images are rotated by 90 degrees and resized to their shape again
NUM_WHITENING_FOLDS = 8  # each leaves out one part; of more folds, every eighth is left out at once


@dataclass(frozen=True)
class FoldSettings:
    """How the support set is divided, and which views of its images are computed.

    Args:
        augment (Augment): Returns a random view of each image, shape ``(B, 3, H, W)``.
        synthesize (Synthesize | None): Returns anomalies synthesized from an image of shape ``(3, H, W)``, and their
            masks. ``None``: no anomalies.
        seed (int): Seed of the views and anomalies, with the position of an image.
        num_views (int): Views of an image that the Gaussians are fitted to, including the image itself.
        right_angles (bool): Rotate and mirror each of these views by another of the eight symmetries of a square, or
            of the four symmetries of a rectangle if an image is elongated.
        num_angles (int): Number of angles at which the memory bank may hold each image. 0: none.
        max_folds (int): Number of folds. Up to so many images are a fold each.
        max_images (int): Images of which out-of-fold features are computed. Of more, the first.
        single_image_views (int): Views of a single image that replace out-of-fold images.
        anomaly_share (float): Share of the images that anomalies are synthesized from. The content of an image decides.
    """

    augment: Augment
    synthesize: Synthesize | None = None
    seed: int = 0
    num_views: int = 8
    right_angles: bool = True
    num_angles: int = 0
    max_folds: int = 32
    max_images: int = 64
    single_image_views: int = 8
    anomaly_share: float = 1.0

    def with_pool(self, num_images: int) -> "FoldSettings":
        """Return the settings for images that are fitted with a pool of unlabeled images.

        The false-alarm guarantee requires that labeled and unlabeled images are treated alike: the Gaussians are fitted
        to each image as it is, and anomalies are synthesized from a few images of both kinds.

        Args:
            num_images (int): Number of images, labeled and unlabeled.
        """
        share = NUM_ANOMALY_IMAGES / num_images
        return replace(self, num_views=1, single_image_views=1, anomaly_share=share)


@dataclass(frozen=True)
class FoldFeatures:
    """Features of one fold: of M images, of which V views each are scored out of fold.

    Args:
        moments (list[Moments]): Moments of the patches of each group and, last, of the image embeddings, over the views
            that the Gaussians are fitted to.
        views (Features): Features of M V views. The first of each image is the image itself.
        num_views (int): Number V of views of an image.
        anomalous (list[torch.Tensor]): The N anomalous patches of synthesized anomalies, of each group, ``(N, D)``.
        rotated (torch.Tensor | None): Patches for the memory bank of the first image at A angles, subsampled,
            shape ``(A, h', w', D)``.
    """

    moments: list[Moments]
    views: Features
    num_views: int
    anomalous: list[torch.Tensor]
    rotated: torch.Tensor | None = None

    @property
    def images(self) -> Features:
        """Features of the M images as they are."""
        return self.views[:: self.num_views]


Folds = Sequence[FoldFeatures]


@dataclass(frozen=True)
class OutOfFold:
    """Patches of one feature group, whitened by Gaussians that were fitted without their fold.

    Args:
        normal (torch.Tensor): Patches of M views, shape ``(M, h, w, D)``.
        anomalous (torch.Tensor): The N anomalous patches of synthesized anomalies, shape ``(N, D)``.
    """

    normal: torch.Tensor
    anomalous: torch.Tensor


def extract_fold_features(extract: Extract, batches: Batches, settings: FoldSettings) -> list[FoldFeatures]:
    """Compute all features of the support set that the fits need. Each image is computed by itself.

    Args:
        extract (Extract): Returns the features of normalized images, shape ``(B, 3, H, W)``.
        batches (Batches): Normalized images in a fixed order, in batches of shape ``(B, 3, H, W)``. The
            order decides folds and views. The batches do not.
        settings (FoldSettings): Folds and views.

    Raises:
        SupportError: If there is no image.
    """
    totals: list[list[Moments]] = []
    images: list[torch.Tensor] = []
    count = 0
    for batch in batches:
        for image in batch:
            fold = count % settings.max_folds
            own = _moments(extract(_fitted_views(image, count, settings)))
            if fold == len(totals):
                totals.append(own)
            else:
                totals[fold] = [one + two for one, two in zip(totals[fold], own, strict=True)]
            if count < settings.max_images:
                images.append(image)
            count += 1
    if count == 0:
        msg = "The support set must have an image, got none. Check the data module."
        raise SupportError(msg)
    num_views = settings.single_image_views if count == 1 else 1
    folds = []
    for fold, moments in enumerate(totals):
        views, anomalous = [], []
        for number in range(fold, len(images), settings.max_folds):
            image = images[number]
            views.append(extract(_out_of_fold_views(image, number, num_views, settings)))
            anomalous.append(_anomalous_patches(extract, image, number, views[-1], settings))
        groups = [torch.cat([own[group] for own in anomalous]) for group in range(len(moments) - 1)]
        rotated = None
        if settings.num_angles > 0:
            angles = rotated_views(images[fold][None], settings.num_angles)
            rotated = torch.cat([subsample_grid(extract(view).bank) for view in angles])
        folds.append(FoldFeatures(moments, Features.cat(views), 1 + num_views, groups, rotated))
    return folds


def extract_pool_features(
    extract: Extract,
    batches: Batches,
    settings: FoldSettings,
    on_image: Callable[[], object] | None = None,
) -> list[FoldFeatures]:
    """Compute the features of unlabeled images, a fold each.

    Args:
        extract (Extract): Returns the features of normalized images, shape ``(B, 3, H, W)``.
        batches (Batches): Normalized images in batches of shape ``(B, 3, H, W)``.
        settings (FoldSettings): How a view of each image is drawn.
        on_image (Callable[[], object] | None): Called after each image. Defaults to ``None``.
    """
    pool: list[FoldFeatures] = []
    for batch in batches:
        for image in batch:
            number = FIRST_POOL_NUMBER + len(pool)
            views = extract(_out_of_fold_views(image, number, 1, settings))
            anomalous = _anomalous_patches(extract, image, number, views, settings)
            pool.append(FoldFeatures(_moments(views[:1]), views, 2, anomalous))
            if on_image is not None:
                on_image()
    return pool


def _out_of_fold_views(image: torch.Tensor, number: int, count: int, settings: FoldSettings) -> torch.Tensor:
    """Return an image, ``(3, H, W)``, and random views of it that are scored out of fold: ``(1 + count, 3, H, W)``."""
    rng = seeded_generator(settings.seed, OUT_OF_FOLD_VIEWS, number)
    return torch.cat([image[None], settings.augment(image.expand(count, -1, -1, -1), rng)])


def _fitted_views(image: torch.Tensor, number: int, settings: FoldSettings) -> torch.Tensor:
    """Return the views of an image, ``(3, H, W)``, that the Gaussians are fitted to: ``(num_views, 3, H, W)``."""
    if settings.num_views == 1:
        return image[None]
    height, width = image.shape[-2:]
    is_elongated = max(height, width) > MAX_SQUEEZE * min(height, width)
    step = 0 if not settings.right_angles else 2 if is_elongated else 1  # even symmetries keep the shape
    views = [symmetry(image[None], step * view) for view in range(1, settings.num_views)]
    rng = seeded_generator(settings.seed, FITTED_VIEWS, number)
    return torch.cat([image[None], settings.augment(torch.cat(views), rng)])


def _moments(features: Features) -> list[Moments]:
    return [Moments.of(part) for part in (*features.patches, features.embeddings)]


def _anomalous_patches(
    extract: Extract,
    image: torch.Tensor,
    number: int,
    views: Features,
    settings: FoldSettings,
) -> list[torch.Tensor]:
    """Return the patches of each group, ``(N, D)``, that show an anomaly synthesized from an image with given views."""
    if settings.synthesize is None or not _is_chosen(image, settings.anomaly_share):
        return [part[:0].flatten(0, 2) for part in views.patches]
    rng = seeded_generator(settings.seed, ANOMALIES, number)
    anomalies, masks = settings.synthesize(image, rng)
    return [part[anomalous_cells(masks, part.shape[1:3])] for part in extract(anomalies).patches]


def _is_chosen(image: torch.Tensor, share: float) -> bool:
    """Return whether an image belongs to a share of all images, which depends on its content only."""
    digest = sha256(image.cpu().numpy().tobytes()).digest()
    return int.from_bytes(digest[:4], "big") < share * 2**32


def anomalous_cells(masks: torch.Tensor, grid: tuple[int, int] | torch.Size, num_pixels: int = 2) -> torch.Tensor:
    """Return which cells of a grid show an anomaly.

    Args:
        masks (torch.Tensor): Masks of changed pixels, shape ``(B, H, W)``.
        grid (tuple[int, int]): Height h and width w of the grid.
        num_pixels (int): A cell shows an anomaly if more of its pixels than so many times its side have changed, or
            more than half of them. Defaults to ``2``.

    Returns:
        torch.Tensor: Boolean, shape ``(B, h, w)``.
    """
    fraction = F.adaptive_avg_pool2d(masks.float(), (grid[0], grid[1]))
    return fraction > min(num_pixels * grid[0] / masks.shape[-2], 0.5)


def leave_one_out(folds: Sequence[T], has_pool: bool = False) -> list[list[T]]:
    """Return all folds, and those without each fold. A single fold is not left out, unless there is a pool.

    Example:
        >>> leave_one_out([0, 1, 2]), leave_one_out([0])
        ([[0, 1, 2], [1, 2], [0, 2], [0, 1]], [[0]])
        >>> leave_one_out([0], has_pool=True)
        [[0], []]
    """
    subsets = [list(folds)]
    if len(folds) > 1 or has_pool:
        subsets += [[*folds[:number], *folds[number + 1 :]] for number in range(len(folds))]
    return subsets


def total_moments(folds: Folds, number: int) -> Moments:
    """Return the moments of a feature group over folds. Number -1 is that of the image embeddings."""
    return reduce(add, [fold.moments[number] for fold in folds])


def whiten_out_of_fold(folds: Folds, number: int, group: FeatureGroup) -> OutOfFold:
    """Whiten each fold by a Gaussian of the others. Of more than eight folds, leave out an eighth at a time.

    A single fold has no others. Its views are whitened by its own Gaussian. Its image and anomalies are left out.

    Args:
        folds (Folds): Folds that the density is fitted to.
        number (int): Number of the feature group.
        group (FeatureGroup): The feature group.
    """
    total = total_moments(folds, number)
    normal, anomalous = [], []
    for part in range(min(NUM_WHITENING_FOLDS, len(folds))):
        left_out = folds[part::NUM_WHITENING_FOLDS]
        moments = total if len(folds) == 1 else total - total_moments(left_out, number)
        mean, whitening = symmetric_whitening(moments, group.regularization)
        for fold in left_out:
            patches, anomalies = fold.views.patches[number], fold.anomalous[number]
            if len(folds) == 1:
                patches, anomalies = patches[1:], anomalies[:0]
            normal.append((patches - mean.to(patches)) @ whitening.to(patches))
            anomalous.append((anomalies - mean.to(patches)) @ whitening.to(patches))
    return OutOfFold(torch.cat(normal), torch.cat(anomalous))
