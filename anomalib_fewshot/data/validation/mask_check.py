# Copyright (C) 2026 anomalib-fewshot contributors
# SPDX-License-Identifier: Apache-2.0

"""The check of masks: those that anomalib would read as something else."""

from collections.abc import Iterator, Mapping
from functools import lru_cache
from pathlib import Path

from PIL import Image

from .image import read_picture
from .issue import ERROR, WARNING, DataIssue

LARGE_MASK = 0.5  # share of a picture that no defect fills, if the mask is not inverted


def check_masks(masks: Mapping[str, str] | Mapping[Path, Path]) -> list[DataIssue]:
    """Return what is wrong with masks: they are decoded, of their pictures the headers alone are read.

    Args:
        masks (Mapping): Path of the mask by the path of its picture.
    """
    return [issue for path, mask in masks.items() for issue in _check_mask(Path(path), Path(mask))]


def _check_mask(path: Path, mask: Path) -> Iterator[DataIssue]:
    if not mask.is_file():
        yield DataIssue(mask, ERROR, f"does not exist, as the mask of {path.name}. Add it.")
        return
    status = mask.stat()
    (width, height), fault, share = _read_mask(mask, status.st_mtime_ns, status.st_size)
    picture = read_picture(path, decode=False)
    whole = picture.size
    if fault:
        yield DataIssue(mask, ERROR, fault)
    elif picture.orientation != 1:
        yield DataIssue(path, ERROR, picture.orientation_message)
    elif all(whole) and abs(width * whole[1] - height * whole[0]) > max(whole):  # a mask may be smaller, and rounded
        message = f"has {width} x {height} pixels, its picture {whole[0]} x {whole[1]}. Save it in its picture's shape."
        yield DataIssue(mask, ERROR, message)
    elif not share:
        yield DataIssue(mask, ERROR, "marks nothing. Paint the defect white, or move its picture to the good ones.")
    elif share > LARGE_MASK:
        message = f"marks {share:.0%} of its picture. If it is inverted, paint the defect white."
        kind = "masks mark most of their images. If they are inverted, paint the defects white"
        yield DataIssue(mask, WARNING, message, kind, f"{share:.0%}")


@lru_cache(maxsize=2**15)
def _read_mask(path: Path, _mtime: int, _num_bytes: int) -> tuple[tuple[int, int], str, float]:
    """Return the size of a mask, what is wrong with it, and the share of its pixels that anomalib takes for defects."""
    picture = read_picture(path, decode=False)
    if picture.orientation != 1:
        return picture.size, picture.orientation_message, 0
    try:
        with Image.open(path) as image:
            if picture.has_alpha and image.convert("RGBA").getchannel("A").getextrema() != (255, 255):
                message = "must have no transparency, which anomalib ignores. Save it grey, with the defect white."
                return image.size, message, 0
            histogram = image.convert("L").histogram()
            return image.size, "", 1 - histogram[0] / sum(histogram)
    except Exception:  # noqa: BLE001  as above
        return picture.size, read_picture(path, decode=True).fault, 0
