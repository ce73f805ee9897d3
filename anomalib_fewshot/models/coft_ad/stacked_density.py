# Copyright (C) 2026 anomalib-fewshot contributors
# SPDX-License-Identifier: Apache-2.0

"""The maps of an image by several densities at once: that of the support, and those of the support without a fold."""

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import nn

from anomalib_fewshot.models.components import in_double_precision

from .density import FeatureGaussian, on_one_grid, standardize
from .support_density import SupportDensity

BLOCKS = 4  # of a triangle's columns: the zeros above a block are left out


class StackedGaussians(nn.Module):
    """Distances of the same features from F Gaussians, standardized and weighted.

    With M^T = Q R, the length of (x - m) M is that of (x - m) R^T, in which a column from j on needs the features from
    j on. Blocks of columns, those of all Gaussians side by side, take a matrix product each: 5 / 8 of the operations.

    Args:
        gaussians (Sequence[FeatureGaussian]): Gaussians of one group of features of length D.
    """

    def __init__(self, gaussians: Sequence[FeatureGaussian]) -> None:
        super().__init__()
        self.count = len(gaussians)
        self.weight = gaussians[0].group.weight
        center = gaussians[0].mean  # to which all means are near: no difference of large numbers
        triangles = [_triangle(gaussian.metric) for gaussian in gaussians]
        shifts = [
            in_double_precision(center - gaussian.mean) @ triangle
            for gaussian, triangle in zip(gaussians, triangles, strict=True)
        ]
        edges = sorted({round(block * len(center) / BLOCKS) for block in range(BLOCKS + 1)})
        self.starts = edges[:-1]
        self._keep("center", center)
        for start, stop in pairwise(edges):
            self._keep(f"weight_{start}", torch.cat([part[start:, start:stop] for part in triangles], dim=1))
            self._keep(f"shift_{start}", torch.cat([part[start:stop] for part in shifts]))
        for name in ("distance_mean", "distance_std"):
            self._keep(name, torch.stack([getattr(gaussian, name) for gaussian in gaussians])[:, None, None])
        self.to(center.device)

    def _keep(self, name: str, value: torch.Tensor) -> None:
        self.register_buffer(name, value.float().contiguous(), persistent=False)  # it follows from the Gaussians

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Return the distances: ``(B, h, w, D)`` -> ``(B, F, h, w)``."""
        rows = (features - self.center).flatten(0, -2)  # (B h w, D)
        lengths = []
        for start in self.starts:
            shift, weight = getattr(self, f"shift_{start}"), getattr(self, f"weight_{start}")
            parts = torch.addmm(shift, rows[:, start:], weight)
            lengths.append(torch.linalg.vector_norm(parts.unflatten(-1, (self.count, -1)), dim=-1))
        distances = torch.linalg.vector_norm(torch.stack(lengths), dim=0)  # (B h w, F)
        distances = distances.unflatten(0, features.shape[:-1]).movedim(-1, 1)
        return self.weight * standardize(distances, self.distance_mean, self.distance_std)


class StackedDensity(nn.Module):
    """Maps of several densities of the same features.

    Args:
        densities (Sequence[SupportDensity]): The F densities.
    """

    def __init__(self, densities: Sequence[SupportDensity]) -> None:
        super().__init__()
        groups = zip(*(density.groups for density in densities), strict=True)
        self.groups = nn.ModuleList(StackedGaussians(gaussians) for gaussians in groups)

    def forward(self, patches: Sequence[torch.Tensor]) -> torch.Tensor:
        """Return the maps, shape ``(B, F, h, w)``, of patches of each group, shape ``(B, h, w, D)``."""
        maps = [stacked(part) for stacked, part in zip(self.groups, patches, strict=True)]
        return torch.stack(on_one_grid(maps)).sum(0)


def _triangle(metric: torch.Tensor) -> torch.Tensor:
    """Return the lower triangle, in double precision, that gives rows the lengths that a matrix gives: ``(D, D)``."""
    return torch.linalg.qr(in_double_precision(metric).mT, mode="r").R.mT
