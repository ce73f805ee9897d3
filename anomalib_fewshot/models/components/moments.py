# Copyright (C) 2026 anomalib-fewshot contributors
# SPDX-License-Identifier: Apache-2.0

"""First two moments of embeddings, accumulated over batches."""

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Moments:
    """Unnormalized first two moments of a set of embeddings.

    They are sums, so the moments of disjoint sets can be added, and the moments of a subset can be subtracted.

    Args:
        count (torch.Tensor): Number of embeddings, a scalar.
        sum (torch.Tensor): Sum of the embeddings, shape ``(D,)``.
        gram (torch.Tensor): Sum of the outer products, shape ``(D, D)``.
    """

    count: torch.Tensor
    sum: torch.Tensor
    gram: torch.Tensor

    @classmethod
    def of(cls, embeddings: torch.Tensor) -> "Moments":
        """Return the moments of embeddings, shape ``(..., D)``, in double precision."""
        rows = in_double_precision(embeddings.flatten(0, -2))  # (M, D)
        return cls(rows.new_tensor(len(rows)), rows.sum(0), rows.T @ rows)

    @property
    def mean(self) -> torch.Tensor:
        """Mean, shape ``(D,)``."""
        return self.sum / self.count

    @property
    def covariance(self) -> torch.Tensor:
        """Population covariance, shape ``(D, D)``."""
        return self.gram / self.count - torch.outer(self.mean, self.mean)

    def __add__(self, other: "Moments") -> "Moments":
        """Return the moments of the union of two disjoint sets."""
        return Moments(self.count + other.count, self.sum + other.sum, self.gram + other.gram)

    def __sub__(self, other: "Moments") -> "Moments":
        """Return the moments of the set without a subset."""
        return Moments(self.count - other.count, self.sum - other.sum, self.gram - other.gram)


def in_double_precision(tensor: torch.Tensor) -> torch.Tensor:
    """Return a tensor in double precision. Tensors on MPS, which has no double precision, are moved to the CPU."""
    return (tensor.cpu() if tensor.device.type == "mps" else tensor).double()
