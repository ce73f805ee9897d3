# Copyright (C) 2026 anomalib-fewshot contributors
# SPDX-License-Identifier: Apache-2.0

"""Check of the pixel values of images before they are pre-processed."""

from collections.abc import Sequence
from math import isfinite

import torch

from anomalib_fewshot.errors import DataValidationError

TOLERANCE = 1e-3  # rounding of a resize
NUM_SHOWN = 3  # images that a message names


def check_pixels(images: torch.Tensor, paths: Sequence[str] | None = None, *, has_range: bool = True) -> None:
    """Raise if an image has pixel values that no photograph has.

    Args:
        images (torch.Tensor): Images before pre-processing, shape ``(B, 3, H, W)`` or ``(3, H, W)``.
        paths (Sequence[str] | None): Files of the images, which the message names. Defaults to ``None``: unknown.
        has_range (bool): Values must be between 0 and 1. Defaults to ``True``. ``False``: they must be finite.

    Raises:
        DataValidationError: If the images are not floating point, if a value is NaN or infinite, or, with
            ``has_range``, if one is below 0 or above 1.

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
        rule = "between 0 and 1" if has_range else "that are finite"
        shown = ", ".join(faults[:NUM_SHOWN]) + (", ..." if len(faults) > NUM_SHOWN else "")
        count = f"{len(faults)} that do not" if len(faults) > 1 else "1 that does not"
        msg = (
            f"Images must have pixel values {rule}, got {count}: {shown}. Divide 8-bit images by 255, and normalize "
            "images in the pre-processor only."
        )
        raise DataValidationError(msg)
