# Copyright (C) 2026 anomalib-fewshot contributors
# SPDX-License-Identifier: Apache-2.0

"""Check of images before training: files that anomalib cannot read, or would read incorrectly.

All issues are reported at once, with the file names. `image.py` reads a single file, and `mask_check.py` checks masks.
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from torchvision.datasets.folder import IMG_EXTENSIONS

from anomalib_fewshot.data.manifest import sha256

from .image import ImageInfo, read_image_info
from .issue import ERROR, WARNING, Comparison, DataIssue
from .mask_check import check_masks

ASPECT_FACTOR = 1.5  # highest ratio between the aspect ratio of an image and the median of the support set
AREA_FACTOR = 4.0  # the same for the number of pixels
NUM_TRANSPARENT = 32  # images with an alpha channel that are decoded if `decode` is false
NUM_NAMES = 3  # file names in a message
SAME_STEM = "images differ from others only by their suffix, so their results may be confused. Rename them"
SYSTEM_FILES = {"thumbs.db", "desktop.ini"}  # files of the operating system, like names that start with a dot

ImagePaths = str | Path | Iterable[str | Path]


def check_images(
    support: ImagePaths,
    new: ImagePaths = (),
    masks: Mapping[str, str] | Mapping[Path, Path] | None = None,
    *,
    decode: bool = True,
    upright: bool = False,
) -> list[DataIssue]:
    """Return the issues of the support set and of the images to score.

    Args:
        support (ImagePaths): Support set: a folder, a file, or several of them. All images are decoded.
        new (ImagePaths): Images to score, in the same form. Defaults to none.
        masks (Mapping | None): Mask of each anomalous image, by the path of the image. Defaults to ``None``.
        decode (bool): Decode the new images, too. Otherwise only their headers and ends are read, and up to 32 images
            with an alpha channel are decoded. Color images among gray ones and files broken in the middle are then not
            found. Defaults to ``True``.
        upright (bool): The images will be read with their EXIF orientation applied. Otherwise an orientation other
            than 1 is an error, because anomalib ignores it. Defaults to ``False``.

    Returns:
        list[DataIssue]: Errors first, and the support set before new images.

    Example:
        >>> check_images("no_such_folder")[0].message
        'does not exist. Check the path.'
    """
    support_paths, issues = _list_images(support)
    new_paths, new_issues = _list_images(new)
    issues += new_issues
    support_images = [read_image_info(path, decode=True) for path in support_paths]
    new_images = [read_image_info(path, decode=decode) for path in new_paths]
    if upright:
        support_images = [image.upright() for image in support_images]
        new_images = [image.upright() for image in new_images]
    for image in [*support_images, *_decode_transparent(new_images)]:
        issues += _check_image(image)
    support_images = [image for image in support_images if not image.fault]
    new_images = [image for image in new_images if not image.fault]
    if support_images:
        issues += [*_check_sizes(support_images, new_images), *_check_color(support_images, new_images)]
    issues += [*_check_copies(support_images, new_images), *_check_stems([*support_paths, *new_paths])]
    issues += check_masks(masks or {})
    return sorted(dict.fromkeys(issues), key=lambda issue: issue.severity)


def find_skipped_files(folders: Iterable[Path]) -> list[DataIssue]:
    """Return the files that anomalib skips, and metadata files that it would read as images.

    Args:
        folders (Iterable[Path]): Folders to search, without subfolders.
    """
    return [issue for folder in folders for issue in _split_files(_files(folder.iterdir()))[1]]


def list_images(folder: Path) -> tuple[list[Path], list[DataIssue]]:
    """Return the images in a folder and its subfolders, sorted by path, and the issues of its other files."""
    return _split_files(_files(folder.rglob("*")))


# Files


def _list_images(images: ImagePaths) -> tuple[list[Path], list[DataIssue]]:
    """Return the image files, and issues of missing paths and of other files."""
    files: list[Path] = []
    issues: list[DataIssue] = []
    for path in [Path(images)] if isinstance(images, str | Path) else map(Path, images):
        if not path.exists():
            issues.append(DataIssue(path, ERROR, "does not exist. Check the path."))
            continue
        found, file_issues = _split_files(_files(path.rglob("*")) if path.is_dir() else [path])
        files += found
        issues += file_issues
        if path.is_dir() and not found:
            issues.append(DataIssue(path, ERROR, f"has no images. Add some ({', '.join(IMG_EXTENSIONS)})."))
    return list(dict.fromkeys(files)), issues


def _files(paths: Iterable[Path]) -> list[Path]:
    return sorted(path for path in paths if path.is_file() or not path.exists())  # includes broken links


def _split_files(files: Iterable[Path]) -> tuple[list[Path], list[DataIssue]]:
    """Return the image files, and one issue for the other files of each folder."""
    images, metadata, skipped = [], defaultdict(list), defaultdict(list)
    for path in files:
        if path.suffix.lower() in IMG_EXTENSIONS:
            if path.name.startswith("._"):
                metadata[path.parent].append(path.name)
            else:
                images.append(path)
        elif not path.name.startswith(".") and path.name.lower() not in SYSTEM_FILES:
            skipped[path.parent].append(path.name)
    issues = []
    for folder, names in metadata.items():
        message = f"has macOS metadata files (`._*`) that anomalib would read as images: {_shown(names)}. Delete them."
        issues.append(DataIssue(folder, ERROR, message))
    advice = f"Convert images to one of {', '.join(IMG_EXTENSIONS)}"
    for folder, names in skipped.items():
        message = f"has files that anomalib skips: {_shown(names)}. {advice}."
        kind = f"folders have files that anomalib skips. {advice}"
        issues.append(DataIssue(folder, WARNING, message, kind, f"{len(names)}"))
    return images, issues


def _shown(names: list[str]) -> str:
    return ", ".join(names[:NUM_NAMES]) + (f" and {len(names) - NUM_NAMES} more" if len(names) > NUM_NAMES else "")


# Checks of a single image


def _decode_transparent(images: Sequence[ImageInfo]) -> Iterator[ImageInfo]:
    """Yield the images, after decoding the first ones that have an alpha channel."""
    left = NUM_TRANSPARENT
    for image in images:
        if image.has_hidden_rgb is None and left:
            left -= 1
            yield replace(read_image_info(image.path, decode=True), orientation=image.orientation, size=image.size)
        else:
            yield image


def _check_image(image: ImageInfo) -> Iterator[DataIssue]:
    if image.fault:
        yield DataIssue(image.path, ERROR, image.fault)
    if image.orientation != 1:
        yield DataIssue(image.path, ERROR, image.orientation_message)
    if image.has_hidden_rgb:
        what = "different colors in transparent pixels, which anomalib reads"
        advice = "Put all images on one background"
        yield DataIssue(image.path, WARNING, f"has {what}. {advice}.", f"images have {what}. {advice}")
    if image.num_pages > 1:
        pages = f"{image.num_pages} pages"
        message = f"has {pages}, but anomalib reads only the first. Save each page as a file."
        kind = "files have several pages, but anomalib reads only the first. Save each page as a file"
        yield DataIssue(image.path, WARNING, message, kind, pages)


# Comparisons between images


def _check_sizes(support: Sequence[ImageInfo], new: Sequence[ImageInfo]) -> Iterator[DataIssue]:
    """Yield issues of images whose aspect ratio or size differs from the median of the support set.

    A message gives the support image that has the median of the compared quantity. The image of median aspect ratio
    and the image of median size may be different ones.
    """
    images = list(dict.fromkeys([*support, *new]))
    by_aspect = sorted(support, key=_aspect)[(len(support) - 1) // 2]
    by_area = sorted(support, key=_area)[(len(support) - 1) // 2]
    aspects = Comparison(support[0].path.parent, len(images), f"median {_aspect_text(by_aspect)}")
    areas = Comparison(support[0].path.parent, len(images), f"median {_area_text(by_area)}")
    for image in images:
        if _ratio(_aspect(image), _aspect(by_aspect)) > ASPECT_FACTOR:
            what, advice = "another aspect ratio than the support set", "Crop or rotate"
            detail, comparison = _aspect_text(image), aspects
        elif _ratio(_area(image), _area(by_area)) > AREA_FACTOR:
            what, advice = "another size than the support set", "Resize"
            detail, comparison = _area_text(image), areas
        else:
            continue
        message = f"has {what} ({comparison.median}): {detail}. {advice} it."
        yield DataIssue(image.path, WARNING, message, f"images have {what}. {advice} them", detail, comparison)


def _check_color(support: Sequence[ImageInfo], new: Sequence[ImageInfo]) -> Iterator[DataIssue]:
    """Yield issues of color images if most support images are gray, and of gray images if most are colored."""
    is_gray = sum(bool(image.is_gray) for image in support) > len(support) / 2
    what = "in color, but the support set is gray" if is_gray else "gray, but the support set is in color"
    advice = "Use the same camera settings for all images"
    for image in [*support, *new]:
        if image.is_gray is not None and image.is_gray != is_gray:
            yield DataIssue(image.path, WARNING, f"is {what}. {advice}.", f"images are {what}. {advice}")


def _aspect_text(image: ImageInfo) -> str:
    return f"{_aspect(image):.2f}, {_size_text(image)}"


def _area_text(image: ImageInfo) -> str:
    return f"{_size_text(image)}, {_area(image):,} in all"


def _size_text(image: ImageInfo) -> str:
    return f"{image.size[0]} x {image.size[1]} pixels"


def _area(image: ImageInfo) -> int:
    return image.size[0] * image.size[1]


def _aspect(image: ImageInfo) -> float:
    return image.size[0] / image.size[1]


def _ratio(first: float, second: float) -> float:
    return max(first / second, second / first)


def _check_copies(support: Sequence[ImageInfo], new: Sequence[ImageInfo]) -> Iterator[DataIssue]:
    """Yield issues of copies of support images. Only files of equal size are compared."""
    first: dict[str, Path] = {}
    for image in support:
        original = first.setdefault(sha256(image.path), image.path)
        if original != image.path:
            message = f"is a copy of {original.name}, which is also in the support set. Replace it."
            kind = "support images are copies of others. Replace them"
            yield DataIssue(image.path, WARNING, message, kind, f"copy of {original.name}")
    lengths = {image.num_bytes for image in support}
    for image in new:
        copied = first.get(sha256(image.path)) if image.num_bytes in lengths else None
        if copied is not None:
            message = f"is a copy of the support image {copied}, so its score is too low. Remove one of them."
            kind = "images are copies of support images, so their scores are too low. Remove them"
            yield DataIssue(image.path, WARNING, message, kind, f"copy of {copied.name}")


def _check_stems(paths: Iterable[Path]) -> Iterator[DataIssue]:
    first: dict[Path, Path] = {}
    for path in dict.fromkeys(paths):
        other = first.setdefault(path.with_suffix(""), path)
        if other != path:
            message = f"differs from {other.name} only by its suffix, so their results may be confused. Rename one."
            yield DataIssue(path, WARNING, message, SAME_STEM, f"and {other.name}")
