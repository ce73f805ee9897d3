# Copyright (C) 2026 anomalib-fewshot contributors
# SPDX-License-Identifier: Apache-2.0

"""The memory bank: the distance of each patch from the nearest patch of the support set and of unlabeled images."""

from collections.abc import Sequence

import torch
from anomalib.models.components.base import DynamicBufferMixin

from anomalib_fewshot.models.components import coreset, nearest_distances

from .density import MIN_STD, standardize
from .features import subsample_grid
from .folds import Folds, leave_one_out

CORESET_SIZE = 200  # patches of each image
POOL_CORESET_SIZE = 50  # patches of each image with a pool of unlabeled images
MAX_ROWS = 3200  # patches of all images with a pool
NUM_MARKERS = 4  # patches that tell whether an image is in the bank
MIN_OTHERS = 3  # images that an image of the bank must be compared with, one of them left out with its fold
MARKER_TOLERANCE = 1e-3  # highest squared distance from a marker, relative to its squared norm
ROTATED_CORESET_SIZE = 400  # patches of each image at all angles
TOP_DISTANCE_FRACTION = 0.1  # part of an image's patches that decides whether its orientation is arbitrary
ROTATION_RATIO = 0.85  # highest ratio of distances at which it is. On five sets of upright parts: 0.87 to 0.96


class MemoryBank(DynamicBufferMixin):
    """Standardized distances from the nearest patch, in the whole support set and without each fold.

    As in PatchCore, a patch is a mean over 3 x 3 positions. Distances are standardized by out-of-fold distances.

    A part of arbitrary orientation is nearer to other images of it if those are rotated. If the support set shows this,
    the bank also holds patches of rotated images. The decision without a fold is made from the other folds only.

    With a pool of unlabeled images, the distance is the mean of those from the two nearest images, so that a defect of
    a single image of the pool does not make the same defect look normal. An image that is itself in the bank is
    compared with all others.

    Args:
        dim (int): Number of channels D of a patch.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.register_buffer("bank", torch.zeros(1, 1, dim))  # (N, R, D): R patches of each image of F folds and a pool
        self.register_buffer("rotated_bank", torch.zeros(1, 0, dim))  # (F, T, D)
        self.register_buffer("is_rotated", torch.zeros(1, dtype=torch.bool))  # (1 + F): all folds, and without each
        self.register_buffer("mean", torch.zeros(1))  # (1 + F), of out-of-fold distances
        self.register_buffer("std", torch.ones(1))
        self.bank: torch.Tensor
        self.rotated_bank: torch.Tensor
        self.is_rotated: torch.Tensor
        self.mean: torch.Tensor
        self.std: torch.Tensor

    @torch.no_grad()
    def fit(self, folds: Folds, pool: Folds = (), *, always_rotated: bool = False) -> None:
        """Select patches of the first image of each fold and of the pool, and fit the scales to out-of-fold distances.

        Args:
            folds (Folds): Features of F folds.
            pool (Folds): Features of unlabeled images, a fold each. Defaults to none.
            always_rotated (bool): Keep patches of rotated images, if the folds have them, without a test.
        """
        images = [*folds, *pool]
        num_rows = min(POOL_CORESET_SIZE, MAX_ROWS // len(images)) if pool else CORESET_SIZE
        self.bank = torch.stack([coreset(image.views.bank[0].flatten(0, 1), num_rows) for image in images])
        self.rotated_bank = self.bank[:, :0]
        pool_numbers = list(range(len(folds), len(images)))
        subsets = leave_one_out(range(len(folds)), has_pool=len(pool) > 0)
        is_rotated = [False] * len(subsets)
        if folds[0].rotated is not None:
            distances = rotation_distances(folds)
            is_rotated = [always_rotated or has_arbitrary_orientation(distances, subset) for subset in subsets]
        upright = [nearest_distances(image.views.bank, self.bank) for image in images]
        rotated = upright
        if any(is_rotated):
            rows = [fold.rotated.flatten(0, 2) for fold in folds if fold.rotated is not None]
            self.rotated_bank = torch.stack([coreset(own, ROTATED_CORESET_SIZE) for own in rows])
            rotated = []
            for image, nearest in zip(images, upright, strict=True):
                rotated.append(self._nearer_rotated(image.views.bank, nearest))
        self.is_rotated = torch.tensor(is_rotated, device=self.bank.device)
        means, stds = [], []
        for subset, uses_rotated in zip(subsets, is_rotated, strict=True):
            chosen = rotated if uses_rotated else upright
            out_of_fold = out_of_fold_distances(chosen, [*subset, *pool_numbers], 2 if pool else 1).double()
            means.append(out_of_fold.mean().float())
            stds.append(out_of_fold.std(correction=0).clamp_min(MIN_STD).float())
        self.mean, self.std = torch.stack(means), torch.stack(stds)

    @property
    def has_pool(self) -> bool:
        """Whether the bank was fitted with a pool of unlabeled images."""
        return self.pool_size > 0

    @property
    def pool_size(self) -> int:
        """Number of unlabeled images in the bank."""
        num_folds = max(1, len(self.mean) - 1)
        return len(self.bank) - num_folds

    def find_own(self, patches: torch.Tensor) -> torch.Tensor:
        """Return which images of the bank each image is equal to: ``(B, h, w, D)`` -> ``(B, N)``.

        The guarantee for images of the pool requires that they are compared with the other images only. An image
        that is equal to nearly all of them, such as a copy in a folder of copies, is compared with all.
        """
        markers = self.bank[:, :NUM_MARKERS]
        squares = markers.square().sum(-1)  # (N, M)
        rows = patches.flatten(1, 2)  # (B, h w, D)
        products = rows @ markers.flatten(0, 1).T  # (B, h w, N M)
        distances = rows.square().sum(-1, keepdim=True) + squares.flatten() - 2 * products
        nearest = distances.amin(1).unflatten(-1, squares.shape)  # (B, N, M)
        own = (nearest <= MARKER_TOLERANCE * squares).all(-1)
        return own & (own.sum(-1, keepdim=True) <= len(self.bank) - MIN_OTHERS)

    def forward(
        self,
        patches: torch.Tensor,
        members: slice = slice(None),
        own: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Return maps by the whole bank and without each fold.

        Args:
            patches (torch.Tensor): Patches, shape ``(B, h, w, D)``.
            members (slice): Which of these 1 + F. Defaults to all.
            own (torch.Tensor | None): Images of the bank that each image is not compared with, ``(B, N)``, see
                :meth:`find_own`. Defaults to none.

        Returns:
            torch.Tensor: Maps, shape ``(B, 1 + F, h, w)``.
        """
        nearest = nearest_distances(patches, self.bank)  # (B, h, w, N)
        distances = self._without_each_fold(nearest, own)
        if self.rotated_bank.shape[1] > 0:
            rotated = self._without_each_fold(self._nearer_rotated(patches, nearest), own)
            distances = torch.where(self.is_rotated, rotated, distances)
        return standardize(distances, self.mean, self.std).movedim(-1, 1)[:, members]

    def _nearer_rotated(self, patches: torch.Tensor, nearest: torch.Tensor) -> torch.Tensor:
        """Return distances from the images of the bank, ``(..., N)``, of which the first F may be rotated."""
        num_folds = len(self.rotated_bank)
        folds = torch.minimum(nearest[..., :num_folds], nearest_distances(patches, self.rotated_bank))
        return torch.cat([folds, nearest[..., num_folds:]], dim=-1)

    def _without_each_fold(self, nearest: torch.Tensor, own: torch.Tensor | None) -> torch.Tensor:
        """Return the distances from the bank and without each fold: ``(B, h, w, N)`` -> ``(B, h, w, 1 + F)``."""
        if own is not None:
            nearest = nearest.masked_fill(own[:, None, None], torch.inf)
        return lowest_without_each(nearest, len(self.mean) - 1, 2 if self.has_pool else 1)


