# Copyright (C) 2026 anomalib-fewshot contributors
# SPDX-License-Identifier: Apache-2.0

"""PyTorch model of ImageStatistic."""

import torch
from anomalib.data import InferenceBatch
from torch import nn

from anomalib_fewshot.errors import ArgumentError


def border(gray: torch.Tensor) -> torch.Tensor:
    """Return the mean of the border strip of each image: ``(B, H, W)`` -> ``(B,)``.

    The width of the strip is 1/16 of the shorter side.

    Example:
        >>> border(torch.tensor([[[1.0, 1.0, 1.0], [1.0, 9.0, 1.0], [1.0, 1.0, 9.0]]]))
        tensor([2.])
    """
    width = max(1, min(gray.shape[-2:]) // 16)
    middle = gray[:, width:-width]
    strips = gray[:, :width], gray[:, -width:], middle[:, :, :width], middle[:, :, -width:]
    return torch.cat([strip.flatten(1) for strip in strips], dim=1).mean(1)


def mean(gray: torch.Tensor) -> torch.Tensor:
    """Return the mean of each image: ``(B, H, W)`` -> ``(B,)``."""
    return gray.mean((-2, -1))


def std(gray: torch.Tensor) -> torch.Tensor:
    """Return the population standard deviation of each image: ``(B, H, W)`` -> ``(B,)``."""
    return gray.std((-2, -1), correction=0)


STATISTICS = {"border": border, "mean": mean, "std": std}  # (B, H, W) -> (B,)


class ImageStatisticModel(nn.Module):
    """Absolute difference between a statistic of an image and its mean over the support set.

    The statistic is computed on gray values, which are the mean of the channels.

    Args:
        statistic (str): ``"border"``, ``"mean"`` or ``"std"``.

    Raises:
        ArgumentError: If ``statistic`` is unknown.
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
        """Fit the mean to the statistics of the support set.

        Args:
            values (torch.Tensor): Statistic of each support image, shape ``(K,)``.

        Returns:
            torch.Tensor: Leave-one-out scores, shape ``(K,)``. The score of a single image is 0.
        """
        self.mean.copy_(values.mean())
        if len(values) == 1:
            return torch.zeros_like(values)
        leave_one_out_means = (values.sum() - values) / (len(values) - 1)
        return (values - leave_one_out_means).abs()

    def forward(self, images: torch.Tensor) -> InferenceBatch:
        """Return the score of each image.

        Args:
            images (torch.Tensor): Images, shape ``(B, C, H, W)``.

        Returns:
            InferenceBatch: Scores, shape ``(B,)``, without an anomaly map.
        """
        return InferenceBatch(pred_score=(self.values(images) - self.mean).abs())
