# Copyright (C) 2026 anomalib-fewshot contributors
# SPDX-License-Identifier: Apache-2.0

"""Scaling of features with a power of their norm."""

from collections.abc import Sequence

import torch

MIN_NORM = 1e-6


def scale_by_norm(maps: Sequence[torch.Tensor], power: float) -> list[torch.Tensor]:
    """Divide the feature at each position by a power of its L2 norm.

    Args:
        maps (Sequence[torch.Tensor]): Feature maps, each of shape ``(B, C, h, w)``.
        power (float): Exponent p, so that a norm of n becomes n^(1 - p). 0 leaves the features unchanged. 1 scales them
            to unit norm.

    Returns:
        list[torch.Tensor]: Scaled feature maps of the same shapes.
    """
    scaled = []
    for feature_map in maps:
        norm = torch.linalg.vector_norm(feature_map, dim=1, keepdim=True).clamp_min(MIN_NORM)
        scaled.append(feature_map / norm**power)
    return scaled
