# Copyright (C) 2026 anomalib-fewshot contributors
# SPDX-License-Identifier: Apache-2.0

"""Sums that describe embeddings, and add up over batches and processes."""

from typing import NamedTuple

import torch


class Moments(NamedTuple):
    """Sums that a Gaussian is fitted from. They add up over batches and processes.

    Args:
        count (torch.Tensor): Number of embeddings, a scalar.
        total (torch.Tensor): Sum of the embeddings, shape ``(D,)``.
        outer (torch.Tensor): Sum of their outer products, shape ``(D, D)``.
    """

    count: torch.Tensor
    total: torch.Tensor
    outer: torch.Tensor

    @classmethod
    def of(cls, embeddings: torch.Tensor) -> "Moments":
        """Return the moments, in double precision, of embeddings of shape ``(..., D)``."""
        rows = in_double_precision(embeddings.flatten(0, -2))  # (M, D)
        return cls(rows.new_tensor(len(rows)), rows.sum(0), rows.T @ rows)

    def plus(self, other: "Moments") -> "Moments":
        """Return the moments of both."""
        return Moments(*(mine + theirs for mine, theirs in zip(self, other, strict=True)))

    def minus(self, other: "Moments") -> "Moments":
        """Return the moments of what is left when the other is taken out."""
        return Moments(*(mine - theirs for mine, theirs in zip(self, other, strict=True)))


def in_double_precision(tensor: torch.Tensor) -> torch.Tensor:
    """Return a tensor in double precision, which MPS does not have: from there it comes to the CPU."""
    return (tensor.cpu() if tensor.device.type == "mps" else tensor).double()
