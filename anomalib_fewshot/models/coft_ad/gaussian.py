# Copyright (C) 2026 anomalib-fewshot contributors
# SPDX-License-Identifier: Apache-2.0

"""A Gaussian of embeddings, and the Mahalanobis distance from it."""

import torch
from torch import nn

from anomalib_fewshot.models.components import Moments


def oas_covariance(moments: Moments) -> torch.Tensor:
    """Return the covariance, shrunk towards a multiple of the identity: the estimate of ``sklearn.covariance.oas``.

    Unlike Ledoit and Wolf's, this shrinkage needs the first two moments alone, not the embeddings.

    Args:
        moments (Moments): Moments of embeddings of length D.

    Returns:
        torch.Tensor: Covariance, shape ``(D, D)``.

    Reference:
        Eq. 23 of Chen et al., Shrinkage Algorithms for MMSE Covariance Estimation, https://arxiv.org/abs/0907.4698.
    """
    covariance = moments.covariance  # S
    dim = len(covariance)  # p
    scale = covariance.trace() / dim  # tr(S) / p
    mean_square = covariance.square().mean()  # tr(S^2) / p^2
    numerator = mean_square + scale**2
    denominator = (moments.count + 1) * (mean_square - scale**2 / dim)
    # rho: 1 where the covariance is a multiple of the identity already, that of a single embedding (zero) among them
    shrinkage = (numerator / denominator.clamp_min(1e-300)).clamp_max(1)
    return (1 - shrinkage) * covariance + shrinkage * scale * torch.eye(dim).to(covariance)


def symmetric_whitening(moments: Moments, regularization: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the mean and the symmetric whitening of embeddings whose channels are first brought to one variance.

    A symmetric whitening rotates nothing: the channels of whitened embeddings stay comparable when an image is added to
    the moments or held out of them, which is not so with a Cholesky factor.

    Args:
        moments (Moments): Moments of embeddings of length D.
        regularization (float): Variance added in every direction of the standardized embeddings.

    Returns:
        tuple[torch.Tensor, torch.Tensor]: Mean m, shape ``(D,)``, and matrix W, shape ``(D, D)``, in single precision.
        The Mahalanobis distance of x is the length of (x - m) W.
    """
    covariance = moments.covariance
    std = covariance.diagonal().clamp_min(0).sqrt()
    std = std.clamp_min(1e-3 * std.mean()).clamp_min(1e-6)  # a channel that never changes, and a single embedding
    variances, directions = torch.linalg.eigh(covariance / torch.outer(std, std))
    root = (directions * (variances.clamp_min(0) + regularization).rsqrt()) @ directions.T
    return moments.mean.float(), (root / std[:, None]).float()


class Gaussian(nn.Module):
    """Multivariate Gaussian of embeddings.

    Args:
        dim (int): Length D of an embedding.
        regularization (float): Variance added in every direction, as a fraction of the mean variance. Views of a few
            images are alike, so that shrinkage by their number alone is too weak. Defaults to ``0.01``.

    Raises:
        ValueError: If ``regularization`` is not above 0.
    """

    def __init__(self, dim: int, regularization: float = 0.01) -> None:
        super().__init__()
        if regularization <= 0:
            msg = f"`regularization` must be above 0, got {regularization}."
            raise ValueError(msg)
        self.regularization = regularization
        self.register_buffer("mean", torch.zeros(dim))
        self.register_buffer("whitening", torch.zeros(dim, dim))
        self.mean: torch.Tensor
        self.whitening: torch.Tensor

    def fit(self, moments: Moments) -> None:
        """Fit the Gaussian to moments of embeddings of length D."""
        covariance = oas_covariance(moments)
        identity = torch.eye(len(covariance)).to(covariance)
        variance = (covariance.trace() / len(covariance)).clamp_min(1e-12)  # a single embedding has no variance at all
        root = torch.linalg.cholesky(covariance + self.regularization * variance * identity)
        self.mean.copy_(moments.mean)
        self.whitening.copy_(torch.linalg.solve_triangular(root, identity, upper=False))

    def forward(self, embeddings: torch.Tensor) -> torch.Tensor:
        """Return the Mahalanobis distance, shape ``(...)``, of embeddings of shape ``(..., D)``."""
        return torch.linalg.vector_norm((embeddings - self.mean) @ self.whitening.T, dim=-1)
