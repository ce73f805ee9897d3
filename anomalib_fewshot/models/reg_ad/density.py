# Copyright (C) 2026 anomalib-fewshot contributors
# SPDX-License-Identifier: Apache-2.0

"""A Gaussian at every position, from few samples of many channels."""

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import nn

from anomalib_fewshot.models.components import in_double_precision


class PositionGaussian(nn.Module):
    r"""Gaussian of the features at each position, whose covariance is never made.

    With the N centred samples of a position as the rows of X, the regularised covariance is
    X^T X / (N - 1) + r I, and by the Woodbury identity the squared Mahalanobis distance of d is

    .. math:: (|d|^2 - |L^{-1} X d|^2) / r \quad\text{with}\quad L L^T = X X^T + r (N - 1) I,

    which is exact. ``basis`` holds L^-1 X: N x C numbers a position, where the covariance has C x C. Of more samples
    than channels, X is the C rows of R of its QR decomposition, whose X^T X is the same.

    Args:
        regularization (float): The r above.

    Raises:
        ValueError: If ``regularization`` is not above 0.
    """

    def __init__(self, regularization: float) -> None:
        super().__init__()
        if regularization <= 0:
            msg = f"`regularization` must be above 0, got {regularization}."
            raise ValueError(msg)
        self.regularization = regularization
        self.register_buffer("mean", torch.zeros(0, 0))  # (P, C)
        self.register_buffer("basis", torch.zeros(0, 0, 0))  # (P, N, C)
        self.register_buffer("scale", torch.ones(()))  # the regularisation that was fitted with
        self.mean: torch.Tensor
        self.basis: torch.Tensor
        self.scale: torch.Tensor

    @property
    def is_fitted(self) -> bool:
        """Whether there is something to compare with."""
        return self.basis.numel() > 0

    def reset(self) -> None:
        """Forget what was fitted."""
        self.mean, self.basis = self.mean.new_zeros(0, 0), self.basis.new_zeros(0, 0, 0)

    @torch.inference_mode(mode=False)  # the buffers outlive a validation
    @torch.no_grad()
    def fit(self, batches: Iterable[torch.Tensor], count: int, chunk: int = 32) -> None:
        """Fit the Gaussians.

        Args:
            batches (Iterable[torch.Tensor]): Feature maps, each of shape ``(B, C, h, w)``.
            count (int): Number N of all maps. They are put where they are kept as they come, for they are large.
            chunk (int): Positions that are taken together in double precision. Defaults to ``32``.
        """
        samples, start = torch.empty(0), 0
        for maps in batches:
            rows = maps.float().flatten(2).permute(2, 0, 1)  # (B, C, h, w) -> (P, B, C)
            if start == 0:
                samples = rows.new_empty(len(rows), count, rows.shape[-1])
            samples[:, start : start + rows.shape[1]] = rows
            start += rows.shape[1]
        self.mean = samples.new_empty(len(samples), samples.shape[-1])
        rank = min(samples.shape[1:])
        basis = samples[:, :rank] if rank == count else samples.new_empty(len(samples), rank, rank)
        for mean, part, rows in zip(self.mean.split(chunk), samples.split(chunk), basis.split(chunk), strict=True):
            centred = in_double_precision(part)
            mean.copy_(centred.mean(1))
            centred = centred - centred.mean(1, keepdim=True)  # X, (p, N, C)
            if rank < count:
                centred = torch.linalg.qr(centred, mode="r").R
            ridge = self.regularization * max(count - 1, 1) * torch.eye(rank).to(centred)
            root = torch.linalg.cholesky(centred @ centred.mT + ridge)
            rows.copy_(torch.linalg.solve_triangular(root, centred, upper=False))
        self.basis = basis
        self.scale.fill_(self.regularization)

    def forward(self, maps: torch.Tensor) -> torch.Tensor:
        """Return the Mahalanobis distance of each position.

        Args:
            maps (torch.Tensor): Feature maps, shape ``(B, C, h, w)``, on the grid that was fitted.

        Returns:
            torch.Tensor: Distances, shape ``(B, h, w)``.

        Raises:
            RuntimeError: If nothing was fitted.
            ValueError: If the grid is another.
        """
        if not self.is_fitted:
            msg = "The density must be fitted before it scores. Train the model, or give a checkpoint: `ckpt_path`."
            raise RuntimeError(msg)
        height, width = maps.shape[-2:]
        if height * width != len(self.mean):
            msg = f"`maps` must have {len(self.mean)} positions, as fitted, got {height} x {width}. Keep `image_size`."
            raise ValueError(msg)
        with torch.autocast(maps.device.type, enabled=False):  # a difference of near numbers
            delta = maps.float().flatten(2).permute(2, 1, 0) - self.mean[..., None]  # (B, C, h, w) -> (P, C, B)
            explained = torch.linalg.vector_norm(self.basis @ delta, dim=1)  # (P, N, B) -> (P, B)
            squared = (torch.linalg.vector_norm(delta, dim=1).square() - explained.square()) / self.scale
        return squared.clamp_min(0).sqrt().T.unflatten(1, (height, width))  # (P, B) -> (B, h, w)

    def _load_from_state_dict(self, state_dict: Mapping[str, Any], prefix: str, *args, **kwargs) -> None:
        """Take the shapes of what is loaded: the number of samples is that of another support."""
        for name in ("mean", "basis"):
            if prefix + name in state_dict:
                setattr(self, name, getattr(self, name).new_empty(state_dict[prefix + name].shape))
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)
