# Copyright (C) 2026 anomalib-fewshot contributors
# SPDX-License-Identifier: Apache-2.0

"""Antialiased resize in an exported graph, of matrix products alone."""

from typing import Any

import torch
from torchvision.transforms.v2 import Resize

STRIP = 16  # rows of the result per product: most weights of more rows are 0, and products of fewer are small


class ExportableResize(Resize):
    """torchvision's antialiased bilinear ``Resize``, whose exported form is that of :func:`resize`.

    ONNX has the attribute ``antialias``, but OpenVINO ignores it and TensorRT refuses it.

    Args:
        size (tuple[int, int]): Height and width of the result.
    """

    def __init__(self, size: tuple[int, int]) -> None:
        super().__init__(size, antialias=True)

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:  # noqa: ANN401
        """Resize as torchvision does, in an export by matrix products."""
        if torch.compiler.is_exporting():
            return resize(inpt, (self.size[0], self.size[1]))
        return super().transform(inpt, params)


def resize(images: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """Return images resized bilinearly with antialiasing, shape ``(..., H, W)``, which may be symbolic.

    Args:
        images (torch.Tensor): Images of floating point.
        size (tuple[int, int]): Height and width of the result.

    Example:
        >>> resize(torch.tensor([[0.0, 4.0, 8.0, 12.0]]), (1, 2))
        tensor([[2.8571, 9.1429]])
    """
    height, width = size
    return _resize_rows(_resize_rows(images, height).mT, width).mT


def _resize_rows(images: torch.Tensor, size: int) -> torch.Tensor:
    """Return images with ``size`` rows: ``(..., H, W)`` -> ``(..., size, W)``.

    Row j counts for row i of the result by a triangle: its centre is that of row i, its half width the larger of both
    rows' heights. In units of half a pixel of the finest grid all is integer: ``|(2j + 1) size - (2i + 1) H|``.
    """
    height, device = images.shape[-2], images.device
    strips = -(-size // STRIP)
    target = torch.arange(strips * STRIP, device=device).clamp(max=size - 1).view(strips, STRIP, 1)
    reach = height // size + 3  # rows that a triangle may take beyond its strip
    first = STRIP * height * torch.arange(strips, device=device) // size - reach
    source = first[:, None] + torch.arange(STRIP * height // size + 2 * reach, device=device)  # (strips, rows)
    distance = ((2 * source[:, None] + 1) * size - (2 * target + 1) * height).abs()  # (strips, STRIP, rows)
    half_width = 2 * torch.sym_max(height, size)
    inside = (source >= 0) & (source < height)
    weights = (half_width - distance).clamp(min=0) * inside[:, None] / half_width
    weights = (weights / weights.sum(-1, keepdim=True)).to(images.dtype)
    source = source.clamp(min=0).clamp(max=height - 1)
    resized = [weight @ images.index_select(-2, rows) for weight, rows in zip(weights, source, strict=True)]
    return torch.cat(resized, dim=-2)[..., :size, :]
