# Copyright (C) 2026 anomalib-fewshot contributors
# SPDX-License-Identifier: Apache-2.0

"""Check of folder names, which determine the labels in the layout of MVTec AD, and of the classes of test images."""

from collections.abc import Iterable
from pathlib import Path

from anomalib.data.utils import LabelName
from torchvision.datasets.folder import IMG_EXTENSIONS

from .image_check import find_skipped_files
from .issue import ERROR, WARNING, DataIssue

# Lower-case names of folders that usually contain normal images. The layout of MVTec AD only allows `good`.
NORMAL_FOLDER_NAMES = {
    "good",
    "goods",
    "ok",
    "okay",
    "normal",
    "normals",
    "pass",
    "passed",
    "fine",
    "io",
    "defect_free",
}


def check_layout(category: str | Path) -> list[DataIssue]:
    """Return the issues of the folders of a category in the layout of MVTec AD.

    Args:
        category (str | Path): Folder that contains ``train/good``, ``test`` and optionally ``ground_truth``.
    """
    category = Path(category).resolve()
    tested = sorted(path for path in (category / "test").glob("*") if path.is_dir())
    issues = []
    for folder in tested:
        if folder.name != "good" and folder.name.lower() in NORMAL_FOLDER_NAMES:
            message = "would be tested as a defect. Rename it to `good`, or after its defect."
            issues.append(DataIssue(folder, ERROR, message))
        if not any(map(_is_image, folder.rglob("*"))):
            message = "has no images and is not tested. Add some, or remove it."
            issues.append(DataIssue(folder, WARNING, message, "folders have no images and are not tested. Remove them"))
    if tested and not (category / "test" / "good").is_dir():
        message = "has no folder `good`, so few or no normal images are tested. Add it."
        kind = "folders have no folder `good`, so few or no normal images are tested. Add it"
        issues.append(DataIssue(category / "test", WARNING, message, kind))
    if loose := sum(map(_is_image, (category / "test").glob("*"))):
        message = f"has {loose} images outside its subfolders, which are not tested. Move them to a subfolder."
        kind = "folders have images outside their subfolders, which are not tested. Move them to a subfolder"
        issues.append(DataIssue(category / "test", WARNING, message, kind, f"{loose} images"))
    folders = [path for path in (category / "train" / "good", *tested) if path.is_dir()]
    return [*issues, *find_skipped_files(folders)]


def check_label_classes(labels: Iterable[int], path: str | Path) -> list[DataIssue]:
    """Return a warning if all test images are normal or all are anomalous.

    Args:
        labels (Iterable[int]): Label of each test image, 0 or 1.
        path (str | Path): Folder of the test images.
    """
    labels = list(labels)
    if len(set(labels)) != 1:
        return []
    has, lacks = ("normal", "anomalous") if labels[0] == LabelName.NORMAL else ("anomalous", "normal")
    message = f"has {len(labels)} {has} and no {lacks} test images, but AUROC and F1 need both. Add some."
    kind = "categories have test images of one class only, but AUROC and F1 need both. Add the others"
    return [DataIssue(Path(path), WARNING, message, kind, f"{len(labels)} {has}")]


def _is_image(path: Path) -> bool:
    return path.suffix.lower() in IMG_EXTENSIONS and path.is_file()
