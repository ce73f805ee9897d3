# Copyright (C) 2026 anomalib-fewshot contributors
# SPDX-License-Identifier: Apache-2.0

"""PyTorch model of PlainStatistic."""

import torch
from anomalib.data import InferenceBatch
from torch import nn


def border(grey: torch.Tensor) -> torch.Tensor:
    """Return the mean of a strip along the border, 1/16 of the shorter side wide and at least a pixel.

    Example:
        >>> border(torch.tensor([[[1.0, 1.0, 1.0], [1.0, 9.0, 1.0], [1.0, 1.0, 9.0]]]))
        tensor([2.])
    """
    width = max(1, min(grey.shape[-2:]) // 16)
    middle = grey[:, width:-width]
    strips = grey[:, :width], grey[:, -width:], middle[:, :, :width], middle[:, :, -width:]
    return torch.cat([strip.flatten(1) for strip in strips], dim=1).mean(1)


def mean(grey: torch.Tensor) -> torch.Tensor:
    """Return the mean."""
    return grey.mean((-2, -1))


def spread(grey: torch.Tensor) -> torch.Tensor:
    """Return the standard deviation, with the number of pixels as divisor."""
    return grey.std((-2, -1), correction=0)


STATISTICS = {"border": border, "mean": mean, "spread": spread}  # (B, H, W) -> (B,)


class PlainStatisticModel(nn.Module):
    """How far one number of an image is from its mean over the training images.

    A grey value is the mean of the channels. Without training images all scores are NaN.

    Args:
        statistic (str): ``"border"``, ``"mean"`` or ``"spread"``.

    Raises:
        ValueError: If there is no such statistic.
    """

    def __init__(self, statistic: str) -> None:
        super().__init__()
        if statistic not in STATISTICS:
            msg = f"`statistic` must be one of {tuple(STATISTICS)}, got {statistic!r}."
            raise ValueError(msg)
        self.statistic = STATISTICS[statistic]
        self.register_buffer("total", torch.tensor(0.0))
        self.register_buffer("count", torch.tensor(0))
        self.total: torch.Tensor
        self.count: torch.Tensor

    def reset(self) -> None:
        """Forget the training images."""
        self.total.zero_()
        self.count.zero_()

    @torch.no_grad()
    def collect(self, images: torch.Tensor) -> None:
        """Take training images into the mean, shape ``(B, C, H, W)``."""
        self.total += self.statistic(images.float().mean(1)).sum()
        self.count += len(images)

    def forward(self, images: torch.Tensor) -> InferenceBatch:
        """Score images, shape ``(B, C, H, W)``: scores have the shape ``(B,)``, and there is no anomaly map."""
        value = self.statistic(images.float().mean(1))  # (B, C, H, W) -> (B, H, W) -> (B,)
        return InferenceBatch(pred_score=(value - self.total / self.count).abs())
