# Copyright (C) 2026 anomalib-fewshot contributors
# SPDX-License-Identifier: Apache-2.0

"""Antialiased resize for exported graphs, computed with matrix products."""

from typing import Any

import torch
from torchvision.transforms.v2 import Resize

STRIP = 16  # output rows per product: larger strips multiply mostly zeros, smaller ones are inefficient


class ExportableResize(Resize):
    """torchvision's antialiased bilinear ``Resize``, exported as :func:`resize`.

    ONNX has the attribute ``antialias``, but OpenVINO ignores it and TensorRT rejects it.

    Args:
        size (tuple[int, int]): Height and width of the result.
    """

    def __init__(self, size: tuple[int, int]) -> None:
        super().__init__(size, antialias=True)

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:  # noqa: ANN401
        """Return the resized images. During an export, use :func:`resize` instead of torchvision's operator."""
        if torch.compiler.is_exporting():
            return resize(inpt, (self.size[0], self.size[1]))
        return super().transform(inpt, params)


def resize(images: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """Return bilinearly resized images with antialiasing, shape ``(..., H, W)``. H and W may be symbolic.

    Args:
        images (torch.Tensor): Floating-point images.
        size (tuple[int, int]): Height and width of the result.

    Example:
        >>> resize(torch.tensor([[0.0, 4.0, 8.0, 12.0]]), (1, 2))
        tensor([[2.8571, 9.1429]])
    """
    height, width = size
    return _resize_rows(_resize_rows(images, height).mT, width).mT


def _resize_rows(images: torch.Tensor, size: int) -> torch.Tensor:
    """Return images with ``size`` rows: ``(..., H, W)`` -> ``(..., size, W)``.

    The weight of input row j for output row i is a triangle filter. It is centered on row i, and its half width is the
    height of an input or output row, whichever is larger. Scaled by ``2 * size * H``, the distance of the rows is the
    integer ``|(2j + 1) size - (2i + 1) H|``.
    """
    height, device = images.shape[-2], images.device
    strips = -(-size // STRIP)
    target = torch.arange(strips * STRIP, device=device).clamp(max=size - 1).view(strips, STRIP, 1)
    reach = height // size + 3  # input rows beyond the strip that the filter may cover
    first = STRIP * height * torch.arange(strips, device=device) // size - reach
    source = first[:, None] + torch.arange(STRIP * height // size + 2 * reach, device=device)  # (strips, rows)
    distance = ((2 * source[:, None] + 1) * size - (2 * target + 1) * height).abs()  # (strips, STRIP, rows)
    half_width: Any = 2 * torch.sym_max(height, size)  # an integer, symbolic in an export
    inside = (source >= 0) & (source < height)
    weights: torch.Tensor = (half_width - distance).clamp(min=0) * inside[:, None] / half_width
    weights = (weights / weights.sum(-1, keepdim=True)).to(images.dtype)
    source = source.clamp(min=0).clamp(max=height - 1)
    resized = [weight @ images.index_select(-2, rows) for weight, rows in zip(weights, source, strict=True)]
    return torch.cat(resized, dim=-2)[..., :size, :]
