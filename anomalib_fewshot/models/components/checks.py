# Copyright (C) 2026 anomalib-fewshot contributors
# SPDX-License-Identifier: Apache-2.0

"""Argument validation."""

from collections.abc import Sequence

from anomalib_fewshot.errors import ArgumentError


def check_at_least(minimum: float, **values: float | None) -> None:
    """Check that arguments are not below a minimum.

    Args:
        minimum (float): Minimum.
        **values (float | None): Argument values by name. ``None`` is not checked.

    Raises:
        ArgumentError: If a value is below the minimum.
    """
    for name, value in values.items():
        if value is not None and value < minimum:
            msg = f"`{name}` must be at least {minimum}, got {value}."
            raise ArgumentError(msg)


def height_and_width(image_size: int | Sequence[int]) -> tuple[int, int]:
    """Convert ``image_size`` to (height, width). A single number means a square.

    Raises:
        ArgumentError: If the height or the width is below 32.
    """
    height, width = (image_size, image_size) if isinstance(image_size, int) else image_size
    if min(height, width) < 32:
        msg = f"`image_size` must be at least 32, got {image_size}."
        raise ArgumentError(msg)
    return height, width
