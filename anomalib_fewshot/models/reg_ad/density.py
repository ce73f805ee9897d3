# Copyright (C) 2026 anomalib-fewshot contributors
# SPDX-License-Identifier: Apache-2.0

"""A Gaussian at every position, from few samples of many channels."""

from collections.abc import Iterable, Iterator
from itertools import chain

import torch
from anomalib.models.components.base import DynamicBufferMixin

from anomalib_fewshot.errors import ArgumentError, NotFittedError
from anomalib_fewshot.models.components import in_double_precision


class PositionGaussian(DynamicBufferMixin):
    r"""Gaussian of the features at each position, without forming the C x C covariance of few samples.

    With the N centered samples of a position as the rows of X, the regularized covariance is
    X^T X / (N - 1) + r I, and by the Woodbury identity the squared Mahalanobis distance of d is

    .. math:: (|d|^2 - |L^{-1} X d|^2) / r \quad\text{with}\quad L L^T = X X^T + r (N - 1) I,

    which is exact. ``basis`` holds B = L^-1 X: N x C numbers a position, where the covariance has C x C. Of more
    samples than channels, B is C x C and comes from the eigenvectors of X^T X, a sum over the batches.

    Args:
        regularization (float): The r above.

    Raises:
        ArgumentError: If ``regularization`` is not above 0.
    """

    def __init__(self, regularization: float) -> None:
        super().__init__()
        if regularization <= 0:
            msg = f"`regularization` must be above 0, got {regularization}."
            raise ArgumentError(msg)
        self.regularization = regularization
        self.register_buffer("mean", torch.zeros(0, 0))  # (P, C)
        self.register_buffer("basis", torch.zeros(0, 0, 0))  # (P, N, C)
        self.register_buffer("scale", torch.ones(()))  # the regularization that was fitted with
        self.mean: torch.Tensor
        self.basis: torch.Tensor
        self.scale: torch.Tensor

    @property
    def is_fitted(self) -> bool:
        """Whether there is something to compare with."""
        return self.basis.numel() > 0

    @torch.inference_mode(mode=False)  # the buffers outlive a validation
    @torch.no_grad()
    def fit(self, batches: Iterable[torch.Tensor], count: int, chunk: int = 32) -> None:
        """Fit the Gaussians.

        Args:
            batches (Iterable[torch.Tensor]): Feature maps, each of shape ``(B, C, h, w)``.
            count (int): Number N of all maps, which says where to put them: they are large.
            chunk (int): Positions that are taken together in double precision. Defaults to ``32``.

        Raises:
            ArgumentError: If there are more or fewer maps than ``count``.
        """
        counted = _exactly(batches, count)
        parts = (maps.float().flatten(2).permute(2, 0, 1) for maps in counted)  # (B, C, h, w) -> (P, B, C)
        first = next(parts)
        fit = self._fit_samples if count <= first.shape[-1] else self._fit_moments
        self.mean, self.basis = fit(chain([first], parts), first, count, chunk)
        self.scale.fill_(self.regularization)

    def _fit_samples(
        self,
        parts: Iterable[torch.Tensor],
        like: torch.Tensor,
        count: int,
        chunk: int,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return mean and basis of few samples. The basis takes their place."""
        samples, start = like.new_empty(len(like), count, like.shape[-1]), 0
        for rows in parts:
            samples[:, start : start + rows.shape[1]] = rows
            start += rows.shape[1]
        means = like.new_empty(len(like), like.shape[-1])
        for mean, rows in zip(means.split(chunk), samples.split(chunk), strict=True):
            x = in_double_precision(rows)
            mean.copy_(x.mean(1))
            x = x - x.mean(1, keepdim=True)  # X, (p, N, C)
            root = torch.linalg.cholesky(x @ x.mT + self._ridge(count) * torch.eye(count).to(x))  # L, (p, N, N)
            rows.copy_(torch.linalg.solve_triangular(root, x, upper=False))
        return means, samples

    def _fit_moments(
        self,
        parts: Iterable[torch.Tensor],
        like: torch.Tensor,
        count: int,
        chunk: int,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return mean and basis of more samples than channels, by their sums."""
        channels = like.shape[-1]
        total = in_double_precision(like.new_zeros(len(like), channels))
        gram = total.new_zeros(len(like), channels, channels)
        for rows in parts:
            for sums, products, some in zip(total.split(chunk), gram.split(chunk), rows.split(chunk), strict=True):
                x = in_double_precision(some)
                sums.add_(x.sum(1))
                products.baddbmm_(x.mT, x)
        mean, basis = total / count, like.new_empty(len(like), channels, channels)
        for center, products, rows in zip(mean.split(chunk), gram.split(chunk), basis.split(chunk), strict=True):
            scatter = products - count * center[:, :, None] * center[:, None]  # X^T X, (p, C, C)
            values, vectors = torch.linalg.eigh(scatter)
            values = values.clamp_min(0)
            rows.copy_((values / (values + self._ridge(count))).sqrt()[..., None] * vectors.mT)
        return mean.to(like), basis

    def _ridge(self, count: int) -> float:
        return self.regularization * max(count - 1, 1)

    def forward(self, maps: torch.Tensor) -> torch.Tensor:
        """Return the Mahalanobis distance of each position.

        Args:
            maps (torch.Tensor): Feature maps, shape ``(B, C, h, w)``, on the grid that was fitted.

        Returns:
            torch.Tensor: Distances, shape ``(B, h, w)``.

        Raises:
            NotFittedError: If nothing was fitted.
            ArgumentError: If the grid is another.
        """
        if not self.is_fitted:
            msg = "The density must be fitted before it scores. Train the model, or give a checkpoint: `ckpt_path`."
            raise NotFittedError(msg)
        height, width = maps.shape[-2:]
        if height * width != len(self.mean):
            msg = f"`maps` must have {len(self.mean)} positions, as fitted, got {height} x {width}. Keep `image_size`."
            raise ArgumentError(msg)
        with torch.autocast(maps.device.type, enabled=False):  # a difference of near numbers
            delta = maps.float().flatten(2).permute(2, 1, 0) - self.mean[..., None]  # (B, C, h, w) -> (P, C, B)
            explained = torch.linalg.vector_norm(self.basis @ delta, dim=1)  # (P, N, B) -> (P, B)
            squared = (torch.linalg.vector_norm(delta, dim=1).square() - explained.square()) / self.scale
        return squared.clamp_min(0).sqrt().T.unflatten(1, (height, width))  # (P, B) -> (B, h, w)


def _exactly(batches: Iterable[torch.Tensor], count: int) -> Iterator[torch.Tensor]:
    """Yield batches.

    Raises:
        ArgumentError: If they have more or fewer than ``count`` rows together: some would be lost or uninitialized.
    """
    found = 0
    for batch in batches:
        found += len(batch)
        if found > count:
            break
        yield batch
    if found != count:
        more = " or more" if found > count else ""
        msg = f"`count` must be the number of all maps, {found}{more}, got {count}."
        raise ArgumentError(msg)
