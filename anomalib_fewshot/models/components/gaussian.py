# Copyright (C) 2026 anomalib-fewshot contributors
# SPDX-License-Identifier: Apache-2.0

"""Covariance estimation and whitening from the moments of embeddings."""

import torch

from .moments import Moments, in_double_precision


def symmetric_whitening(moments: Moments, regularization: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the mean and a symmetric (ZCA) whitening matrix of features with standardized channels.

    A symmetric whitening does not rotate the features. Whitened channels of different folds therefore stay comparable,
    which a Cholesky factor does not guarantee.

    Args:
        moments (Moments): Moments of features of length D.
        regularization (float): Variance added to every direction of the standardized features.

    Returns:
        tuple[torch.Tensor, torch.Tensor]: Mean m, shape ``(D,)``, and matrix W, shape ``(D, D)``, in single precision.
        The Mahalanobis distance of x is the norm of (x - m) W.
    """
    covariance = moments.covariance
    std = covariance.diagonal().clamp_min(0).sqrt()
    std = std.clamp_min(1e-3 * std.mean()).clamp_min(1e-6)  # constant channels, and a single feature
    variances, directions = torch.linalg.eigh(covariance / torch.outer(std, std))
    root = (directions * (variances.clamp_min(0) + regularization).rsqrt()) @ directions.T
    return moments.mean.float(), (root / std[:, None]).float()


def oas_covariance(moments: Moments) -> torch.Tensor:
    """Return the Oracle Approximating Shrinkage (OAS) covariance, like ``sklearn.covariance.oas``.

    Unlike Ledoit-Wolf shrinkage, OAS needs only the first two moments.

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
    shrinkage = (numerator / denominator.clamp_min(1e-300)).clamp_max(1)  # 1 for a single embedding
    return (1 - shrinkage) * covariance + shrinkage * scale * torch.eye(dim).to(covariance)


def lower_triangle(metric: torch.Tensor) -> torch.Tensor:
    """Return the lower-triangular L with ``|x L| = |x metric|`` for every row x: ``(D, D)`` -> ``(D, D)``."""
    triangle = torch.linalg.qr(in_double_precision(metric).mT, mode="r").R.mT
    return triangle.to(metric)
