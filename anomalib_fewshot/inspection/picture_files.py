# Copyright (C) 2026 anomalib-fewshot contributors
# SPDX-License-Identifier: Apache-2.0

"""Picture files in a folder that other programs may still write to."""

from pathlib import Path

from torchvision.datasets.folder import IMG_EXTENSIONS

from .run_folder import SETTINGS


def list_pictures(path: Path) -> list[Path]:
    """Return the pictures in a folder, or the file itself. Outputs of earlier runs are not included."""
    files, runs = [path], set()
    if path.is_dir():
        files = list(path.rglob("*"))
        runs = {file.parent for file in path.rglob(SETTINGS)}
    pictures = []
    for file in files:
        is_picture = file.suffix.lower() in IMG_EXTENSIONS and not file.name.startswith("._")
        if is_picture and (file.is_file() or file.is_symlink()) and runs.isdisjoint(file.parents):
            pictures.append(file)
    return sorted(pictures)


def file_state(path: Path) -> tuple[int, int]:
    """Return the size in bytes and the modification time in nanoseconds. Both are 0 if the file does not exist."""
    try:
        status = path.stat()
    except OSError:
        return 0, 0
    return status.st_size, status.st_mtime_ns
