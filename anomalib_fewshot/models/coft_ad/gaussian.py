# Copyright (C) 2026 anomalib-fewshot contributors
# SPDX-License-Identifier: Apache-2.0

"""A Gaussian of embeddings, and the Mahalanobis distance from it."""

import torch
from torch import nn

from anomalib_fewshot.models.components import Moments


def oas_covariance(moments: Moments) -> torch.Tensor:
    """Return the covariance, shrunk towards a multiple of the identity.

    The shrinkage needs the moments alone, not the embeddings, other than Ledoit and Wolf's. It is the estimate of
    ``sklearn.covariance.oas``.

    Args:
        moments (Moments): Moments of the embeddings.

    Returns:
        torch.Tensor: Covariance, shape ``(D, D)``.

    Reference:
        Chen et al., Shrinkage Algorithms for MMSE Covariance Estimation, https://arxiv.org/abs/0907.4698.
    """
    mean = moments.total / moments.count
    covariance = moments.outer / moments.count - torch.outer(mean, mean)
    dim = len(mean)
    scale = covariance.trace() / dim
    spread = covariance.square().mean()
    # 1 where the covariance is a multiple of the identity already, that of a single embedding (zero) among them
    shrinkage = ((spread + scale**2) / ((moments.count + 1) * (spread - scale**2 / dim)).clamp_min(1e-300)).clamp_max(1)
    return (1 - shrinkage) * covariance + shrinkage * scale * torch.eye(dim).to(covariance)


def symmetric_whitening(moments: Moments, floor: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the mean and the symmetric whitening of embeddings whose channels are first brought to one variance.

    A symmetric whitening turns nothing: the channels of whitened embeddings stay comparable when one image more or less
    is in the moments, which is not so with a Cholesky factor.

    Args:
        moments (Moments): Moments of the embeddings.
        floor (float): Variance added in every direction of the standardised embeddings.

    Returns:
        tuple[torch.Tensor, torch.Tensor]: Mean m, shape ``(D,)``, and matrix W, shape ``(D, D)``, in single precision.
        The Mahalanobis distance of x is the length of (x - m) W.
    """
    mean = moments.total / moments.count
    covariance = moments.outer / moments.count - torch.outer(mean, mean)
    std = covariance.diagonal().clamp_min(0).sqrt()
    std = std.clamp_min(1e-3 * std.mean()).clamp_min(1e-6)  # a channel that never changes, and a single embedding
    variances, directions = torch.linalg.eigh(covariance / torch.outer(std, std))
    root = (directions * (variances.clamp_min(0) + floor).rsqrt()) @ directions.T
    return mean.float(), (root / std[:, None]).float()


class Gaussian(nn.Module):
    """Multivariate Gaussian, fitted to moments of embeddings.

    Args:
        dim (int): Length D of an embedding.
        floor (float): Variance added in every direction, as a fraction of the mean variance. The views of a few images
            are alike, so that shrinkage by their number alone is too weak. Defaults to ``0.01``.
    """

    def __init__(self, dim: int, floor: float = 0.01) -> None:
        super().__init__()
        if floor <= 0:
            msg = f"`floor` must be above 0, got {floor}."
            raise ValueError(msg)
        self.floor = floor
        self.register_buffer("mean", torch.zeros(dim))
        self.register_buffer("whitening", torch.zeros(dim, dim))
        self.mean: torch.Tensor
        self.whitening: torch.Tensor

    def fit(self, moments: Moments) -> None:
        """Fit the Gaussian."""
        covariance = oas_covariance(moments)
        identity = torch.eye(len(covariance)).to(covariance)
        variance = (covariance.trace() / len(covariance)).clamp_min(1e-12)  # a single embedding has no variance at all
        root = torch.linalg.cholesky(covariance + self.floor * variance * identity)
        self.mean.copy_(moments.total / moments.count)
        self.whitening.copy_(torch.linalg.solve_triangular(root, identity, upper=False))

    def forward(self, embeddings: torch.Tensor) -> torch.Tensor:
        """Return the Mahalanobis distance, shape ``(...)``, of embeddings of shape ``(..., D)``."""
        return torch.linalg.vector_norm((embeddings - self.mean) @ self.whitening.T, dim=-1)
