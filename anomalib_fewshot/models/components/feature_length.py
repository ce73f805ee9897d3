# Copyright (C) 2026 anomalib-fewshot contributors
# SPDX-License-Identifier: Apache-2.0

"""How much the length of a feature counts beside its direction."""

from collections.abc import Sequence

import torch

MIN_LENGTH = 1e-6


def divide_by_length(maps: Sequence[torch.Tensor], power: float) -> list[torch.Tensor]:
    """Divide the feature at each position of feature maps by its length to a power.

    Args:
        maps (Sequence[torch.Tensor]): Feature maps, each of shape ``(B, C, h, w)``.
        power (float): 0: features as they are. 1: their direction alone counts. 0.5: half of the length, on a
            logarithmic scale, counts too.

    Returns:
        list[torch.Tensor]: Feature maps of the same shapes.
    """
    return [m / torch.linalg.vector_norm(m, dim=1, keepdim=True).clamp_min(MIN_LENGTH) ** power for m in maps]
