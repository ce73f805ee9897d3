# Copyright (C) 2026 anomalib-fewshot contributors
# SPDX-License-Identifier: Apache-2.0

"""Check of the pixel values of images before they are pre-processed."""

from collections.abc import Sequence
from math import isfinite

import torch

from anomalib_fewshot.errors import DataValidationError

TOLERANCE = 1e-3  # rounding of a resize
NUM_SHOWN = 3  # highest number of images in a message


def check_pixels(images: torch.Tensor, paths: Sequence[str] | None = None, *, has_range: bool = True) -> None:
    """Raise an error if an image has invalid pixel values.

    Args:
        images (torch.Tensor): Images before pre-processing, shape ``(B, 3, H, W)`` or ``(3, H, W)``.
        paths (Sequence[str] | None): Files of the images, for the error message. Defaults to ``None``: unknown.
        has_range (bool): Require values between 0 and 1. ``False``: require finite values. Defaults to ``True``.

    Raises:
        DataValidationError: If the images are not floating point, if a value is NaN or infinite, or if
            ``has_range`` is true and a value is below 0 or above 1.

    Example:
        >>> check_pixels(torch.full((1, 3, 2, 2), 0.5))
        >>> check_pixels(torch.full((1, 3, 2, 2), 255.0), has_range=False)
    """
    if not images.is_floating_point():
        msg = f"Images must be floating point with values between 0 and 1, got {images.dtype}. Divide them by 255."
        raise DataValidationError(msg)
    lowest, highest = images.reshape(-1, images.shape[-3:].numel()).aminmax(dim=1)
    low, high = (-TOLERANCE, 1 + TOLERANCE) if has_range else (float("-inf"), float("inf"))
    faults = []
    for index, (least, most) in enumerate(torch.stack([lowest, highest], dim=1).tolist()):  # one copy from a GPU
        if not (isfinite(least) and isfinite(most) and low <= least and most <= high):
            name = paths[index] if paths and index < len(paths) else f"image {index} of the batch"
            faults.append(f"{name} ({least:.4g} to {most:.4g})")
    if faults:
        rule = "pixel values between 0 and 1" if has_range else "finite pixel values"
        shown = ", ".join(faults[:NUM_SHOWN]) + (", ..." if len(faults) > NUM_SHOWN else "")
        msg = (
            f"Images must have {rule}, got other values in {len(faults)}: {shown}. Divide 8-bit images by 255, and "
            "normalize images in the pre-processor only."
        )
        raise DataValidationError(msg)
