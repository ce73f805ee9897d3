# Copyright (C) 2026 anomalib-fewshot contributors
# SPDX-License-Identifier: Apache-2.0

"""Properties of an image file, or the reason why it cannot be read.

anomalib opens an image and converts it to RGB. 16-bit values are clipped to white, the EXIF orientation and
transparency are ignored, and a broken file ends the run with an error.
"""

import shlex
import struct
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image

TRANSPOSITIONS = {  # operation that makes the pixels upright, by EXIF orientation; 1 is upright
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
# Lowest range over the channels (0 to 255) of a colored pixel. JPEG artifacts in gray images are smaller.
COLOR_DIFFERENCE = 16
COLOR_FRACTION = 0.05  # an image with a larger fraction of colored pixels is a color image


@dataclass(frozen=True, slots=True)
class ImageInfo:
    """Properties of an image file. ``None`` where the pixels must be decoded to know it.

    Attributes:
        path (Path): The file.
        num_bytes (int): File size.
        fault (str): Why anomalib cannot read the file correctly, and what to do. Empty if it can.
        size (tuple[int, int]): Width and height.
        orientation (int): EXIF orientation, 1 if there is none.
        has_alpha (bool): Whether there is an alpha channel.
        has_hidden_rgb (bool | None): Whether transparent pixels have different colors.
        is_gray (bool | None): Whether the image is grayscale.
        num_pages (int): Number of pages of a TIFF file.
    """

    path: Path
    num_bytes: int
    fault: str = ""
    size: tuple[int, int] = (0, 0)
    orientation: int = 1
    has_alpha: bool = False
    has_hidden_rgb: bool | None = False
    is_gray: bool | None = None
    num_pages: int = 1

    @property
    def orientation_message(self) -> str:
        """Message that anomalib ignores the EXIF orientation, with the command that rotates the pixels."""
        return (
            f"relies on EXIF orientation {self.orientation}, which anomalib ignores. Rotate the pixels of all images "
            f"in its folder: python -m anomalib_fewshot.upright {shlex.quote(str(self.path.parent))}"
        )

    def upright(self) -> "ImageInfo":
        """Return the properties of the image that :func:`read_upright` returns."""
        width, height = self.size
        size = (height, width) if self.orientation >= 5 else self.size
        return replace(self, size=size, orientation=1)


def read_upright(path: Path, mode: str = "RGB") -> Image.Image:
    """Return an image with its EXIF orientation applied to the pixels.

    Args:
        path (Path): The file.
        mode (str): PIL mode of the result. Defaults to ``"RGB"``.

    Raises:
        OSError: If the file cannot be read. PIL also raises ``SyntaxError``, ``ValueError`` and others.
    """
    with Image.open(path) as file:
        image = file.convert(mode)  # decodes the whole file, because EXIF data may be at the end of a PNG
        orientation = _orientation(file)
    if orientation == 1:
        return image
    return image.transpose(TRANSPOSITIONS[orientation])


def read_image_info(path: Path, *, decode: bool) -> ImageInfo:
    """Return the properties of an image file. Faults of the file are in the result, not raised.

    Args:
        path (Path): The file.
        decode (bool): Decode the pixels. Otherwise they are decoded only if the end of the file is missing.
    """
    try:
        status = path.stat()
    except OSError as error:
        return ImageInfo(path, 0, f"cannot be read ({error.strerror}). Replace or remove it.")
    return _read_cached(path, status.st_mtime_ns, status.st_size, decode=decode)


@lru_cache(maxsize=2**15)
def _read_cached(path: Path, _mtime: int, num_bytes: int, *, decode: bool) -> ImageInfo:
    """Read each file only once per process, unless it changes."""
    if not num_bytes:
        return ImageInfo(path, 0, "is empty, 0 bytes. Replace or remove it.")
    try:
        with Image.open(path) as image:
            decode = decode or not _has_end(image, path, num_bytes)
            if decode:
                image.load()
            return _describe(image, path, num_bytes, decode=decode)
    except Exception as error:  # noqa: BLE001  for a broken file, PIL raises OSError, SyntaxError, ValueError and others
        reason = str(error).replace(repr(str(path)), "it").rstrip(".")
        return ImageInfo(path, num_bytes, f"cannot be read ({reason}). Replace or remove it.")


def _describe(image: Image.Image, path: Path, num_bytes: int, *, decode: bool) -> ImageInfo:
    has_alpha = image.has_transparency_data
    is_deep = image.mode[0] in "IF"  # 16 or 32 bits: anomalib clips values above 255
    is_gray = True if is_deep or image.mode in {"1", "L", "LA", "La"} else None
    fault = f"must have 8 bits per channel, got PIL mode {image.mode}. Convert all images." if is_deep else ""
    return ImageInfo(
        path,
        num_bytes,
        fault,
        image.size,
        _orientation(image),
        has_alpha,
        has_hidden_rgb=(_has_hidden_rgb(image) if decode else None) if has_alpha else False,
        is_gray=_is_gray(image) if decode and is_gray is None else is_gray,
        num_pages=getattr(image, "n_frames", 1) if image.format == "TIFF" else 1,
    )


def _has_end(image: Image.Image, path: Path, num_bytes: int) -> bool:
    """Return whether a file has the end marker or length of its format. If not, it may be truncated."""
    if image.format == "TIFF":
        tags = image.tag_v2  # type: ignore[attr-defined]
        offsets, counts = (tags.get(a, tags.get(b, ())) for a, b in ((273, 324), (279, 325)))  # strips or tiles
        return all(offset + count <= num_bytes for offset, count in zip(offsets, counts, strict=False))
    with path.open("rb") as file:
        head = file.read(8)
        file.seek(max(0, num_bytes - 16))
        tail = file.read()
    if image.format in {"JPEG", "MPO"}:
        return b"\xff\xd9" in tail
    if image.format == "PNG":
        return b"IEND" in tail
    if image.format == "WEBP":
        return struct.unpack("<I", head[4:])[0] + 8 <= num_bytes
    return image.format == "BMP" and struct.unpack("<I", head[2:6])[0] == num_bytes


def _orientation(image: Image.Image) -> int:
    """Return the EXIF orientation. 1 if there is none, and for TIFF, where PIL applies it."""
    if image.format == "TIFF":
        return 1
    try:
        exif = Image.Image.getexif(image)  # `PngImageFile.getexif` would decode the file
        orientation = exif.get(ExifTags.Base.Orientation, 1)
    except Exception:  # noqa: BLE001  broken EXIF data do not prevent reading the pixels
        return 1
    return orientation if orientation in TRANSPOSITIONS else 1


def _has_hidden_rgb(image: Image.Image) -> bool:
    """Return whether transparent pixels have different colors."""
    pixels = np.asarray(image.convert("RGBA"))
    hidden = pixels[pixels[..., 3] == 0, :3]
    return bool(hidden.size) and bool((hidden != hidden[0]).any())


def _is_gray(image: Image.Image) -> bool:
    pixels = np.asarray(image.resize((64, 64), Image.Resampling.NEAREST).convert("RGB"))
    return bool((np.ptp(pixels, axis=-1) > COLOR_DIFFERENCE).mean() <= COLOR_FRACTION)
