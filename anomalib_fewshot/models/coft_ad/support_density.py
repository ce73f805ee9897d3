# Copyright (C) 2026 anomalib-fewshot contributors
# SPDX-License-Identifier: Apache-2.0

"""All Gaussians of a support, and the score of a map."""

from collections.abc import Sequence

import torch
from torch import nn

from anomalib_fewshot.models.components import Moments

from .density import FEATURE_GROUPS, FeatureGaussian
from .gaussian import Gaussian
from .held_out import HeldOut

TOP_FRACTION = 0.005  # of the patches, whose mean is the image's score


class SupportDensity(nn.Module):
    """What a support looks like: a Gaussian of its image embeddings, and one of each group of patches.

    Args:
        image_dim (int): Length E of an image embedding.
        dims (Sequence[int]): Number of channels D of each group.
    """

    def __init__(self, image_dim: int, dims: Sequence[int]) -> None:
        super().__init__()
        self.image = Gaussian(image_dim)
        self.groups = nn.ModuleList(FeatureGaussian(*pair) for pair in zip(FEATURE_GROUPS, dims, strict=True))

    def fit(self, moments: Sequence[Moments], held_out: HeldOut) -> None:
        """Fit the Gaussians to moments, and their scales to held-out images, both of :func:`hold_out`."""
        self.image.fit(moments[0])
        for density, own, normal in zip(self.groups, moments[1:], held_out.normal, strict=True):
            density.fit(own)
            density.fit_scale(density.whitened_distance(normal))


def mean_of_highest(maps: torch.Tensor) -> torch.Tensor:
    """Return the mean of the highest 0.5 % of each map: ``(..., h, w)`` -> ``(...)``."""
    values = maps.flatten(-2)
    return values.topk(max(1, round(TOP_FRACTION * values.shape[-1])), dim=-1).values.mean(-1)
