# Copyright (C) 2026 anomalib-fewshot contributors
# SPDX-License-Identifier: Apache-2.0

"""A region of all pictures that does not count: a clock, a label, a neighbour of the part."""

from pathlib import Path

import numpy as np
import torch
from torch.nn import functional as F  # noqa: N812

from anomalib_fewshot.data.validation.image import read_upright

GREY = 0.5  # of what is painted over: equal in all pictures, and known before any is seen


class IgnoreMask:
    """Paints a region over, in good and new pictures alike, so that no patch there differs from another.

    It is a fixed change of all pictures, which leaves them exchangeable: what thresholds guarantee holds.

    Args:
        path (Path): Mask, white where pictures do not count. It is resized to the pictures.

    Raises:
        ValueError: If it is not a picture, marks nothing or marks all.
    """

    def __init__(self, path: Path) -> None:
        try:
            mask = np.asarray(read_upright(path, "L")) > 127
        except (OSError, SyntaxError) as error:
            msg = f"`ignore` must be a mask, got {path}, which cannot be read ({error}). Give a PNG."
            raise ValueError(msg) from error
        if mask.all() or not mask.any():
            colour = "white" if mask.all() else "black"
            msg = (
                f"`ignore` must mark a part of the picture, got {path}, which is all {colour}. Paint white what does "
                "not count, and the rest black."
            )
            raise ValueError(msg)
        self.mask = torch.from_numpy(mask)  # (H, W)

    def resized(self, size: tuple[int, int]) -> torch.Tensor:
        """Return the mask in another size, where a pixel is in it if a part of it is: ``(H, W)`` -> ``(h, w)``."""
        return F.adaptive_max_pool2d(self.mask[None].float(), size)[0] > 0

    def apply(self, image: torch.Tensor) -> torch.Tensor:
        """Return an image of shape ``(3, H, W)`` with the region in one colour."""
        return image.masked_fill(self.resized((image.shape[-2], image.shape[-1])), GREY)

    def clear(self, heat: np.ndarray) -> np.ndarray:
        """Return a map of shape ``(H, W)`` without the region."""
        size = (heat.shape[0], heat.shape[1])
        return np.where(self.resized(size).numpy(), 0, heat)
