# Copyright (C) 2026 anomalib-fewshot contributors
# SPDX-License-Identifier: Apache-2.0

"""The Gaussian that all positions share, and the matrix by which it is fine-tuned."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812

from anomalib_fewshot.models.components import Moments

from .gaussian import symmetric_whitening

LEAST_NORM = LEAST_DEVIATION = 1e-6


class FeatureGroup(NamedTuple):
    """Features that share a Gaussian.

    Args:
        deep (bool): Whether they are of the backbone's last map, on its own grid, or of the layers of the anomaly map.
        norm_power (float): A layer's feature is divided by its length to this power. 1: its direction alone counts.
            0.5: half of the length, on a logarithmic scale, counts too.
        floor (float): Variance added in every direction of the standardised features.
        weight (float): Weight in the anomaly map.
    """

    deep: bool
    norm_power: float
    floor: float
    weight: float


GROUPS = (
    FeatureGroup(deep=False, norm_power=1.0, floor=0.3, weight=1.0),
    FeatureGroup(deep=False, norm_power=0.5, floor=0.1, weight=1.0),
    FeatureGroup(deep=True, norm_power=1.0, floor=0.1, weight=0.5),
)


class GroupDensity(nn.Module):
    """Gaussian of the features of a group at all positions, with a metric that can be fine-tuned.

    The distance of a feature x is the length of (x - m) W A, where m and W are mean and whitening. With A the identity
    it is the Mahalanobis distance; fine-tuning moves A, before the fit. For the sum over groups it is standardised by
    the distances of images that were left out of the density.

    Args:
        group (FeatureGroup): What the features are.
        dim (int): Their number of channels D.
    """

    def __init__(self, group: FeatureGroup, dim: int) -> None:
        super().__init__()
        self.group = group
        self.adaptation = nn.Parameter(torch.zeros(dim, dim))  # A without the identity
        self.register_buffer("mean", torch.zeros(dim))
        self.register_buffer("metric", torch.zeros(dim, dim))  # W A
        self.register_buffer("expected", torch.tensor([0.0, 1.0]))  # mean and deviation of a normal distance
        self.mean: torch.Tensor
        self.metric: torch.Tensor
        self.expected: torch.Tensor

    def embed(self, maps: Sequence[torch.Tensor]) -> torch.Tensor:
        """Return the features at each position.

        Args:
            maps (Sequence[torch.Tensor]): Feature maps of the group's layers on one grid, each ``(B, C, h, w)``.

        Returns:
            torch.Tensor: Features, shape ``(B, h, w, D)``.
        """
        lengths = [torch.linalg.vector_norm(m, dim=1, keepdim=True).clamp_min(LEAST_NORM) for m in maps]
        scaled = [m / length**self.group.norm_power for m, length in zip(maps, lengths, strict=True)]
        return torch.cat(scaled, dim=1).movedim(1, -1)  # (B, D, h, w) -> (B, h, w, D)

    @torch.no_grad()
    def fit(self, moments: Moments, normal: Moments) -> None:
        """Fit the Gaussian, and what is expected of normal images.

        Args:
            moments (Moments): Moments of the embeddings.
            normal (Moments): Moments of the distances of positions that a Gaussian has not seen, of length 1.
        """
        mean, whitening = symmetric_whitening(moments, self.group.floor)
        self.mean.copy_(mean)
        self.metric.copy_(self.adapted(whitening.to(self.metric)))
        expected = normal.total / normal.count
        variance = normal.outer[0] / normal.count - expected.square()
        self.expected.copy_(torch.cat([expected, variance.clamp_min(LEAST_DEVIATION**2).sqrt()]))

    def adapted(self, whitened: torch.Tensor) -> torch.Tensor:
        """Return whitened embeddings after the fine-tuned matrix: ``(..., D)``."""
        return whitened + whitened @ self.adaptation

    def standardise(self, distances: torch.Tensor) -> torch.Tensor:
        """Return distances relative to those of normal images, of the same shape."""
        return (distances - self.expected[0]) / self.expected[1]

    def forward(self, embeddings: torch.Tensor) -> torch.Tensor:
        """Return the distance, shape ``(...)``, of embeddings of shape ``(..., D)``."""
        return torch.linalg.vector_norm((embeddings - self.mean) @ self.metric, dim=-1)


def on_one_grid(maps: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """Return maps of shape ``(B, C, h, w)``, whose grids differ, on the grid of the first."""
    grid = maps[0].shape[-2:]
    return [m if m.shape[-2:] == grid else F.interpolate(m, grid, mode="bilinear", align_corners=False) for m in maps]
