# Copyright (C) 2026 anomalib-fewshot contributors
# SPDX-License-Identifier: Apache-2.0

"""One check of pictures before anything is trained: files that anomalib cannot read, or reads as something else.

All is found here, at once and by name, without a model. What a file says of itself is in `image.py`, masks are in
`mask_check.py`.
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import median_low

from torchvision.datasets.folder import IMG_EXTENSIONS

from anomalib_fewshot.data.manifest import sha256

from .image import Picture, read_picture
from .issue import ERROR, WARNING, DataIssue
from .mask_check import check_masks

ASPECT_FACTOR = 1.5  # width / height beside the support's, above which pictures are not taken alike
AREA_FACTOR = 4.0  # the same of the number of pixels
NUM_TRANSPARENT = 32  # pictures with an alpha channel to decode where the others are not
SYSTEM_FILES = {"thumbs.db", "desktop.ini"}  # of the system, as files whose name begins with a dot

Pictures = str | Path | Iterable[str | Path]


def check_pictures(
    support: Pictures,
    new: Pictures = (),
    masks: Mapping[str, str] | Mapping[Path, Path] | None = None,
    *,
    decode: bool = True,
    upright: bool = False,
) -> list[DataIssue]:
    """Return all that is wrong with the pictures of a support and with those that are to be scored.

    Args:
        support (Pictures): A folder, a file or several of them. They are all decoded.
        new (Pictures): The same of the pictures to score. Defaults to none.
        masks (Mapping | None): Mask of anomalous pictures by the picture's path. Defaults to ``None``.
        decode (bool): Decode the new pictures too. Otherwise only their headers and ends are read, and 32 pictures
            with an alpha channel: it is not found that some are in colour among grey ones, or are broken in the middle.
            Defaults to ``True``.
        upright (bool): The images will be read by their EXIF orientation, which anomalib itself ignores. Otherwise an
            orientation other than 1 is an error. Defaults to ``False``.

    Returns:
        list[DataIssue]: Errors first, those of the support before others.

    Example:
        >>> check_pictures("no_such_folder")[0].message
        'does not exist. Give a folder or a file that does.'
    """
    (known, skipped), (others, also_skipped) = _list_pictures(support), _list_pictures(new)
    first = [read_picture(path, decode=True) for path in known]
    second = [read_picture(path, decode=decode) for path in others]
    if upright:
        first, second = [picture.upright() for picture in first], [picture.upright() for picture in second]
    issues = [*skipped, *also_skipped]
    issues += [issue for picture in [*first, *_with_transparency(second)] for issue in _check_alone(picture)]
    first, second = ([picture for picture in part if not picture.fault] for part in (first, second))
    if first:
        issues += [*_check_sizes(first, second), *_check_colour(first, second)]
    issues += [*_check_copies(first, second), *_check_stems([*known, *others]), *check_masks(masks or {})]
    return sorted(dict.fromkeys(issues), key=lambda issue: issue.severity)


def find_skipped_files(folders: Iterable[Path]) -> list[DataIssue]:
    """Return the files in folders that anomalib takes for no pictures, or for pictures that they are not.

    Args:
        folders (Iterable[Path]): Folders, searched without those in them.
    """
    return [issue for folder in folders for issue in _sort_out(_files(folder.iterdir()))[1]]


# Files


def _list_pictures(pictures: Pictures) -> tuple[list[Path], list[DataIssue]]:
    """Return the files that anomalib would read, and what is wrong with the others."""
    files: list[Path] = []
    issues: list[DataIssue] = []
    for path in [Path(pictures)] if isinstance(pictures, str | Path) else map(Path, pictures):
        if not path.exists():
            issues.append(DataIssue(path, ERROR, "does not exist. Give a folder or a file that does."))
            continue
        found, left_out = _sort_out(_files(path.rglob("*")) if path.is_dir() else [path])
        files += found
        issues += left_out
        if path.is_dir() and not found:
            issues.append(DataIssue(path, ERROR, f"has no pictures. Add some, of {', '.join(IMG_EXTENSIONS)}."))
    return list(dict.fromkeys(files)), issues


def _files(paths: Iterable[Path]) -> list[Path]:
    return sorted(path for path in paths if path.is_file() or not path.exists())  # or a link to nothing


def _sort_out(files: Iterable[Path]) -> tuple[list[Path], list[DataIssue]]:
    """Return the pictures among files, and a line for the others of each folder."""
    pictures, notes, unknown = [], defaultdict(list), defaultdict(list)
    for path in files:
        if path.suffix.lower() in IMG_EXTENSIONS:
            if path.name.startswith("._"):
                notes[path.parent].append(path.name)
            else:
                pictures.append(path)
        elif not path.name.startswith(".") and path.name.lower() not in SYSTEM_FILES:
            unknown[path.parent].append(path.name)
    no_pictures = "notes of macOS that anomalib would take for pictures. Delete them"
    not_read = f"files left out: anomalib reads {', '.join(IMG_EXTENSIONS)}. Convert what is a picture"
    kind = f"folders hold files that anomalib leaves out. It reads {', '.join(IMG_EXTENSIONS)}. Convert them"
    return pictures, [
        *(DataIssue(folder, ERROR, _count(names, no_pictures)) for folder, names in notes.items()),
        *(
            DataIssue(folder, WARNING, _count(names, not_read), kind, f"{len(names)}")
            for folder, names in unknown.items()
        ),
    ]


def _count(names: list[str], what: str) -> str:
    shown = ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
    return f"{len(names)} {what}: {shown}."


# One picture


def _with_transparency(pictures: Sequence[Picture]) -> Iterator[Picture]:
    """Yield the pictures, of which some with an alpha channel are decoded if none was."""
    left = NUM_TRANSPARENT
    for picture in pictures:
        if picture.has_hidden_rgb is None and left:
            left -= 1
            yield replace(read_picture(picture.path, decode=True), orientation=picture.orientation, size=picture.size)
        else:
            yield picture


def _check_alone(picture: Picture) -> Iterator[DataIssue]:
    if picture.fault:
        yield DataIssue(picture.path, ERROR, picture.fault)
    if picture.orientation != 1:
        yield DataIssue(picture.path, ERROR, picture.orientation_message)
    if picture.has_hidden_rgb:
        what, advice = "colours below transparent pixels, which anomalib sees", "Put all images on one background"
        yield DataIssue(picture.path, WARNING, f"has {what}. {advice}.", f"images have {what}. {advice}")
    if picture.num_pages > 1:
        pages = f"{picture.num_pages} pages"
        message = f"has {pages}, of which anomalib reads the first. Save each as a file."
        kind = "files have several pages, of which anomalib reads the first. Save each page as a file"
        yield DataIssue(picture.path, WARNING, message, kind, pages)


# Pictures beside others


def _check_sizes(support: Sequence[Picture], new: Sequence[Picture]) -> Iterator[DataIssue]:
    """Yield images whose aspect ratio or size is not near the median of the support."""
    usual_area, usual_aspect = (median_low(map(measure, support)) for measure in (_area, _aspect))
    for picture in [*support, *new]:
        own, number = f"{picture.size[0]} x {picture.size[1]} pixels", picture.size[0] * picture.size[1]
        if _ratio(_aspect(picture), usual_aspect) > ASPECT_FACTOR:
            what, advice = "another aspect ratio than the support", "Crop or rotate"
            detail = f"{_aspect(picture):.2f}, {own}; median of the support: {usual_aspect:.2f}"
        elif _ratio(_area(picture), usual_area) > AREA_FACTOR:
            what, advice = "another size than the support", "Resize"
            detail = f"{own}, {number:,} in all; median of the support: {usual_area:,}"
        else:
            continue
        message = f"has {what}: {detail}. {advice} it."
        yield DataIssue(picture.path, WARNING, message, f"images have {what}. {advice} them", detail)


def _check_colour(support: Sequence[Picture], new: Sequence[Picture]) -> Iterator[DataIssue]:
    """Yield colour images if most of the support are grey, and grey ones if most are in colour."""
    is_grey = sum(bool(picture.is_grey) for picture in support) > len(support) / 2
    what = "in colour and the support grey" if is_grey else "grey and the support in colour"
    advice = "Take all images in one way"
    for picture in [*support, *new]:
        if picture.is_grey is not None and picture.is_grey != is_grey:
            yield DataIssue(picture.path, WARNING, f"is {what}. {advice}.", f"images are {what}. {advice}")


def _area(picture: Picture) -> int:
    return picture.size[0] * picture.size[1]


def _aspect(picture: Picture) -> float:
    return picture.size[0] / picture.size[1]


def _ratio(first: float, second: float) -> float:
    return max(first / second, second / first)


def _check_copies(support: Sequence[Picture], new: Sequence[Picture]) -> Iterator[DataIssue]:
    """Yield pictures with the bytes of one of the support. Only files of equal length are read for that."""
    first: dict[str, Path] = {}
    for picture in support:
        original = first.setdefault(sha256(picture.path), picture.path)
        if original != picture.path:
            message = f"is the same picture as {original.name}: it adds nothing to the support. Replace it."
            kind = "images of the support are copies of others of it. Replace them"
            yield DataIssue(picture.path, WARNING, message, kind, f"copy of {original.name}")
    lengths = {picture.num_bytes for picture in support}
    for picture in new:
        twin = first.get(sha256(picture.path)) if picture.num_bytes in lengths else None
        if twin is not None:
            message = f"is the support's picture {twin}, so its score is too low. Remove it from one of the two."
            kind = "images are copies of images of the support, so their scores are too low. Remove them"
            yield DataIssue(picture.path, WARNING, message, kind, f"copy of {twin.name}")


def _check_stems(paths: Iterable[Path]) -> Iterator[DataIssue]:
    first: dict[Path, Path] = {}
    for path in dict.fromkeys(paths):
        other = first.setdefault(path.with_suffix(""), path)
        if other != path:
            message = f"differs from {other.name} by its suffix alone, so that results may mix. Rename one."
            kind = "images differ from others by the suffix alone, so that results may mix. Rename them"
            yield DataIssue(path, WARNING, message, kind, f"beside {other.name}")
