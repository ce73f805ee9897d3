# Copyright (C) 2026 anomalib-fewshot contributors
# SPDX-License-Identifier: Apache-2.0

"""The check of what pictures are labelled by: folders in MVTec AD's layout, and test images of both kinds."""

from collections.abc import Iterable
from pathlib import Path

from anomalib.data import AnomalibDataModule
from anomalib.data.utils import LabelName
from anomalib.metrics import Evaluator
from lightning.pytorch.trainer.states import TrainerFn
from torchvision.datasets.folder import IMG_EXTENSIONS

from anomalib_fewshot.metrics import CategoryEvaluator, is_one_kind

from .finding import ERROR, WARNING, Finding
from .picture_check import check_left_out

# Names of folders that hold good pictures, in small letters. In MVTec AD's layout there is `good` alone.
GOOD_NAMES = {"good", "goods", "ok", "okay", "normal", "normals", "pass", "passed", "fine", "io", "defect_free"}


def check_layout(category: str | Path) -> list[Finding]:
    """Return what is wrong with the folders of a category in MVTec AD's layout.

    Args:
        category (str | Path): Folder that holds ``train/good``, ``test`` and perhaps ``ground_truth``.
    """
    category = Path(category).resolve()
    tested = sorted(path for path in (category / "test").glob("*") if path.is_dir())
    findings = []
    for folder in tested:
        if folder.name != "good" and folder.name.lower() in GOOD_NAMES:
            message = "would be tested as a kind of defect. Rename it to `good`, or by its defect if it is one."
            findings.append(Finding(folder, ERROR, message))
        if not any(map(_is_picture, folder.rglob("*"))):
            findings.append(Finding(folder, WARNING, "has no pictures, and is not tested. Add some, or remove it."))
    if tested and not (category / "test" / "good").is_dir():
        message = "has no folder `good`, so that few good pictures are tested, or none. Add it."
        findings.append(Finding(category / "test", WARNING, message))
    if loose := sum(map(_is_picture, (category / "test").glob("*"))):
        message = f"has {loose} pictures beside its folders, which are not tested. Move them to `good` or a defect."
        findings.append(Finding(category / "test", WARNING, message))
    folders = [path for path in (category / "train" / "good", *tested) if path.is_dir()]
    return [*findings, *check_left_out(folders)]


def check_kinds(labels: Iterable[int], path: str | Path) -> list[Finding]:
    """Return a warning if test images are all normal or all anomalous.

    Args:
        labels (Iterable[int]): Label of each, 0 or 1.
        path (str | Path): The folder they are in.
    """
    labels = list(labels)
    if not is_one_kind(labels):
        return []
    has, lacks = ("normal", "anomalous") if labels[0] == LabelName.NORMAL else ("anomalous", "normal")
    message = f"has {len(labels)} {has} test images and none that are {lacks}: AUROC and F1 need both. Add some."
    return [Finding(Path(path), WARNING, message)]


def check_evaluator(datamodule: AnomalibDataModule, stage: str | None) -> None:
    """Refuse a test on images of one kind by an evaluator that would give an AUROC of 0 for it.

    Args:
        datamodule (AnomalibDataModule): Datamodule after its setup.
        stage (str | None): Stage of the setup.

    Raises:
        ValueError: If the evaluator of the model is anomalib's.
    """
    evaluator = getattr(getattr(datamodule.trainer, "lightning_module", None), "evaluator", None)
    is_anomalib = isinstance(evaluator, Evaluator) and not isinstance(evaluator, CategoryEvaluator)
    if stage == TrainerFn.TESTING and is_anomalib and is_one_kind(datamodule.test_data.samples.label_index):
        msg = (
            f"Test images must be normal and anomalous ones, got one kind alone, {len(datamodule.test_data)} of them: "
            "anomalib's evaluator would give an AUROC of 0. Add the others, or give the model "
            "`--model.evaluator CategoryEvaluator`, which leaves out what needs both."
        )
        raise ValueError(msg)


def _is_picture(path: Path) -> bool:
    return path.suffix.lower() in IMG_EXTENSIONS and path.is_file()
