# Copyright (C) 2026 anomalib-fewshot contributors
# SPDX-License-Identifier: Apache-2.0

"""The pictures of a page within it, so that it is one file to send or to keep."""

from base64 import b64encode
from collections.abc import Sequence
from pathlib import Path

from .pictures import PARTS, page_file

MAX_MEGABYTES = 64  # of a page: one with more takes a browser many seconds, and no mail takes it
TYPES = {"jpg": "image/jpeg", "png": "image/png"}


def choose_parts(folder: Path, names: Sequence[str]) -> tuple[list[str], str]:
    """Return what of the pictures fits into a page, and a line on what does not.

    Args:
        folder (Path): Folder of the run.
        names (Sequence[str]): Paths of the pictures in the folder of new pictures.

    Returns:
        tuple[list[str], str]: ``"photos"``, ``"thumbnails"`` and ``"heat"``, the last two, or none.
    """
    sizes = {part: _megabytes(folder, part, names) for part in PARTS}
    whole, small = sum(sizes.values()), sum(sizes.values()) - sizes["photos"]
    if whole <= MAX_MEGABYTES:
        return list(PARTS), ""
    words = f"The page would have {whole:.0f} MB with the photos, {small:.0f} MB with small pictures alone."
    if small <= MAX_MEGABYTES:
        return ["thumbnails", "heat"], f"{words} Small ones are in it: what is enlarged is blurred."
    return [], f"{words} Above {MAX_MEGABYTES} MB they stay beside it: send the folder, or score fewer at a time."


def encode(folder: Path, parts: Sequence[str], names: Sequence[str]) -> dict[str, dict[str, str]]:
    """Return the data URIs of each picture, by its path and the part."""
    return {
        name: {part: _uri(path) for part in parts if (path := page_file(folder, part, name)).is_file()}
        for name in names
    }


def _megabytes(folder: Path, part: str, names: Sequence[str]) -> float:
    files = (page_file(folder, part, name) for name in names)
    return sum(file.stat().st_size for file in files if file.is_file()) * 4 / 3 / 1e6  # in base64


def _uri(path: Path) -> str:
    return f"data:{TYPES[path.suffix[1:]]};base64,{b64encode(path.read_bytes()).decode()}"
