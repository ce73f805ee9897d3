# Copyright (C) 2026 anomalib-fewshot contributors
# SPDX-License-Identifier: Apache-2.0

"""All Gaussians of a support, and the score of an image by them."""

from collections.abc import Sequence

import torch
from torch import nn

from anomalib_fewshot.models.components import Moments

from .density import FEATURE_GROUPS, FeatureGaussian, on_one_grid
from .gaussian import Gaussian
from .held_out import HeldOut

TOP_FRACTION = 0.01  # of the patches, whose mean is the image's score


class SupportDensity(nn.Module):
    """What a support looks like: a Gaussian of its image embeddings, and one of each group of patches.

    Args:
        image_dim (int): Length E of an image embedding.
        dims (Sequence[int]): Number of channels D of each group.
        image_score (str): What the image's score is: the distance of its ``"embedding"``, as published, or the mean of
            the highest 1 % of its ``"map"``.
    """

    def __init__(self, image_dim: int, dims: Sequence[int], image_score: str) -> None:
        super().__init__()
        self.image_score = image_score
        self.image = Gaussian(image_dim)
        self.groups = nn.ModuleList(FeatureGaussian(*pair) for pair in zip(FEATURE_GROUPS, dims, strict=True))

    def fit(self, moments: Sequence[Moments], held_out: HeldOut) -> None:
        """Fit the Gaussians to moments, and their scales to held-out images, both of :func:`hold_out`."""
        self.image.fit(moments[0])
        for density, own, normal in zip(self.groups, moments[1:], held_out.normal, strict=True):
            density.fit(own)
            density.fit_scale(density.whitened_distance(normal))

    def combine(self, distances: Sequence[torch.Tensor]) -> torch.Tensor:
        """Return the map of all groups.

        Args:
            distances (Sequence[torch.Tensor]): Distances of each group, shape ``(B, h, w)`` on a grid of its own.

        Returns:
            torch.Tensor: Weighted sum of the standardized distances on the grid of the first, shape ``(B, h, w)``.
        """
        pairs = zip(self.groups, distances, strict=True)
        parts = [density.group.weight * density.standardize(part)[:, None] for density, part in pairs]
        return add_on_one_grid(parts)[:, 0]

    def maps(self, patches: Sequence[torch.Tensor]) -> torch.Tensor:
        """Return the maps, shape ``(B, h, w)``, of patches of each group, shape ``(B, h, w, D)``."""
        return self.combine([density(part) for density, part in zip(self.groups, patches, strict=True)])

    def score(self, embeddings: torch.Tensor, maps: torch.Tensor) -> torch.Tensor:
        """Return the scores, shape ``(B,)``, of image embeddings, shape ``(B, E)``, and maps, shape ``(B, h, w)``."""
        if self.image_score == "embedding":
            return self.image(embeddings)
        return mean_of_highest(maps)

    def forward(self, embeddings: torch.Tensor, patches: Sequence[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the scores, shape ``(B,)``, and the maps, shape ``(B, h, w)``, of images by their features."""
        maps = self.maps(patches)
        return self.score(embeddings, maps), maps


def add_on_one_grid(maps: Sequence[torch.Tensor]) -> torch.Tensor:
    """Return the sum, shape ``(B, C, h, w)``, of maps ``(B, C, h, w)`` on the grid of the first."""
    return torch.stack(on_one_grid(maps)).sum(0)


def mean_of_highest(maps: torch.Tensor) -> torch.Tensor:
    """Return the mean of the highest 1 % of each map: ``(..., h, w)`` -> ``(...)``."""
    values = maps.flatten(-2)
    return values.topk(max(1, round(TOP_FRACTION * values.shape[-1])), dim=-1).values.mean(-1)
