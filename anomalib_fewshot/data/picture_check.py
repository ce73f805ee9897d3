# Copyright (C) 2026 anomalib-fewshot contributors
# SPDX-License-Identifier: Apache-2.0

"""One check of pictures before anything is trained: files that anomalib cannot read, or reads as something else.

anomalib opens a picture and converts it to RGB: 16 bits are clipped to white, the EXIF orientation and transparency are
ignored, and a file that is broken ends the run. All of it is found here, at once and by name, without a model.
"""

import logging
import struct
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from statistics import median_low

import numpy as np
from PIL import ExifTags, Image
from torchvision.datasets.folder import IMG_EXTENSIONS

from .manifest import sha256

logger = logging.getLogger(__name__)

ASPECT_FACTOR = 1.5  # width / height beside the support's, above which pictures are not taken alike
AREA_FACTOR = 4.0  # the same of the number of pixels
COLOUR_DIFFERENCE = 16  # between the channels of a pixel in colour, of 255: JPEG leaves less in grey
COLOUR_SHARE = 0.05  # of the pixels, above which a picture is in colour
LARGE_MASK = 0.5  # share of a picture that no defect fills, if the mask is not inverted
NUM_TRANSPARENT = 32  # pictures with an alpha channel to decode where the others are not
NUM_SHOWN = 20  # findings in a message
NO_PICTURES = {"thumbs.db", "desktop.ini"}  # of the system, as files whose name begins with a dot
ERROR, WARNING = "error", "warning"

Pictures = str | Path | Iterable[str | Path]


@dataclass(frozen=True)
class Finding:
    """A fault of a file, or of the files of a folder.

    Args:
        path (Path): The file or folder.
        severity (str): ``"error"``: it cannot be used. ``"warning"``: it can, and is perhaps not as it is meant.
        message (str): What is wrong and what to do.
    """

    path: Path
    severity: str
    message: str

    def __str__(self) -> str:
        """Return one line."""
        return f"{self.path}: {self.message}"


def check_pictures(
    support: Pictures,
    new: Pictures = (),
    masks: Mapping[str, str] | Mapping[Path, Path] | None = None,
    *,
    decode: bool = True,
) -> list[Finding]:
    """Return all that is wrong with the pictures of a support and with those that are to be scored.

    Args:
        support (Pictures): A folder, a file or several of them. They are all decoded.
        new (Pictures): The same of the pictures to score. Defaults to none.
        masks (Mapping | None): Mask of anomalous pictures by the picture's path. Defaults to ``None``.
        decode (bool): Decode the new pictures too. Otherwise only their headers and ends are read, and 32 pictures
            with an alpha channel: it is not found that some are in colour among grey ones, or are broken in the middle.
            Defaults to ``True``.

    Returns:
        list[Finding]: Errors first, those of the support before others.

    Example:
        >>> check_pictures("no_such_folder")[0].message
        'does not exist. Give a folder or a file that does.'
    """
    (known, skipped), (others, also_skipped) = _list_pictures(support), _list_pictures(new)
    first = [_read(path, decode=True) for path in known]
    second = [_read(path, decode=decode) for path in others]
    findings = [*skipped, *also_skipped]
    findings += [finding for picture in [*first, *_with_transparency(second)] for finding in _check_alone(picture)]
    first, second = ([picture for picture in part if not picture.fault] for part in (first, second))
    if first:
        findings += _check_alike(first, second)
    findings += [*_check_copies(first, second), *_check_stems([*known, *others]), *check_masks(masks or {})]
    return sorted(dict.fromkeys(findings), key=lambda finding: finding.severity)


def check_masks(masks: Mapping[str, str] | Mapping[Path, Path]) -> list[Finding]:
    """Return what is wrong with masks: they are decoded, of their pictures the headers alone are read.

    Args:
        masks (Mapping): Path of the mask by the path of its picture.
    """
    return [finding for path, mask in masks.items() for finding in _check_mask(Path(path), Path(mask))]


