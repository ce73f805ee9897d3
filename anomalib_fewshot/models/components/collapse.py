# Copyright (C) 2026 anomalib-fewshot contributors
# SPDX-License-Identifier: Apache-2.0

"""Whether encodings that are learnt by likeness alone have collapsed to one."""

import torch
from torch.nn import functional as F  # noqa: N812


def spread(encodings: torch.Tensor) -> torch.Tensor:
    """Return how far the directions of encodings spread: 1 in all directions, 0 if they have collapsed to one.

    It is the standard deviation of the encodings, divided by their length, averaged over the channels, times the root
    of their number.

    Args:
        encodings (torch.Tensor): Encodings, shape ``(..., C)``.

    Returns:
        torch.Tensor: Scalar in ``[0, 1]``.

    Example:
        >>> spread(torch.tensor([[1.0], [-1.0]]).expand(2, 4)), spread(torch.ones(3, 4))
        (tensor(1.), tensor(0.))
    """
    rows = F.normalize(encodings.float(), dim=-1).flatten(0, -2)  # (..., C) -> (M, C)
    return rows.std(0, correction=0).mean() * rows.shape[1] ** 0.5
