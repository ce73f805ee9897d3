# Copyright (C) 2026 anomalib-fewshot contributors
# SPDX-License-Identifier: Apache-2.0

"""The Gaussian that all patches share, and the metric by which it is fine-tuned."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812

from anomalib_fewshot.models.components import Moments, divide_by_length

from .gaussian import symmetric_whitening

MIN_STD = 1e-6


class FeatureGroup(NamedTuple):
    """Features that share a Gaussian.

    Args:
        deep (bool): Whether they are of the backbone's last map, on its own grid, or of the layers of the anomaly map.
        norm_power (float): A layer's feature is divided by its length to this power, see :func:`divide_by_length`.
        regularization (float): Variance added in every direction of the standardized features.
        weight (float): Weight in the anomaly map.
    """

    deep: bool
    norm_power: float
    regularization: float
    weight: float

    def patches(self, maps: Sequence[torch.Tensor]) -> torch.Tensor:
        """Return the features of each patch.

        Args:
            maps (Sequence[torch.Tensor]): Feature maps of the group's layers on one grid, each ``(B, C, h, w)``.

        Returns:
            torch.Tensor: Features, shape ``(B, h, w, D)``.
        """
        scaled = divide_by_length(maps, self.norm_power)
        return torch.cat(scaled, dim=1).movedim(1, -1)  # (B, D, h, w) -> (B, h, w, D)


# This package's: what was best on five sets of industrial images, see docs/research/coft_ad.md.
FEATURE_GROUPS = (
    FeatureGroup(deep=False, norm_power=1.0, regularization=0.3, weight=1.0),
    FeatureGroup(deep=False, norm_power=0.5, regularization=0.1, weight=1.0),
    FeatureGroup(deep=True, norm_power=1.0, regularization=0.1, weight=0.5),
)


class FeatureGaussian(nn.Module):
    """Gaussian of the features of all patches, with a metric that can be fine-tuned.

    The distance of a feature x is the length of (x - m) W A, with mean m and whitening W. With A the identity it is the
    Mahalanobis distance; fine-tuning changes A before the fit. For the sum over groups, distances are standardized by
    those of images that were held out of the Gaussian.

    Args:
        group (FeatureGroup): Features of the Gaussian.
        dim (int): Their number of channels D.
    """

    def __init__(self, group: FeatureGroup, dim: int) -> None:
        super().__init__()
        self.group = group
        self.register_buffer("mean", torch.zeros(dim))
        self.register_buffer("metric", torch.zeros(dim, dim))  # W A
        self.register_buffer("metric_delta", torch.zeros(dim, dim))  # A - I
        self.register_buffer("distance_mean", torch.zeros(()))  # of held-out images
        self.register_buffer("distance_std", torch.ones(()))
        self.mean: torch.Tensor
        self.metric: torch.Tensor
        self.metric_delta: torch.Tensor
        self.distance_mean: torch.Tensor
        self.distance_std: torch.Tensor

    @torch.no_grad()
    def fit(self, moments: Moments) -> None:
        """Fit mean and metric to moments of features of length D."""
        mean, whitening = symmetric_whitening(moments, self.group.regularization)
        self.mean.copy_(mean)
        self.metric.copy_(apply_metric(whitening.to(self.metric), self.metric_delta))

    @torch.no_grad()
    def fit_scale(self, distances: torch.Tensor) -> None:
        """Fit the scale to the distances of held-out normal patches, of any shape."""
        distances = distances.double()
        self.distance_mean.copy_(distances.mean())
        self.distance_std.copy_(distances.std(correction=0).clamp_min(MIN_STD))

    def whitened_distance(self, whitened: torch.Tensor) -> torch.Tensor:
        """Return the distance, shape ``(...)``, of whitened features of shape ``(..., D)``."""
        return torch.linalg.vector_norm(apply_metric(whitened, self.metric_delta), dim=-1)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Return the distance, shape ``(...)``, of features of shape ``(..., D)``."""
        return torch.linalg.vector_norm((features - self.mean) @ self.metric, dim=-1)


def standardize(distances: torch.Tensor, mean: torch.Tensor, std: torch.Tensor) -> torch.Tensor:
    """Return distances relative to held-out ones, of the same shape; above the mean their logarithm.

    So no group of features drowns the others where a patch is far from normal by it alone.
    """
    z = (distances - mean) / std
    return torch.where(z > 0, z.clamp_min(0).log1p(), z)


def apply_metric(whitened: torch.Tensor, metric_delta: torch.Tensor) -> torch.Tensor:
    """Return whitened features times A: ``(..., D)`` and A - I, ``(D, D)`` -> ``(..., D)``."""
    return whitened + whitened @ metric_delta


def on_one_grid(maps: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """Return maps of shape ``(B, C, h, w)``, whose grids differ, on the grid of the first."""
    grid = maps[0].shape[-2:]
    return [m if m.shape[-2:] == grid else F.interpolate(m, grid, mode="bilinear", align_corners=False) for m in maps]
