# Copyright (C) 2026 anomalib-fewshot contributors
# SPDX-License-Identifier: Apache-2.0

"""Embed the pictures in the page, so that it is a single file."""

from base64 import b64encode
from collections.abc import Sequence
from pathlib import Path

from .rendering import PARTS, good_file, page_file

MAX_MEGABYTES = 64  # a larger page loads slowly in a browser and exceeds the limits of mail servers
MEDIA_TYPES = {"jpg": "image/jpeg", "png": "image/png"}


def choose_parts(folder: Path, names: Sequence[str], num_good: int) -> tuple[list[str], str]:
    """Return the kinds of files that fit into the page, and a note about the ones that do not.

    Args:
        folder (Path): Folder of the run.
        names (Sequence[str]): Paths of the pictures, relative to the folder of new pictures.
        num_good (int): Number of good pictures, which are embedded if anything is.

    Returns:
        tuple[list[str], str]: All of ``"photos"``, ``"thumbnails"`` and ``"heat"``, only the last two, or none; and the
            note, empty if everything fits.
    """
    good = _megabytes([good_file(folder, number) for number in range(num_good)])
    sizes = {part: _megabytes([page_file(folder, part, name) for name in names]) for part in PARTS}
    total = good + sum(sizes.values())
    reduced = total - sizes["photos"]
    if total <= MAX_MEGABYTES:
        return list(PARTS), ""
    note = f"The page would take {total:.0f} MB with full pictures and {reduced:.0f} MB with thumbnails only."
    if reduced <= MAX_MEGABYTES:
        return ["thumbnails", "heat"], f"{note} It contains thumbnails only, so enlarged pictures are blurred."
    return (
        [],
        f"{note} The limit is {MAX_MEGABYTES} MB, so no picture is embedded. Share the whole folder.",
    )


def encode_files(folder: Path, parts: Sequence[str], names: Sequence[str]) -> dict[str, dict[str, str]]:
    """Return the data URIs of the files, by the path of the picture and the kind of file."""
    uris: dict[str, dict[str, str]] = {}
    for name in names:
        files = {part: page_file(folder, part, name) for part in parts}
        uris[name] = {part: _data_uri(file) for part, file in files.items() if file.is_file()}
    return uris


def encode_good(folder: Path, count: int) -> list[str]:
    """Return the data URIs of the photos of the good pictures, in order."""
    return [_data_uri(good_file(folder, number)) for number in range(count)]


def _megabytes(files: Sequence[Path]) -> float:
    num_bytes = sum(file.stat().st_size for file in files if file.is_file())
    return num_bytes * 4 / 3 / 1e6  # base64 encodes three bytes as four


def _data_uri(path: Path) -> str:
    return f"data:{MEDIA_TYPES[path.suffix[1:]]};base64,{b64encode(path.read_bytes()).decode()}"