def check_left_out(folders: Iterable[Path]) -> list[Finding]:
    """Return the files in folders that anomalib takes for no pictures, or for pictures that they are not.

    Args:
        folders (Iterable[Path]): Folders, searched without those in them.
    """
    return [finding for folder in folders for finding in _sort_out(_files(folder.iterdir()))[1]]


def report(findings: Iterable[Finding], known: Collection[Finding] = ()) -> None:
    """Log the warnings and refuse the errors.

    Args:
        findings (Iterable[Finding]): Findings of one check.
        known (Collection[Finding]): Those that were logged before. Defaults to none.

    Raises:
        ValueError: If there is an error. It names them all.
    """
    findings = [finding for finding in dict.fromkeys(findings) if finding not in known]
    errors = [str(finding) for finding in findings if finding.severity == ERROR]
    if errors:
        msg = f"Pictures must be such that anomalib reads them as they are meant, got {len(errors)} that are not:"
        raise ValueError("\n  ".join([msg, *_shortened(errors)]))
    for line in _shortened([str(finding) for finding in findings]):
        logger.warning(line)


def _shortened(lines: list[str]) -> list[str]:
    more = [f"... and {len(lines) - NUM_SHOWN} more."] if len(lines) > NUM_SHOWN else []
    return [*lines[:NUM_SHOWN], *more]


# Files


def _list_pictures(pictures: Pictures) -> tuple[list[Path], list[Finding]]:
    """Return the files that anomalib would read, and what is wrong with the others."""
    files: list[Path] = []
    findings: list[Finding] = []
    for path in [Path(pictures)] if isinstance(pictures, str | Path) else map(Path, pictures):
        if not path.exists():
            findings.append(Finding(path, ERROR, "does not exist. Give a folder or a file that does."))
            continue
        found, left_out = _sort_out(_files(path.rglob("*")) if path.is_dir() else [path])
        files += found
        findings += left_out
        if path.is_dir() and not found:
            findings.append(Finding(path, ERROR, f"has no pictures. Add some, of {', '.join(IMG_EXTENSIONS)}."))
    return list(dict.fromkeys(files)), findings


def _files(paths: Iterable[Path]) -> list[Path]:
    return sorted(path for path in paths if path.is_file() or not path.exists())  # or a link to nothing


def _sort_out(files: Iterable[Path]) -> tuple[list[Path], list[Finding]]:
    """Return the pictures among files, and a line for the others of each folder."""
    pictures, notes, unknown = [], defaultdict(list), defaultdict(list)
    for path in files:
        if path.suffix.lower() in IMG_EXTENSIONS:
            if path.name.startswith("._"):
                notes[path.parent].append(path.name)
            else:
                pictures.append(path)
        elif not path.name.startswith(".") and path.name.lower() not in NO_PICTURES:
            unknown[path.parent].append(path.name)
    no_pictures = "notes of macOS that anomalib would take for pictures. Delete them"
    not_read = f"files left out: anomalib reads {', '.join(IMG_EXTENSIONS)}. Convert what is a picture"
    return pictures, [
        *(Finding(folder, ERROR, _count(names, no_pictures)) for folder, names in notes.items()),
        *(Finding(folder, WARNING, _count(names, not_read)) for folder, names in unknown.items()),
    ]


def _count(names: list[str], what: str) -> str:
    shown = ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
    return f"{len(names)} {what}: {shown}."


# One picture


@dataclass(frozen=True)
class _Picture:
    """What is known of a picture. ``None`` is what its header does not say."""

    path: Path
    num_bytes: int
    fault: str = ""
    size: tuple[int, int] = (0, 0)
    orientation: int = 1
    has_alpha: bool = False
    hides_colour: bool | None = False
    is_grey: bool | None = None
    num_pages: int = 1


def _read(path: Path, *, decode: bool) -> _Picture:
    try:
        status = path.stat()
    except OSError as error:
        return _Picture(path, 0, f"cannot be read ({error.strerror}). Replace it, or remove it.")
    return _read_cached(path, status.st_mtime_ns, status.st_size, decode=decode)


