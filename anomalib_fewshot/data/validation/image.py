# Copyright (C) 2026 anomalib-fewshot contributors
# SPDX-License-Identifier: Apache-2.0

"""What a file says of a picture, and why it cannot be read if it cannot.

anomalib opens a picture and converts it to RGB: 16 bits are clipped to white, the EXIF orientation and transparency are
ignored, and a file that is broken ends the run.
"""

import shlex
import struct
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image

TRANSPOSITIONS = {  # what brings the pixels of each EXIF orientation upright; 1 is upright
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
COLOUR_DIFFERENCE = 16  # between the channels of a pixel in colour, of 255: JPEG leaves less in grey
COLOUR_SHARE = 0.05  # of the pixels, above which a picture is in colour


@dataclass(frozen=True, slots=True)
class Picture:
    """What is known of a picture. ``None`` is what its header does not say."""

    path: Path
    num_bytes: int
    fault: str = ""
    size: tuple[int, int] = (0, 0)
    orientation: int = 1
    has_alpha: bool = False
    has_hidden_rgb: bool | None = False
    is_grey: bool | None = None
    num_pages: int = 1

    @property
    def orientation_message(self) -> str:
        """Message that anomalib ignores the EXIF orientation, with the command that rotates the pixels."""
        return (
            f"relies on EXIF orientation {self.orientation}, which anomalib ignores. Rotate the pixels of all images "
            f"in its folder: python -m anomalib_fewshot.upright {shlex.quote(str(self.path.parent))}"
        )

    def upright(self) -> "Picture":
        """Return the description of the image as :func:`read_upright` reads it."""
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
        image = file.convert(mode)  # decodes the file, so that the end of a PNG, where EXIF may be, is read
        orientation = _orientation(file)
    if orientation == 1:
        return image
    return image.transpose(TRANSPOSITIONS[orientation])


def read_picture(path: Path, *, decode: bool) -> Picture:
    """Read a picture, or its header and its end alone.

    Args:
        path (Path): The file. What is wrong with it is in the result.
        decode (bool): Read all of it. Otherwise it is decoded only if its end is not there.
    """
    try:
        status = path.stat()
    except OSError as error:
        return Picture(path, 0, f"cannot be read ({error.strerror}). Replace it, or remove it.")
    return _read_cached(path, status.st_mtime_ns, status.st_size, decode=decode)


@lru_cache(maxsize=2**15)
def _read_cached(path: Path, _mtime: int, num_bytes: int, *, decode: bool) -> Picture:
    """Read a picture once for all runs of a process, as long as the file does not change."""
    if not num_bytes:
        return Picture(path, 0, "is empty, 0 bytes. Replace it, or remove it.")
    try:
        with Image.open(path) as image:
            decode = decode or not _has_end(image, path, num_bytes)
            if decode:
                image.load()
            return _describe(image, path, num_bytes, decode=decode)
    except Exception as error:  # noqa: BLE001  PIL raises OSError, SyntaxError, ValueError and others for a broken file
        reason = str(error).replace(repr(str(path)), "it").rstrip(".")
        return Picture(path, num_bytes, f"cannot be read ({reason}). Replace it, or remove it.")


def _describe(image: Image.Image, path: Path, num_bytes: int, *, decode: bool) -> Picture:
    has_alpha = image.has_transparency_data
    is_deep = image.mode[0] in "IF"  # 16 or 32 bits, of which anomalib's reader clips all above 255
    is_grey = True if is_deep or image.mode in {"1", "L", "LA", "La"} else None
    fault = f"must have 8 bits a channel, got PIL's mode {image.mode}. Convert all pictures alike." if is_deep else ""
    return Picture(
        path,
        num_bytes,
        fault,
        image.size,
        _orientation(image),
        has_alpha,
        has_hidden_rgb=(_hides_colour(image) if decode else None) if has_alpha else False,
        is_grey=_is_grey(image) if decode and is_grey is None else is_grey,
        num_pages=getattr(image, "n_frames", 1) if image.format == "TIFF" else 1,
    )


def _has_end(image: Image.Image, path: Path, num_bytes: int) -> bool:
    """Return whether a file ends as its format does. If not, it is perhaps cut off: decoding it will tell."""
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
    """Return the EXIF orientation, 1 if there is none or if it is applied: PIL does so by itself with TIFF."""
    if image.format == "TIFF":
        return 1
    try:
        orientation = Image.Image.getexif(image).get(ExifTags.Base.Orientation, 1)  # of a PNG, its own would decode
    except Exception:  # noqa: BLE001  of a broken EXIF, which does not hinder a reader
        return 1
    return orientation if orientation in TRANSPOSITIONS else 1


def _hides_colour(image: Image.Image) -> bool:
    """Return whether transparent pixels have different colours."""
    pixels = np.asarray(image.convert("RGBA"))
    hidden = pixels[pixels[..., 3] == 0, :3]
    return bool(hidden.size) and bool((hidden != hidden[0]).any())


def _is_grey(image: Image.Image) -> bool:
    pixels = np.asarray(image.resize((64, 64), Image.Resampling.NEAREST).convert("RGB"))
    return bool((np.ptp(pixels, axis=-1) > COLOUR_DIFFERENCE).mean() <= COLOUR_SHARE)
