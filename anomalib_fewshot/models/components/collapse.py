# Copyright (C) 2026 anomalib-fewshot contributors
# SPDX-License-Identifier: Apache-2.0

"""Whether encodings that are trained by similarity alone have collapsed to one."""

import torch
from torch.nn import functional as F  # noqa: N812


def std_of_l2_normalized(encodings: torch.Tensor) -> torch.Tensor:
    """Return how far the directions of encodings spread: 1 in all directions, 0 if they have collapsed to one.

    It is the standard deviation of the normalized encodings, averaged over the channels, times the root of their
    number. The name is lightly's.

    Args:
        encodings (torch.Tensor): Encodings, shape ``(..., C)``.

    Returns:
        torch.Tensor: Scalar in ``[0, 1]``.

    Example:
        >>> std_of_l2_normalized(torch.tensor([[1.0], [-1.0]]).expand(2, 4)), std_of_l2_normalized(torch.ones(3, 4))
        (tensor(1.), tensor(0.))
    """
    rows = F.normalize(encodings.float(), dim=-1).flatten(0, -2)  # (..., C) -> (M, C)
    return rows.std(0, correction=0).mean() * rows.shape[1] ** 0.5
