# Copyright (C) 2026 anomalib-fewshot contributors
# SPDX-License-Identifier: Apache-2.0

"""Count, sum and Gram matrix of embeddings, which add up over batches."""

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Moments:
    """The first two moments of embeddings, as sums: those of two sets of embeddings add up, and can be subtracted.

    Args:
        count (torch.Tensor): Number of embeddings, a scalar.
        sum (torch.Tensor): Sum of the embeddings, shape ``(D,)``.
        gram (torch.Tensor): Sum of their outer products, shape ``(D, D)``.
    """

    count: torch.Tensor
    sum: torch.Tensor
    gram: torch.Tensor

    @classmethod
    def of(cls, embeddings: torch.Tensor) -> "Moments":
        """Return the moments, in double precision, of embeddings of shape ``(..., D)``."""
        rows = in_double_precision(embeddings.flatten(0, -2))  # (M, D)
        return cls(rows.new_tensor(len(rows)), rows.sum(0), rows.T @ rows)

    @property
    def mean(self) -> torch.Tensor:
        """Mean, shape ``(D,)``."""
        return self.sum / self.count

    @property
    def covariance(self) -> torch.Tensor:
        """Covariance, shape ``(D, D)``, with the count as divisor."""
        return self.gram / self.count - torch.outer(self.mean, self.mean)

    def __add__(self, other: "Moments") -> "Moments":
        """Return the moments of both sets."""
        return Moments(self.count + other.count, self.sum + other.sum, self.gram + other.gram)

    def __sub__(self, other: "Moments") -> "Moments":
        """Return the moments without those of a subset."""
        return Moments(self.count - other.count, self.sum - other.sum, self.gram - other.gram)


def in_double_precision(tensor: torch.Tensor) -> torch.Tensor:
    """Return a tensor in double precision, which MPS does not have: from there it comes to the CPU."""
    return (tensor.cpu() if tensor.device.type == "mps" else tensor).double()
