# Copyright (C) 2026 anomalib-fewshot contributors
# SPDX-License-Identifier: Apache-2.0

"""Mask for a region to ignore, such as a clock, a label or a neighboring part."""

from collections.abc import Sequence
from math import ceil
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch.nn import functional as F  # noqa: N812

from anomalib_fewshot.atomic import complete_file
from anomalib_fewshot.data.validation.image import read_upright
from anomalib_fewshot.errors import ArgumentError, DataValidationError

MASK = "ignore.png"  # file in the folder of a run
GRAY = 0.5  # a constant, so the fill value does not depend on the pictures


def write_mask(path: Path, size: tuple[int, int], rectangles: Sequence[tuple[float, float, float, float]]) -> None:
    """Write a mask image that is white in rectangles.

    Args:
        path (Path): The file.
        size (tuple[int, int]): Width and height of the mask in pixels.
        rectangles (Sequence[tuple[float, float, float, float]]): x, y, width and height as fractions of the image.

    Raises:
        ArgumentError: If a rectangle lies outside the image, or if the mask would cover all of it.
    """
    width, height = size
    mask = np.zeros((height, width), dtype=np.uint8)
    for x, y, w, h in rectangles:
        if not (0 <= x < 1 and 0 <= y < 1 and 0 < w <= 1 and 0 < h <= 1):
            msg = f"Rectangles must be x, y, width and height between 0 and 1, got {(x, y, w, h)}."
            raise ArgumentError(msg)
        mask[round(y * height) : ceil((y + h) * height), round(x * width) : ceil((x + w) * width)] = 255
    if mask.all():
        msg = "The region to ignore must leave a part of the picture, got rectangles that cover all of it."
        raise ArgumentError(msg)
    with complete_file(path) as part:
        Image.fromarray(mask).save(part, format="PNG")


class IgnoreMask:
    """Gray out a region in all pictures, good and new.

    All pictures are changed in the same way and stay exchangeable, so the guarantee of the thresholds still holds.

    Args:
        path (Path): Mask image, white in the region to ignore. It is resized to each picture.

    Raises:
        DataValidationError: If the file cannot be read, or if the mask is entirely black or white.
    """

    def __init__(self, path: Path) -> None:
        try:
            mask = np.asarray(read_upright(path, "L")) > 127
        except (OSError, SyntaxError) as error:
            msg = f"`ignore` must be a readable mask image, got {path} ({error}). Provide a PNG file."
            raise DataValidationError(msg) from error
        if mask.all() or not mask.any():
            color = "white" if mask.all() else "black"
            msg = (
                f"`ignore` must contain black and white regions, got {path}, which is all {color}. Paint the region "
                "to ignore white and the rest black."
            )
            raise DataValidationError(msg)
        self.mask = torch.from_numpy(mask)  # (H, W)

    def resized(self, size: tuple[int, int]) -> torch.Tensor:
        """Return the mask resized to ``(h, w)``. A pixel is set if any part of it is masked."""
        return F.adaptive_max_pool2d(self.mask[None].float(), size)[0] > 0

    def apply(self, image: torch.Tensor) -> torch.Tensor:
        """Return an image of shape ``(3, H, W)`` with the region grayed out."""
        return image.masked_fill(self.resized((image.shape[-2], image.shape[-1])), GRAY)

    def clear(self, heat: np.ndarray) -> np.ndarray:
        """Return an anomaly map of shape ``(H, W)`` with zeros in the region."""
        size = (heat.shape[0], heat.shape[1])
        return np.where(self.resized(size).numpy(), 0, heat)
