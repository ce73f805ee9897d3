# Copyright (C) 2026 anomalib-fewshot contributors
# SPDX-License-Identifier: Apache-2.0

"""From distances on a grid to an anomaly map: upsampling and blur as one."""

import torch
from kornia.filters import get_gaussian_kernel1d
from torch import nn
from torch.nn import functional as F  # noqa: N812


class SmoothUpsampling(nn.Module):
    """Bilinear upsampling and a Gaussian blur of maps of one size.

    Both are linear and act on each side by itself, so that a matrix for each side does both, with the result of
    anomalib's ``GaussianBlur2d`` in a fraction of its time. The matrices are buffers, which no checkpoint holds.

    Args:
        grid (tuple[int, int]): Height h and width w of the maps.
        size (tuple[int, int]): Height H and width W of the result.
        sigma (float): Standard deviation of the Gaussian in pixels. Defaults to ``4.0``.

    Example:
        >>> SmoothUpsampling((2, 3), (8, 12))(torch.ones(1, 2, 3)).shape
        torch.Size([1, 8, 12])
    """

    def __init__(self, grid: tuple[int, int], size: tuple[int, int], sigma: float = 4.0) -> None:
        super().__init__()
        self.register_buffer("rows", _matrix(grid[0], size[0], sigma), persistent=False)  # (H, h)
        self.register_buffer("columns", _matrix(grid[1], size[1], sigma).T.contiguous(), persistent=False)  # (w, W)
        self.rows: torch.Tensor
        self.columns: torch.Tensor

    def forward(self, maps: torch.Tensor) -> torch.Tensor:
        """Return the maps in their new size: ``(B, h, w)`` -> ``(B, H, W)``."""
        return self.rows @ maps @ self.columns


def _matrix(cells: int, pixels: int, sigma: float) -> torch.Tensor:
    """Return the matrix of one side, shape ``(pixels, cells)``."""
    upsampled = F.interpolate(torch.eye(cells)[None], pixels, mode="linear", align_corners=False)[0]  # (cells, pixels)
    radius = min(int(4 * sigma), pixels - 1)
    kernel = get_gaussian_kernel1d(2 * radius + 1, sigma)[None]
    return F.conv1d(F.pad(upsampled, (radius, radius), mode="reflect")[:, None], kernel)[:, 0].T.contiguous()
