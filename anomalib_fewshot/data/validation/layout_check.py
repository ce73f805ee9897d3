# Copyright (C) 2026 anomalib-fewshot contributors
# SPDX-License-Identifier: Apache-2.0

"""The check of what pictures are labelled by: folders in MVTec AD's layout, and test images of both kinds."""

from collections.abc import Iterable
from pathlib import Path

from anomalib.data.utils import LabelName
from torchvision.datasets.folder import IMG_EXTENSIONS

from .image_check import find_skipped_files
from .issue import ERROR, WARNING, DataIssue

# Names of folders that hold good pictures, in small letters. In MVTec AD's layout there is `good` alone.
GOOD_NAMES = {"good", "goods", "ok", "okay", "normal", "normals", "pass", "passed", "fine", "io", "defect_free"}


def check_layout(category: str | Path) -> list[DataIssue]:
    """Return what is wrong with the folders of a category in MVTec AD's layout.

    Args:
        category (str | Path): Folder that holds ``train/good``, ``test`` and perhaps ``ground_truth``.
    """
    category = Path(category).resolve()
    tested = sorted(path for path in (category / "test").glob("*") if path.is_dir())
    issues = []
    for folder in tested:
        if folder.name != "good" and folder.name.lower() in GOOD_NAMES:
            message = "would be tested as a kind of defect. Rename it to `good`, or by its defect if it is one."
            issues.append(DataIssue(folder, ERROR, message))
        if not any(map(_is_picture, folder.rglob("*"))):
            message = "has no pictures, and is not tested. Add some, or remove it."
            issues.append(
                DataIssue(folder, WARNING, message, "folders have no images, and are not tested. Remove them"),
            )
    if tested and not (category / "test" / "good").is_dir():
        message = "has no folder `good`, so that few good pictures are tested, or none. Add it."
        kind = "folders have no folder `good`, so that few normal images are tested, or none. Add it"
        issues.append(DataIssue(category / "test", WARNING, message, kind))
    if loose := sum(map(_is_picture, (category / "test").glob("*"))):
        message = f"has {loose} pictures beside its folders, which are not tested. Move them to `good` or a defect."
        kind = "folders have images beside their folders, which are not tested. Move them"
        issues.append(DataIssue(category / "test", WARNING, message, kind, f"{loose} images"))
    folders = [path for path in (category / "train" / "good", *tested) if path.is_dir()]
    return [*issues, *find_skipped_files(folders)]


def check_kinds(labels: Iterable[int], path: str | Path) -> list[DataIssue]:
    """Return a warning if test images are all normal or all anomalous.

    Args:
        labels (Iterable[int]): Label of each, 0 or 1.
        path (str | Path): The folder they are in.
    """
    labels = list(labels)
    if len(set(labels)) != 1:
        return []
    has, lacks = ("normal", "anomalous") if labels[0] == LabelName.NORMAL else ("anomalous", "normal")
    message = f"has {len(labels)} {has} test images and none that are {lacks}: AUROC and F1 need both. Add some."
    kind = "categories have test images of one class only: AUROC and F1 need both. Add the others"
    return [DataIssue(Path(path), WARNING, message, kind, f"{len(labels)} {has}")]


def _is_picture(path: Path) -> bool:
    return path.suffix.lower() in IMG_EXTENSIONS and path.is_file()