def lowest_without_each(distances: torch.Tensor, num_folds: int, count: int = 1) -> torch.Tensor:
    """Return the mean of the lowest distances, and that without each of the first F images.

    Args:
        distances (torch.Tensor): Distances from N images, shape ``(..., N)``.
        num_folds (int): Number F.
        count (int): Number of distances that the mean is taken of. Of fewer, all. Defaults to ``1``.

    Returns:
        torch.Tensor: Distances, shape ``(..., 1 + F)``.
    """
    lowest, index = distances.topk(min(count + 1, distances.shape[-1]), largest=False)
    means = [lowest[..., :count].mean(-1)]
    for fold in range(num_folds):
        others = lowest.masked_fill(index == fold, torch.inf).sort(dim=-1).values
        means.append(others[..., :count].mean(-1))
    return torch.stack(means, dim=-1)


def out_of_fold_distances(nearest: Sequence[torch.Tensor], subset: Sequence[int], count: int = 1) -> torch.Tensor:
    """Return the distances of each image of a subset from the others. A single one is compared with itself.

    Args:
        nearest (Sequence[torch.Tensor]): Distances of the views of each image from every image, ``(V, h, w, N)``.
        subset (Sequence[int]): Numbers of images.
        count (int): Number of nearest images that the mean is taken of. Defaults to ``1``.

    Returns:
        torch.Tensor: Distances, shape ``(M, h, w)``.
    """
    if len(subset) == 1:
        return nearest[subset[0]][1:, ..., subset[0]]  # the first view is the image itself
    distances = []
    for image in subset:
        others = nearest[image][..., [other for other in subset if other != image]]
        distances.append(others.topk(min(count, others.shape[-1]), largest=False).values.mean(-1))
    return torch.cat(distances)


def rotation_distances(folds: Folds) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Return how far the first image of each fold is from those of all F folds, as they are and rotated.

    Returns:
        list[tuple[torch.Tensor, torch.Tensor]]: Distances of the N patches of each image, twice ``(N, F)``.
    """
    upright = torch.stack([subsample_grid(fold.views.bank[:1]).flatten(0, 2) for fold in folds])
    rotated = torch.stack([fold.rotated.flatten(0, 2) for fold in folds if fold.rotated is not None])
    return [(nearest_distances(own, upright), nearest_distances(own, rotated)) for own in upright]


def has_arbitrary_orientation(distances: Sequence[tuple[torch.Tensor, torch.Tensor]], subset: Sequence[int]) -> bool:
    """Return whether images are nearer to one another if these are rotated. A single image cannot show it.

    Args:
        distances (Sequence[tuple[torch.Tensor, torch.Tensor]]): Distances from upright and rotated images, as
            :func:`rotation_distances` returns them.
        subset (Sequence[int]): Numbers of the images that are compared.
    """
    if len(subset) < 2:
        return False
    ratios = []
    for image in subset:
        others = [other for other in subset if other != image]
        upright, rotated = (own[:, others].amin(-1) for own in distances[image])
        farthest, index = upright.topk(max(1, round(TOP_DISTANCE_FRACTION * len(upright))))
        nearer = torch.minimum(farthest, rotated[index])
        ratios.append(nearer.mean() / farthest.mean().clamp_min(MIN_STD))
    return bool(torch.stack(ratios).mean() < ROTATION_RATIO)
