# Copyright (C) 2026 anomalib-fewshot contributors
# SPDX-License-Identifier: Apache-2.0

"""Check of masks: files that anomalib would read incorrectly."""

from collections.abc import Iterator, Mapping
from functools import lru_cache
from pathlib import Path

from PIL import Image

from .image import read_image_info
from .issue import ERROR, WARNING, DataIssue

MAX_MASK_FRACTION = 0.5  # a mask that marks a larger fraction of its image is probably inverted


def check_masks(masks: Mapping[str, str] | Mapping[Path, Path]) -> list[DataIssue]:
    """Return the issues of masks. The masks are decoded, and only the headers of their images are read.

    Args:
        masks (Mapping): Path of each mask, by the path of its image.
    """
    return [issue for path, mask in masks.items() for issue in _check_mask(Path(path), Path(mask))]


def _check_mask(path: Path, mask: Path) -> Iterator[DataIssue]:
    if not mask.is_file():
        yield DataIssue(mask, ERROR, f"does not exist, but is the mask of {path.name}. Add it.")
        return
    status = mask.stat()
    (width, height), fault, fraction = _read_mask(mask, status.st_mtime_ns, status.st_size)
    image = read_image_info(path, decode=False)
    image_width, image_height = image.size
    if fault:
        yield DataIssue(mask, ERROR, fault)
    elif image.orientation != 1:
        yield DataIssue(path, ERROR, image.orientation_message)
    elif image.size != (0, 0) and abs(width * image_height - height * image_width) > max(image.size):
        # A mask may be smaller than its image: the aspect ratios must be equal, up to the rounding of a pixel.
        sizes = f"{width} x {height} pixels, but its image has {image_width} x {image_height}"
        yield DataIssue(mask, ERROR, f"has {sizes}. Save it with the aspect ratio of its image.")
    elif not fraction:
        message = "is empty: no pixel is marked. Paint the defect white, or move its image to `good`."
        yield DataIssue(mask, ERROR, message)
    elif fraction > MAX_MASK_FRACTION:
        message = f"marks {fraction:.0%} of its image. If it is inverted, paint the defect white."
        kind = "masks mark most of their images. If they are inverted, paint the defects white"
        yield DataIssue(mask, WARNING, message, kind, f"{fraction:.0%}")


@lru_cache(maxsize=2**15)
def _read_mask(path: Path, _mtime: int, _num_bytes: int) -> tuple[tuple[int, int], str, float]:
    """Return the size of a mask, its fault, and the fraction of pixels that anomalib reads as anomalous."""
    info = read_image_info(path, decode=False)
    if info.orientation != 1:
        return info.size, info.orientation_message, 0
    try:
        with Image.open(path) as image:
            if info.has_alpha and image.convert("RGBA").getchannel("A").getextrema() != (255, 255):
                message = (
                    "must not be transparent, because anomalib ignores this. Save it in gray, with a white defect."
                )
                return image.size, message, 0
            histogram = image.convert("L").histogram()
            return image.size, "", 1 - histogram[0] / sum(histogram)
    except Exception:  # noqa: BLE001  PIL raises many types for a broken file
        return info.size, read_image_info(path, decode=True).fault, 0
