# Copyright (C) 2026 anomalib-fewshot contributors
# SPDX-License-Identifier: Apache-2.0

"""Collapse measure for self-supervised encodings."""

import torch
from torch.nn import functional as F  # noqa: N812


def std_of_l2_normalized(encodings: torch.Tensor) -> torch.Tensor:
    """Return the standard deviation of L2-normalized encodings, scaled to ``[0, 1]``.

    The standard deviation is averaged over the C channels and multiplied by sqrt(C). 1 means that the encodings use all
    directions. 0 means that they have collapsed to a single one. The function has the name of its counterpart in
    lightly.

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
