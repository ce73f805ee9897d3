# Copyright (C) 2026 anomalib-fewshot contributors
# SPDX-License-Identifier: Apache-2.0

"""Upsampling and Gaussian blur of anomaly maps in one linear operation."""

import torch
from kornia.filters import get_gaussian_kernel1d
from torch import nn
from torch.nn import functional as F  # noqa: N812


class SmoothUpsampling(nn.Module):
    """Bilinear upsampling followed by a Gaussian blur, for maps of a fixed size.

    Both operations are linear and separable. One matrix per axis therefore gives the same result as anomalib's
    ``GaussianBlur2d`` in a fraction of the time. The matrices are non-persistent buffers.

    Args:
        grid (tuple[int, int]): Input height h and width w.
        size (tuple[int, int]): Output height H and width W.
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
        """Return upsampled and blurred maps: ``(B, h, w)`` -> ``(B, H, W)``."""
        return self.rows @ maps @ self.columns


def _matrix(cells: int, pixels: int, sigma: float) -> torch.Tensor:
    """Return the matrix of one axis, shape ``(pixels, cells)``."""
    upsampled = F.interpolate(torch.eye(cells)[None], pixels, mode="linear", align_corners=False)[0]  # (cells, pixels)
    radius = min(int(4 * sigma), pixels - 1)
    kernel = get_gaussian_kernel1d(2 * radius + 1, sigma)[None]
    return F.conv1d(F.pad(upsampled, (radius, radius), mode="reflect")[:, None], kernel)[:, 0].T.contiguous()
