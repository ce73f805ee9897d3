# Copyright (C) 2026 anomalib-fewshot contributors
# SPDX-License-Identifier: Apache-2.0

"""A memory bank beside the Gaussians: how far the nearest patch of the support is."""

from collections.abc import Sequence

import torch
from anomalib.models.components.base import DynamicBufferMixin
from torch.nn import functional as F  # noqa: N812

from .density import MIN_STD, on_one_grid, standardize

WEIGHT = 1.0  # in the anomaly map
STRIDE = 2  # of the positions that are kept: means over 3 x 3 overlap
RINGS = 4  # of cells by their distance from the border: the zeros that a backbone pads with are seen from near it


class Neighbors(DynamicBufferMixin):
    """Distance of each patch from the nearest one of the support, and of the support without each fold.

    As in PatchCore, a patch is a mean over 3 x 3 positions of the backbone's maps as they are. A distance is
    standardized by those of held-out images at its distance from the border, where those of textures are higher.

    Args:
        dim (int): Number of channels D of a patch.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.register_buffer("bank", torch.zeros(1, 1, dim))  # (F, R, D): R patches of each of F folds
        self.register_buffer("mean", torch.zeros(1, 1, 1))  # (1 + F, h, w), of held-out images: all, and without a fold
        self.register_buffer("std", torch.ones(1, 1, 1))
        self.bank: torch.Tensor
        self.mean: torch.Tensor
        self.std: torch.Tensor

    @torch.no_grad()
    def fit(self, folds: Sequence[torch.Tensor]) -> None:
        """Keep patches of each fold's first image, and fit the scales to the folds as the others see them.

        Args:
            folds (Sequence[torch.Tensor]): Patches of V views of the M images of each of F folds, each image's first
                being itself, shape ``(M, V, h, w, D)``.
        """
        self.bank = torch.stack([patches[0, 0, ::STRIDE, ::STRIDE].flatten(0, 1) for patches in folds])
        nearest = [self.nearest(patches) for patches in folds]
        numbers = range(len(folds))
        without = [_held_out(nearest, [n for n in numbers if n != fold]) for fold in numbers] if len(folds) > 1 else []
        scales = [scale_by_ring(distances) for distances in (_held_out(nearest, list(numbers)), *without)]
        self.mean, self.std = (torch.stack(parts) for parts in zip(*scales, strict=True))

    def nearest(self, patches: torch.Tensor) -> torch.Tensor:
        """Return the distances from the nearest patch of each fold: ``(..., D)`` -> ``(..., F)``."""
        rows = patches.flatten(0, -2)
        lengths = rows.square().sum(-1)
        squares = [lengths + (own.square().sum(-1) - 2 * rows @ own.T).amin(-1) for own in self.bank]
        return torch.stack(squares, dim=-1).clamp_min(0).sqrt().unflatten(0, patches.shape[:-1])

    def forward(self, patches: torch.Tensor) -> torch.Tensor:
        """Return weighted maps, of the support and without each fold: ``(B, h, w, D)`` -> ``(B, 1 + F, h, w)``."""
        distances = self.nearest(patches)  # (B, h, w, F)
        if len(self.bank) > 1:
            (first, second), (index, _) = (part.split(1, dim=-1) for part in distances.topk(2, largest=False))
            is_first = index == torch.arange(len(self.bank), device=index.device)
            distances = torch.cat([first, torch.where(is_first, second, first)], dim=-1)
        return WEIGHT * standardize(distances.movedim(-1, 1), self.mean, self.std)


def raw_patches(maps: Sequence[torch.Tensor]) -> torch.Tensor:
    """Return means over 3 x 3 positions of maps, ``(B, C, h, w)``, on the grid of the first: ``(B, h, w, D)``."""
    means = [F.avg_pool2d(part, 3, stride=1, padding=1, count_include_pad=False) for part in maps]
    return torch.cat(on_one_grid(means), dim=1).movedim(1, -1)


def scale_by_ring(distances: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return mean and standard deviation of all distances as near the border: ``(N, h, w)`` -> twice ``(h, w)``."""
    rows, columns = (torch.arange(n, device=distances.device) for n in distances.shape[1:])
    rows, columns = (torch.minimum(i, len(i) - 1 - i) for i in (rows, columns))
    ring = torch.minimum(rows[:, None], columns).clamp_max(RINGS - 1)
    mean, std = torch.zeros_like(distances[0]), torch.ones_like(distances[0])
    for number in ring.unique():
        cells = ring == number
        own = distances[:, cells].double()
        mean[cells], std[cells] = own.mean().float(), own.std(correction=0).clamp_min(MIN_STD).float()
    return mean, std


def _held_out(nearest: Sequence[torch.Tensor], kept: Sequence[int]) -> torch.Tensor:
    """Return how far folds are from the others that are kept; of a single one, how far its views are from itself.

    Args:
        nearest (Sequence[torch.Tensor]): Distances of each fold from every fold, shape ``(M, V, h, w, F)``.
        kept (Sequence[int]): Folds.

    Returns:
        torch.Tensor: Distances, shape ``(N, h, w)``.
    """
    if len(kept) == 1:
        (own,) = kept
        return nearest[own][:, 1:, ..., own].flatten(0, 1)
    others = {fold: [other for other in kept if other != fold] for fold in kept}
    return torch.cat([nearest[fold][..., others[fold]].amin(-1).flatten(0, 1) for fold in kept])
