# Copyright (C) 2026 anomalib-fewshot contributors
# SPDX-License-Identifier: Apache-2.0

"""Apply the EXIF orientation of all images in a folder to their pixels, because anomalib ignores it.

``python -m anomalib_fewshot.upright FOLDER`` replaces all files that have an orientation other than 1, in the folder
and its subfolders. JPEG files are compressed again with quality 95. The new files have no EXIF data.
"""

import io
import sys
from pathlib import Path

from PIL import Image
from torchvision.datasets.folder import IMG_EXTENSIONS

from anomalib_fewshot.atomic import write_atomically
from anomalib_fewshot.data.validation.image import read_image_info, read_upright
from anomalib_fewshot.errors import ArgumentError


def rotate_pixels(folder: Path) -> int:
    """Replace the images that have an EXIF orientation other than 1 with upright ones.

    The new files have no EXIF data. Files that cannot be read are not changed.

    Args:
        folder (Path): Folder to search, including its subfolders.

    Returns:
        int: Number of files that were replaced.

    Raises:
        ArgumentError: If the folder does not exist.
        OSError: If a file cannot be written. The file is not changed.
    """
    if not folder.is_dir():
        msg = f"`folder` must be an existing folder, got {folder}. Check the path."
        raise ArgumentError(msg)
    count = 0
    for path in sorted(folder.rglob("*")):
        if path.suffix.lower() in IMG_EXTENSIONS and path.is_file() and _rotate_file(path):
            count += 1
    return count


def _rotate_file(path: Path) -> bool:
    if read_image_info(path, decode=True).orientation == 1:
        return False
    with Image.open(path) as file:
        file_format, mode, profile = file.format, file.mode, file.info.get("icc_profile")
    options = {"quality": 95, "subsampling": 0} if file_format in {"JPEG", "MPO"} else {"lossless": True}
    content = io.BytesIO()
    image = read_upright(path, mode)
    for name in ("exif", "xmp", "XML:com.adobe.xmp"):  # otherwise PIL writes them again, with the old orientation
        image.info.pop(name, None)
    image.save(content, "JPEG" if file_format == "MPO" else file_format, icc_profile=profile, **options)
    write_atomically(path, content.getvalue())
    return True


def main() -> None:
    """Run the command line."""
    if len(sys.argv) != 2:
        msg = "usage: python -m anomalib_fewshot.upright FOLDER"
        raise SystemExit(msg)
    try:
        count = rotate_pixels(Path(sys.argv[1]))
    except (ArgumentError, OSError) as error:
        raise SystemExit(str(error)) from error
    print(f"Rotated {count} images by their EXIF orientation: {sys.argv[1]}")


if __name__ == "__main__":
    main()
