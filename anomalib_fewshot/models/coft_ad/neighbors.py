# Copyright (C) 2026 anomalib-fewshot contributors
# SPDX-License-Identifier: Apache-2.0

"""A memory bank beside the Gaussians: how far the nearest patch of the support is."""

from collections.abc import Sequence

import torch
from anomalib.models.components.base import DynamicBufferMixin
from torch.nn import functional as F  # noqa: N812

from .density import MIN_STD, on_one_grid, standardize

WEIGHT = 1.0  # in the anomaly map
ROWS = 200  # of each image, which stand for all its patches, whatever their number
TURNED_ROWS = 400  # of the same image at all angles
STRIDE = 2  # of the positions that are looked at to see whether a part comes turned
FARTHEST = 0.1  # of the patches of an image are those that tell whether a part comes turned
TURNED = 0.85  # times their distance or less, and it does. On five sets of parts that hardly do, 0.87 to 0.96
RINGS = 4  # of cells by their distance from the border: the zeros that a backbone pads with are seen from near it


class Neighbors(DynamicBufferMixin):
    """Distance of each patch from the nearest one of the support, and of the support without each fold.

    As in PatchCore, a patch is a mean over 3 x 3 positions of the backbone's maps as they are. A distance is
    standardized by those of held-out images at its distance from the border, where those of textures are higher.

    A part that comes turned is nearer to other images of it if these are turned. Where held-out images show that, the
    bank holds patches of turned images too; each fold's own verdict about it is from the others alone.

    Args:
        dim (int): Number of channels D of a patch.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.register_buffer("bank", torch.zeros(1, 1, dim))  # (F, R, D): R patches of each of F folds
        self.register_buffer("turned_bank", torch.zeros(1, 0, dim))  # (F, T, D), of turned images
        self.register_buffer("is_turned", torch.zeros(1, dtype=torch.bool))  # (1 + F): of all, and without a fold
        self.register_buffer("mean", torch.zeros(1, 1, 1))  # (1 + F, h, w), of held-out images
        self.register_buffer("std", torch.ones(1, 1, 1))
        self.bank: torch.Tensor
        self.turned_bank: torch.Tensor
        self.is_turned: torch.Tensor
        self.mean: torch.Tensor
        self.std: torch.Tensor

    @torch.no_grad()
    def fit(self, folds: Sequence[torch.Tensor], turned: Sequence[torch.Tensor] = (), *, always: bool = False) -> None:
        """Keep patches of each fold's first image, and fit the scales to the folds as the others see them.

        Args:
            folds (Sequence[torch.Tensor]): Patches of V views of the M images of each of F folds, each image's first
                being itself, shape ``(M, V, h, w, D)``.
            turned (Sequence[torch.Tensor]): Patches of each fold's first image at A angles, :func:`thinned`, shape
                ``(A, h', w', D)``, or nothing, of all of them.
            always (bool): Keep them whatever held-out images say. Defaults to ``False``.
        """
        self.bank = torch.stack([coreset(patches[0, 0].flatten(0, 1), ROWS) for patches in folds])
        numbers = range(len(folds))
        keeps = [[*numbers], *([n for n in numbers if n != fold] for fold in numbers if len(folds) > 1)]
        upright = [self.nearest(patches, self.bank) for patches in folds]
        nearest, is_turned, self.turned_bank = [upright] * len(keeps), [False] * len(keeps), self.bank[:, :0]
        if turned:
            rows = torch.stack([patches.flatten(0, 2) for patches in turned])
            images = torch.stack([thinned(patches[0, :1]).flatten(0, 2) for patches in folds])
            pairs = [(self.nearest(own, images), self.nearest(own, rows)) for own in images]
            is_turned = [always or comes_turned(pairs, kept) for kept in keeps]
        if any(is_turned):
            self.turned_bank = torch.stack([coreset(own, TURNED_ROWS) for own in rows])
            both = [torch.minimum(d, self.nearest(p, self.turned_bank)) for d, p in zip(upright, folds, strict=True)]
            nearest = [both if own else upright for own in is_turned]
        self.is_turned = torch.tensor(is_turned, device=self.bank.device)
        scales = [scale_by_ring(_held_out(*pair)) for pair in zip(nearest, keeps, strict=True)]
        self.mean, self.std = (torch.stack(parts) for parts in zip(*scales, strict=True))

    @staticmethod
    def nearest(patches: torch.Tensor, bank: torch.Tensor) -> torch.Tensor:
        """Return the distances from the nearest row of each of F banks: ``(..., D)``, ``(F, R, D)`` -> ``(..., F)``."""
        rows = patches.flatten(0, -2)
        lengths = rows.square().sum(-1)
        squares = [lengths + (own.square().sum(-1) - 2 * rows @ own.T).amin(-1) for own in bank]
        return torch.stack(squares, dim=-1).clamp_min(0).sqrt().unflatten(0, patches.shape[:-1])

    def forward(self, patches: torch.Tensor) -> torch.Tensor:
        """Return weighted maps, of the support and without each fold: ``(B, h, w, D)`` -> ``(B, 1 + F, h, w)``."""
        nearest = self.nearest(patches, self.bank)  # (B, h, w, F)
        distances = _without_each(nearest)
        if self.turned_bank.shape[1] > 0:
            turned = torch.minimum(nearest, self.nearest(patches, self.turned_bank))
            distances = torch.where(self.is_turned, _without_each(turned), distances)
        return WEIGHT * standardize(distances.movedim(-1, 1), self.mean, self.std)


def thinned(patches: torch.Tensor) -> torch.Tensor:
    """Return patches of every other position: ``(B, h, w, D)`` -> ``(B, h', w', D)``. Means over 3 x 3 overlap."""
    return patches[:, ::STRIDE, ::STRIDE]


def raw_patches(maps: Sequence[torch.Tensor]) -> torch.Tensor:
    """Return means over 3 x 3 positions of maps, ``(B, C, h, w)``, on the grid of the first: ``(B, h, w, D)``."""
    means = [F.avg_pool2d(part, 3, stride=1, padding=1, count_include_pad=False) for part in maps]
    return torch.cat(on_one_grid(means), dim=1).movedim(1, -1)


def comes_turned(pairs: Sequence[tuple[torch.Tensor, torch.Tensor]], kept: Sequence[int]) -> bool:
    """Return whether images are nearer to one another if these are turned. A single one does not tell.

    Args:
        pairs (Sequence[tuple[torch.Tensor, torch.Tensor]]): Distances of the N patches of each of F images from every
            one of them, as it is and turned, shape ``(N, F)``.
        kept (Sequence[int]): Which images there are.
    """
    if len(kept) == 1:
        return False
    ratios = []
    for image in kept:
        others = [other for other in kept if other != image]
        upright, turned = (distances[:, others].amin(-1) for distances in pairs[image])
        far, index = upright.topk(max(1, round(FARTHEST * len(upright))))
        ratios.append(torch.minimum(far, turned[index]).mean() / far.mean().clamp_min(MIN_STD))
    return bool(torch.stack(ratios).mean() < TURNED)


def coreset(rows: torch.Tensor, count: int) -> torch.Tensor:
    """Return rows that are far from one another, of ``(N, D)`` at most ``(count, D)``.

    The k-center greedy choice of anomalib's ``KCenterGreedy``, from the first row on instead of from a random one, and
    without a progress bar for each image.
    """
    chosen, distances = [0], torch.full_like(rows[:, 0], torch.inf)
    while len(chosen) < min(count, len(rows)):
        distances = torch.minimum(distances, (rows - rows[chosen[-1]]).square().sum(-1))
        chosen.append(int(distances.argmax()))
    return rows[chosen]


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


def _without_each(distances: torch.Tensor) -> torch.Tensor:
    """Return the lowest distance, and the lowest without each of F folds: ``(..., F)`` -> ``(..., 1 + F)``."""
    if distances.shape[-1] == 1:
        return distances
    (first, second), (index, _) = (part.split(1, dim=-1) for part in distances.topk(2, largest=False))
    is_first = index == torch.arange(distances.shape[-1], device=index.device)
    return torch.cat([first, torch.where(is_first, second, first)], dim=-1)


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
