# Copyright (C) 2026 anomalib-fewshot contributors
# SPDX-License-Identifier: Apache-2.0

"""Gaussians of patches: one fitted to the whole support set, and one fitted without each fold."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from anomalib.models.components.base import DynamicBufferMixin

from anomalib_fewshot.models.components import lower_triangle

MIN_STD = 1e-6
NUM_BLOCKS = 4  # of columns of a triangular metric


def apply_metric(whitened: torch.Tensor, metric_delta: torch.Tensor) -> torch.Tensor:
    """Return whitened features times A: ``(..., D)`` and A - I, ``(D, D)`` -> ``(..., D)``."""
    return whitened + whitened @ metric_delta


def standardize(distances: torch.Tensor, mean: torch.Tensor, std: torch.Tensor) -> torch.Tensor:
    """Return distances relative to out-of-fold ones. Above the mean their logarithm is taken.

    Without the logarithm, a patch that is far from normal in one group would hide the other groups.
    """
    z = (distances - mean) / std
    return torch.where(z > 0, z.clamp_min(0).log1p(), z)


@dataclass(frozen=True)
class FittedGaussian:
    """One Gaussian of a :class:`DensityEnsemble`.

    Args:
        mean (torch.Tensor): Mean m, shape ``(D,)``.
        metric (torch.Tensor): Matrix M, shape ``(D, D)``. The distance of x is the norm of (x - m) M.
        out_of_fold (torch.Tensor): Distances of out-of-fold normal patches, of any shape, which set the scale.
    """

    mean: torch.Tensor
    metric: torch.Tensor
    out_of_fold: torch.Tensor


class DensityEnsemble(DynamicBufferMixin):
    """Distances of features from N Gaussians: that of the whole support set, and those without each fold.

    Each metric is stored as a lower triangle: with M^T = Q R, the norm of (x - m) M equals that of (x - m) R^T.

    Args:
        dim (int): Number of channels D.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(1, dim))
        self.register_buffer("metric", torch.zeros(1, dim, dim))
        self.register_buffer("scale_mean", torch.zeros(1))  # of out-of-fold distances
        self.register_buffer("scale_std", torch.ones(1))
        self.mean: torch.Tensor
        self.metric: torch.Tensor
        self.scale_mean: torch.Tensor
        self.scale_std: torch.Tensor

    def fit(self, gaussians: Sequence[FittedGaussian]) -> None:
        """Store fitted Gaussians."""
        scales = [gaussian.out_of_fold.double() for gaussian in gaussians]
        self.mean = torch.stack([gaussian.mean for gaussian in gaussians]).to(self.mean)
        self.metric = torch.stack([lower_triangle(gaussian.metric) for gaussian in gaussians]).to(self.mean)
        self.scale_mean = torch.stack([own.mean() for own in scales]).to(self.mean)
        self.scale_std = torch.stack([own.std(correction=0) for own in scales]).clamp_min(MIN_STD).to(self.mean)

    def forward(self, patches: torch.Tensor, members: slice = slice(None)) -> torch.Tensor:
        """Return standardized maps by some of the Gaussians: patches, ``(B, h, w, D)`` -> ``(B, N, h, w)``."""
        scale_mean, scale_std = self.scale_mean[members], self.scale_std[members]
        maps = self.distances(patches, members).movedim(-1, 1)
        return standardize(maps, scale_mean[:, None, None], scale_std[:, None, None])

    def distances(self, features: torch.Tensor, members: slice = slice(None)) -> torch.Tensor:
        """Return the distances from some of the Gaussians: features, ``(..., D)`` -> ``(..., N)``."""
        mean, metric = self.mean[members], self.metric[members]
        count, dim = mean.shape
        center = mean[0]  # similar to all means: the rows below are small, and their products exact
        shift = ((center - mean)[:, None] @ metric)[:, 0]  # (N, D)
        rows = (features - center).flatten(0, -2)  # (R, D)
        squares = []
        edges = [round(block * dim / NUM_BLOCKS) for block in range(NUM_BLOCKS + 1)]
        for start, stop in pairwise(edges):
            # Above the diagonal there are zeros: a block of columns from `start` on needs the features from there on.
            block = metric[:, start:, start:stop].movedim(0, 1).flatten(1)  # (D - start, N (stop - start))
            products = torch.addmm(shift[:, start:stop].flatten(), rows[:, start:], block)
            squares.append(products.unflatten(-1, (count, -1)).square().sum(-1))  # (R, N)
        return torch.stack(squares).sum(0).sqrt().unflatten(0, features.shape[:-1])