@lru_cache(maxsize=2**15)
def _read_cached(path: Path, _mtime: int, num_bytes: int, *, decode: bool) -> _Picture:
    """Read a picture once for all runs of a process, as long as the file does not change."""
    if not num_bytes:
        return _Picture(path, 0, "is empty, 0 bytes. Replace it, or remove it.")
    try:
        with Image.open(path) as image:
            decode = decode or not _has_end(image, path, num_bytes)
            if decode:
                image.load()
            return _describe(image, path, num_bytes, decode=decode)
    except Exception as error:  # noqa: BLE001  PIL raises OSError, SyntaxError, ValueError and others for a broken file
        reason = str(error).replace(repr(str(path)), "it").rstrip(".")
        return _Picture(path, num_bytes, f"cannot be read ({reason}). Replace it, or remove it.")


def _describe(image: Image.Image, path: Path, num_bytes: int, *, decode: bool) -> _Picture:
    has_alpha = image.has_transparency_data
    is_deep = image.mode[0] in "IF"  # 16 or 32 bits, of which anomalib's reader clips all above 255
    is_grey = True if is_deep or image.mode in {"1", "L", "LA", "La"} else None
    fault = f"must have 8 bits a channel, got PIL's mode {image.mode}. Convert all pictures alike." if is_deep else ""
    return _Picture(
        path,
        num_bytes,
        fault,
        image.size,
        _orientation(image),
        has_alpha,
        hides_colour=(_hides_colour(image) if decode else None) if has_alpha else False,
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
    return orientation if orientation in range(2, 9) else 1


def _hides_colour(image: Image.Image) -> bool:
    """Return whether transparent pixels have different colours."""
    pixels = np.asarray(image.convert("RGBA"))
    hidden = pixels[pixels[..., 3] == 0, :3]
    return bool(hidden.size) and bool((hidden != hidden[0]).any())


def _is_grey(image: Image.Image) -> bool:
    pixels = np.asarray(image.resize((64, 64), Image.Resampling.NEAREST).convert("RGB"))
    return bool((np.ptp(pixels, axis=-1) > COLOUR_DIFFERENCE).mean() <= COLOUR_SHARE)


def _with_transparency(pictures: Sequence[_Picture]) -> Iterator[_Picture]:
    """Yield the pictures, of which some with an alpha channel are decoded if none was."""
    left = NUM_TRANSPARENT
    for picture in pictures:
        if picture.hides_colour is None and left:
            left -= 1
            yield _read(picture.path, decode=True)
        else:
            yield picture


def _check_alone(picture: _Picture) -> Iterator[Finding]:
    if picture.fault:
        yield Finding(picture.path, ERROR, picture.fault)
    if picture.orientation != 1:
        yield Finding(picture.path, ERROR, _turned(picture.orientation))
    if picture.hides_colour:
        message = "has colours below its transparent pixels, which anomalib sees. Put all pictures on one background."
        yield Finding(picture.path, WARNING, message)
    if picture.num_pages > 1:
        message = f"has {picture.num_pages} pages, of which anomalib reads the first. Save each as a file."
        yield Finding(picture.path, WARNING, message)


def _turned(orientation: int) -> str:
    return (
        f"is upright by its EXIF orientation {orientation} alone, which anomalib ignores. "
        "Turn its pixels, for example by `mogrify -auto-orient`."
    )


# Pictures beside others


def _check_alike(support: Sequence[_Picture], new: Sequence[_Picture]) -> Iterator[Finding]:
    """Yield pictures that differ from most of the support in size, aspect or colour."""
    usual_area, usual_aspect = (median_low(map(measure, support)) for measure in (_area, _aspect))
    width, height = min(support, key=lambda picture: abs(np.log(_area(picture) / usual_area))).size
    number = sum(bool(picture.is_grey) for picture in support)
    is_grey = number > len(support) / 2
    for picture in [*support, *new]:
        own = f"{picture.size[0]} x {picture.size[1]} pixels, where the support has {width} x {height}"
        if _ratio(_aspect(picture), usual_aspect) > ASPECT_FACTOR:
            yield Finding(picture.path, WARNING, f"has another shape, {own}. Crop or turn it as the others.")
        elif _ratio(_area(picture), usual_area) > AREA_FACTOR:
            yield Finding(picture.path, WARNING, f"has another size, {own}. Take all pictures in one size.")
        if picture.is_grey is not None and picture.is_grey != is_grey:
            kinds = ("in colour", "grey") if is_grey else ("grey", "in colour")
            message = f"is {kinds[0]} and the support {kinds[1]}. Take all pictures in one way."
            yield Finding(picture.path, WARNING, message)


def _area(picture: _Picture) -> float:
    return picture.size[0] * picture.size[1]


def _aspect(picture: _Picture) -> float:
    return picture.size[0] / picture.size[1]


def _ratio(first: float, second: float) -> float:
    return max(first / second, second / first)


def _check_copies(support: Sequence[_Picture], new: Sequence[_Picture]) -> Iterator[Finding]:
    """Yield pictures with the bytes of one of the support. Only files of equal length are read for that."""
    first: dict[str, Path] = {}
    for picture in support:
        original = first.setdefault(sha256(picture.path), picture.path)
        if original != picture.path:
            message = f"is the same picture as {original.name}: it adds nothing to the support. Replace it."
            yield Finding(picture.path, WARNING, message)
    lengths = {picture.num_bytes for picture in support}
    for picture in new:
        twin = first.get(sha256(picture.path)) if picture.num_bytes in lengths else None
        if twin is not None:
            message = f"is the support's picture {twin}, so its score is too low. Remove it from one of the two."
            yield Finding(picture.path, WARNING, message)


def _check_stems(paths: Iterable[Path]) -> Iterator[Finding]:
    first: dict[Path, Path] = {}
    for path in dict.fromkeys(paths):
        other = first.setdefault(path.with_suffix(""), path)
        if other != path:
            message = f"differs from {other.name} by its suffix alone, so that results may mix. Rename one."
            yield Finding(path, WARNING, message)


# Masks


def _check_mask(path: Path, mask: Path) -> Iterator[Finding]:
    if not mask.is_file():
        yield Finding(mask, ERROR, f"does not exist, as the mask of {path.name}. Add it.")
        return
    status = mask.stat()
    (width, height), fault, share = _read_mask(mask, status.st_mtime_ns, status.st_size)
    picture = _read(path, decode=False)
    whole = picture.size
    if fault:
        yield Finding(mask, ERROR, fault)
    elif picture.orientation != 1:
        yield Finding(path, ERROR, _turned(picture.orientation))
    elif all(whole) and abs(width * whole[1] - height * whole[0]) > max(whole):  # a mask may be smaller, and rounded
        message = f"has {width} x {height} pixels, its picture {whole[0]} x {whole[1]}. Save it in its picture's shape."
        yield Finding(mask, ERROR, message)
    elif not share:
        yield Finding(mask, ERROR, "marks nothing. Paint the defect white, or move its picture to the good ones.")
    elif share > LARGE_MASK:
        yield Finding(mask, WARNING, f"marks {share:.0%} of its picture. If it is inverted, paint the defect white.")


@lru_cache(maxsize=2**15)
def _read_mask(path: Path, _mtime: int, _num_bytes: int) -> tuple[tuple[int, int], str, float]:
    """Return the size of a mask, what is wrong with it, and the share of its pixels that anomalib takes for defects."""
    picture = _read(path, decode=False)
    if picture.orientation != 1:
        return picture.size, _turned(picture.orientation), 0
    try:
        with Image.open(path) as image:
            if picture.has_alpha and image.convert("RGBA").getchannel("A").getextrema() != (255, 255):
                message = "must have no transparency, which anomalib ignores. Save it grey, with the defect white."
                return image.size, message, 0
            histogram = image.convert("L").histogram()
            return image.size, "", 1 - histogram[0] / sum(histogram)
    except Exception:  # noqa: BLE001  as above
        return picture.size, _read(path, decode=True).fault, 0
