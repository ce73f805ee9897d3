# Copyright (C) 2026 anomalib-fewshot contributors
# SPDX-License-Identifier: Apache-2.0

"""The memory bank: the distance of each patch from the nearest patch of the support set."""

from collections.abc import Sequence

import torch
from anomalib.models.components.base import DynamicBufferMixin

from anomalib_fewshot.models.components import coreset, nearest_distances

from .density import MIN_STD, standardize
from .features import subsample_grid
from .folds import Folds, leave_one_out

CORESET_SIZE = 200  # patches of each image
ROTATED_CORESET_SIZE = 400  # patches of each image at all angles
TOP_DISTANCE_FRACTION = 0.1  # part of an image's patches that decides whether its orientation is arbitrary
ROTATION_RATIO = 0.85  # highest ratio of distances at which it is. On five sets of upright parts: 0.87 to 0.96
NUM_RINGS = 4  # rings of cells along the border, where the padding of a backbone raises distances


class MemoryBank(DynamicBufferMixin):
    """Standardized distances from the nearest patch, in the whole support set and without each fold.

    As in PatchCore, a patch is a mean over 3 x 3 positions. A distance is standardized by the out-of-fold distances at
    the same distance from the border.

    A part of arbitrary orientation is nearer to other images of it if those are rotated. If the support set shows this,
    the bank also holds patches of rotated images. The decision without a fold is made from the other folds only.

    Args:
        dim (int): Number of channels D of a patch.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.register_buffer("bank", torch.zeros(1, 1, dim))  # (F, R, D): R patches of each of F folds
        self.register_buffer("rotated_bank", torch.zeros(1, 0, dim))  # (F, T, D)
        self.register_buffer("is_rotated", torch.zeros(1, dtype=torch.bool))  # (1 + F): all folds, and without each
        self.register_buffer("mean", torch.zeros(1, 1, 1))  # (1 + F, h, w), of out-of-fold distances
        self.register_buffer("std", torch.ones(1, 1, 1))
        self.bank: torch.Tensor
        self.rotated_bank: torch.Tensor
        self.is_rotated: torch.Tensor
        self.mean: torch.Tensor
        self.std: torch.Tensor

    @torch.no_grad()
    def fit(self, folds: Folds, always_rotated: bool = False) -> None:
        """Select patches of the first image of each fold, and fit the scales to out-of-fold distances.

        Args:
            folds (Folds): Features of F folds.
            always_rotated (bool): Keep patches of rotated images, if the folds have them, without a test.
        """
        subsets = [list(range(len(folds))), *leave_one_out(range(len(folds)))]
        self.bank = torch.stack([coreset(fold.views.bank[0].flatten(0, 1), CORESET_SIZE) for fold in folds])
        self.rotated_bank = self.bank[:, :0]
        is_rotated = [False] * len(subsets)
        if folds[0].rotated is not None:
            distances = rotation_distances(folds)
            is_rotated = [always_rotated or has_arbitrary_orientation(distances, subset) for subset in subsets]
        upright = [nearest_distances(fold.views.bank, self.bank) for fold in folds]
        rotated = upright
        if any(is_rotated):
            rows = [fold.rotated.flatten(0, 2) for fold in folds if fold.rotated is not None]
            self.rotated_bank = torch.stack([coreset(own, ROTATED_CORESET_SIZE) for own in rows])
            rotated = []
            for fold, nearest in zip(folds, upright, strict=True):
                rotated.append(torch.minimum(nearest, nearest_distances(fold.views.bank, self.rotated_bank)))
        self.is_rotated = torch.tensor(is_rotated, device=self.bank.device)
        means, stds = [], []
        for subset, uses_rotated in zip(subsets, is_rotated, strict=True):
            mean, std = scale_by_ring(out_of_fold_distances(rotated if uses_rotated else upright, subset))
            means.append(mean)
            stds.append(std)
        self.mean, self.std = torch.stack(means), torch.stack(stds)

    def forward(self, patches: torch.Tensor, members: slice = slice(None)) -> torch.Tensor:
        """Return maps by the whole bank and without each fold.

        Args:
            patches (torch.Tensor): Patches, shape ``(B, h, w, D)``.
            members (slice): Which of these 1 + F. Defaults to all.

        Returns:
            torch.Tensor: Maps, shape ``(B, 1 + F, h, w)``.
        """
        nearest = nearest_distances(patches, self.bank)  # (B, h, w, F)
        distances = lowest_without_each(nearest)
        if self.rotated_bank.shape[1] > 0:
            nearest = torch.minimum(nearest, nearest_distances(patches, self.rotated_bank))
            distances = torch.where(self.is_rotated, lowest_without_each(nearest), distances)
        return standardize(distances.movedim(-1, 1), self.mean, self.std)[:, members]


def lowest_without_each(distances: torch.Tensor) -> torch.Tensor:
    """Return the lowest distance, and the lowest without each of F folds: ``(..., F)`` -> ``(..., 1 + F)``."""
    if distances.shape[-1] == 1:
        return distances
    lowest, index = distances.topk(2, largest=False)
    first, second = lowest.split(1, dim=-1)
    is_first = index[..., :1] == torch.arange(distances.shape[-1], device=index.device)
    return torch.cat([first, torch.where(is_first, second, first)], dim=-1)


def out_of_fold_distances(nearest: Sequence[torch.Tensor], subset: Sequence[int]) -> torch.Tensor:
    """Return the distances of each fold of a subset from the others. A single fold is compared with its own image.

    Args:
        nearest (Sequence[torch.Tensor]): Distances of the views of each fold from every fold, shape ``(V, h, w, F)``.
        subset (Sequence[int]): Numbers of folds.

    Returns:
        torch.Tensor: Distances, shape ``(N, h, w)``.
    """
    if len(subset) == 1:
        return nearest[subset[0]][1:, ..., subset[0]]  # the first view is the image itself
    distances = []
    for fold in subset:
        others = [other for other in subset if other != fold]
        distances.append(nearest[fold][..., others].amin(-1))
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
    if len(subset) == 1:
        return False
    ratios = []
    for image in subset:
        others = [other for other in subset if other != image]
        upright, rotated = (own[:, others].amin(-1) for own in distances[image])
        farthest, index = upright.topk(max(1, round(TOP_DISTANCE_FRACTION * len(upright))))
        nearer = torch.minimum(farthest, rotated[index])
        ratios.append(nearer.mean() / farthest.mean().clamp_min(MIN_STD))
    return bool(torch.stack(ratios).mean() < ROTATION_RATIO)


def scale_by_ring(distances: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return mean and standard deviation of all distances as near the border: ``(N, h, w)`` -> twice ``(h, w)``."""
    rows, columns = (torch.arange(size, device=distances.device) for size in distances.shape[1:])
    rows, columns = (torch.minimum(cells, cells.flip(0)) for cells in (rows, columns))  # distances from the border
    ring = torch.minimum(rows[:, None], columns).clamp_max(NUM_RINGS - 1)
    mean, std = torch.zeros_like(distances[0]), torch.ones_like(distances[0])
    for number in ring.unique():
        cells = ring == number
        own = distances[:, cells].double()
        mean[cells], std[cells] = own.mean().float(), own.std(correction=0).clamp_min(MIN_STD).float()
    return mean, std
