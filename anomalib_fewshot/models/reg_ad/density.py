# Copyright (C) 2026 anomalib-fewshot contributors
# SPDX-License-Identifier: Apache-2.0

"""Gaussian density at each position, for few samples with many channels."""

from collections.abc import Iterable, Iterator
from itertools import chain

import torch
from anomalib.models.components.base import DynamicBufferMixin

from anomalib_fewshot.errors import ArgumentError, NotFittedError
from anomalib_fewshot.models.components import in_double_precision


class PositionGaussian(DynamicBufferMixin):
    r"""Gaussian of the features at each position, without the C x C covariance if there are few samples.

    Let the rows of X be the N centered samples of a position. The regularized covariance is X^T X / (N - 1) + r I. The
    Woodbury identity gives the exact squared Mahalanobis distance of a deviation d from the mean:

    .. math:: (|d|^2 - |L^{-1} X d|^2) / r \quad\text{with}\quad L L^T = X X^T + r (N - 1) I.

    ``basis`` contains B = L^-1 X of each position, which has N x C values instead of C x C. With more samples than
    channels, B is C x C and is computed from the eigenvectors of X^T X, which is summed over the batches.

    Args:
        regularization (float): Regularization r.

    Raises:
        ArgumentError: If ``regularization`` is not positive.
    """

    def __init__(self, regularization: float) -> None:
        super().__init__()
        if regularization <= 0:
            msg = f"`regularization` must be positive, got {regularization}."
            raise ArgumentError(msg)
        self.regularization = regularization
        self.register_buffer("mean", torch.zeros(0, 0))  # (P, C)
        self.register_buffer("basis", torch.zeros(0, 0, 0))  # (P, N, C)
        self.register_buffer("scale", torch.ones(()))  # regularization of the fit
        self.mean: torch.Tensor
        self.basis: torch.Tensor
        self.scale: torch.Tensor

    @property
    def is_fitted(self) -> bool:
        """Whether the density is fitted."""
        return self.basis.numel() > 0

    @torch.inference_mode(mode=False)  # the buffers are used after the validation
    @torch.no_grad()
    def fit(self, batches: Iterable[torch.Tensor], count: int, chunk: int = 32) -> None:
        """Fit the Gaussians.

        Args:
            batches (Iterable[torch.Tensor]): Feature maps, each of shape ``(B, C, h, w)``.
            count (int): Total number N of feature maps, needed to allocate memory in advance.
            chunk (int): Number of positions that are processed together in double precision. Defaults to ``32``.

        Raises:
            ArgumentError: If the number of feature maps is not ``count``.
        """
        samples = _positions_first(_check_count(batches, count))
        first = next(samples)
        fit = self._fit_samples if count <= first.shape[-1] else self._fit_moments
        self.mean, self.basis = fit(chain([first], samples), first, count, chunk)
        self.scale.fill_(self.regularization)

    def _fit_samples(
        self,
        batches: Iterable[torch.Tensor],
        first: torch.Tensor,
        count: int,
        chunk: int,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return mean and basis if there are few samples. The basis overwrites the samples to save memory."""
        num_positions, _, channels = first.shape
        samples, start = first.new_empty(num_positions, count, channels), 0
        for batch in batches:
            samples[:, start : start + batch.shape[1]] = batch
            start += batch.shape[1]
        means = first.new_empty(num_positions, channels)
        for start in range(0, num_positions, chunk):
            rows = samples[start : start + chunk]
            x = in_double_precision(rows)
            means[start : start + chunk] = x.mean(1)
            x = x - x.mean(1, keepdim=True)  # X, (p, N, C)
            root = torch.linalg.cholesky(x @ x.mT + self._ridge(count) * torch.eye(count).to(x))  # L, (p, N, N)
            rows.copy_(torch.linalg.solve_triangular(root, x, upper=False))
        return means, samples

    def _fit_moments(
        self,
        batches: Iterable[torch.Tensor],
        first: torch.Tensor,
        count: int,
        chunk: int,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return mean and basis from the moments if there are more samples than channels."""
        num_positions, _, channels = first.shape
        sums = in_double_precision(first.new_zeros(num_positions, channels))
        gram = sums.new_zeros(num_positions, channels, channels)
        for batch in batches:
            for start in range(0, num_positions, chunk):
                x = in_double_precision(batch[start : start + chunk])
                sums[start : start + chunk] += x.sum(1)
                gram[start : start + chunk].baddbmm_(x.mT, x)
        mean, basis = sums / count, first.new_empty(num_positions, channels, channels)
        for start in range(0, num_positions, chunk):
            center = mean[start : start + chunk]
            scatter = gram[start : start + chunk] - count * center[:, :, None] * center[:, None]  # X^T X, (p, C, C)
            values, vectors = torch.linalg.eigh(scatter)
            values = values.clamp_min(0)
            shrinkage = (values / (values + self._ridge(count))).sqrt()
            basis[start : start + chunk] = shrinkage[..., None] * vectors.mT
        return mean.to(first), basis

    def _ridge(self, count: int) -> float:
        return self.regularization * max(count - 1, 1)

    def forward(self, maps: torch.Tensor) -> torch.Tensor:
        """Return the Mahalanobis distance at each position.

        Args:
            maps (torch.Tensor): Feature maps, shape ``(B, C, h, w)``, with the height and width of the fit.

        Returns:
            torch.Tensor: Distances, shape ``(B, h, w)``.

        Raises:
            NotFittedError: If the density is not fitted.
            ArgumentError: If the number of positions differs from the fit.
        """
        if not self.is_fitted:
            msg = "The density is not fitted. Call `Engine.fit` or load a fitted checkpoint (`ckpt_path`)."
            raise NotFittedError(msg)
        height, width = maps.shape[-2:]
        if height * width != len(self.mean):
            msg = (
                f"`maps` must have {len(self.mean)} positions, as in the fit, got {height} x {width}. Use the "
                "`image_size` of the fit."
            )
            raise ArgumentError(msg)
        with torch.autocast(maps.device.type, enabled=False):  # the difference below needs single precision
            delta = maps.float().flatten(2).permute(2, 1, 0) - self.mean[..., None]  # (B, C, h, w) -> (P, C, B)
            explained = torch.linalg.vector_norm(self.basis @ delta, dim=1)  # (P, N, B) -> (P, B)
            squared = (torch.linalg.vector_norm(delta, dim=1).square() - explained.square()) / self.scale
        return squared.clamp_min(0).sqrt().T.unflatten(1, (height, width))  # (P, B) -> (B, h, w)


def _positions_first(batches: Iterable[torch.Tensor]) -> Iterator[torch.Tensor]:
    """Yield feature maps in single precision: ``(B, C, h, w)`` -> ``(P, B, C)``."""
    for maps in batches:
        yield maps.float().flatten(2).permute(2, 0, 1)


def _check_count(batches: Iterable[torch.Tensor], count: int) -> Iterator[torch.Tensor]:
    """Yield batches and check that they contain ``count`` samples in total.

    Raises:
        ArgumentError: If there are more or fewer samples, which would be lost or leave uninitialized memory.
    """
    found = 0
    for batch in batches:
        found += len(batch)
        if found > count:
            break
        yield batch
    if found != count:
        more = " or more" if found > count else ""
        msg = f"`count` must be the total number of feature maps, {found}{more}, got {count}."
        raise ArgumentError(msg)
