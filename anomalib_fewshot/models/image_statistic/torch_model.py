# Copyright (C) 2026 anomalib-fewshot contributors
# SPDX-License-Identifier: Apache-2.0

"""PyTorch model of ImageStatistic."""

import torch
from anomalib.data import InferenceBatch
from torch import nn

from anomalib_fewshot.errors import ArgumentError


def border(grey: torch.Tensor) -> torch.Tensor:
    """Return the mean of a strip along the border, 1/16 of the shorter side: ``(B, H, W)`` -> ``(B,)``.

    Example:
        >>> border(torch.tensor([[[1.0, 1.0, 1.0], [1.0, 9.0, 1.0], [1.0, 1.0, 9.0]]]))
        tensor([2.])
    """
    width = max(1, min(grey.shape[-2:]) // 16)
    middle = grey[:, width:-width]
    strips = grey[:, :width], grey[:, -width:], middle[:, :, :width], middle[:, :, -width:]
    return torch.cat([strip.flatten(1) for strip in strips], dim=1).mean(1)


def mean(grey: torch.Tensor) -> torch.Tensor:
    """Return the mean: ``(B, H, W)`` -> ``(B,)``."""
    return grey.mean((-2, -1))


def std(grey: torch.Tensor) -> torch.Tensor:
    """Return the standard deviation, with the number of pixels as divisor: ``(B, H, W)`` -> ``(B,)``."""
    return grey.std((-2, -1), correction=0)


STATISTICS = {"border": border, "mean": mean, "std": std}  # (B, H, W) -> (B,)


class ImageStatisticModel(nn.Module):
    """Distance of one number of an image from its mean over the support.

    A grey value is the mean of the channels.

    Args:
        statistic (str): ``"border"``, ``"mean"`` or ``"std"``.

    Raises:
        ArgumentError: If there is no such statistic.
    """

    def __init__(self, statistic: str) -> None:
        super().__init__()
        if statistic not in STATISTICS:
            msg = f"`statistic` must be one of {tuple(STATISTICS)}, got {statistic!r}."
            raise ArgumentError(msg)
        self.statistic = STATISTICS[statistic]
        self.register_buffer("mean", torch.tensor(0.0))
        self.mean: torch.Tensor

    def values(self, images: torch.Tensor) -> torch.Tensor:
        """Return the statistic of each image: ``(B, C, H, W)`` -> ``(B,)``."""
        return self.statistic(images.float().mean(1))

    def fit(self, values: torch.Tensor) -> torch.Tensor:
        """Fit the mean to values of the support, shape ``(K,)``.

        Returns:
            torch.Tensor: Score of each value by the mean of the others, shape ``(K,)``: 0 for a single one.
        """
        self.mean.copy_(values.mean())
        others = (values.sum() - values) / max(len(values) - 1, 1)
        return (values - others).abs() if len(values) > 1 else torch.zeros_like(values)

    def forward(self, images: torch.Tensor) -> InferenceBatch:
        """Score images, shape ``(B, C, H, W)``: scores have the shape ``(B,)``, and there is no anomaly map."""
        return InferenceBatch(pred_score=(self.values(images) - self.mean).abs())
