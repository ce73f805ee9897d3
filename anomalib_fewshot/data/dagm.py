# Copyright (C) 2026 anomalib-fewshot contributors
# SPDX-License-Identifier: Apache-2.0

"""DAGM 2007: ten synthetic textures with defects. The masks are ellipses."""

from pathlib import Path

import pandas as pd
from anomalib.data import AnomalibDataModule, AnomalibDataset
from anomalib.data.utils import LabelName, Split, TestSplitMode, ValSplitMode
from torchvision.transforms.v2 import Transform

from anomalib_fewshot.errors import ArgumentError, DataValidationError

CATEGORIES = tuple(f"Class{number}" for number in range(1, 11))
HOMEPAGE = "https://hci.iwr.uni-heidelberg.de/content/weakly-supervised-learning-industrial-optical-inspection"


class DAGMDataset(AnomalibDataset):
    """Grayscale images of one texture. An image is anomalous if the folder ``Label`` contains its mask.

    Both published splits contain defects. The anomalous images of ``Train`` are not used.

    Args:
        root (str | Path): Folder that contains the categories.
        category (str): ``"Class1"`` to ``"Class10"``. Defaults to ``"Class1"``.
        split (Split | str | None): ``"train"``, ``"test"`` or both. Defaults to ``None``, both.
        augmentations (Transform | None): Augmentations of the images. Defaults to ``None``.

    Raises:
        ArgumentError: If ``category`` is unknown.
        DataValidationError: If the folders do not have the published layout.
    """

    def __init__(
        self,
        root: str | Path,
        category: str = "Class1",
        split: Split | str | None = None,
        augmentations: Transform | None = None,
    ) -> None:
        super().__init__(augmentations=augmentations)
        self.category = category
        samples = make_dagm_samples(Path(root), category)
        if split is not None:
            samples = samples[samples.split == Split(split).value].reset_index(drop=True)
        samples.attrs["task"] = "segmentation"
        self.samples = samples


def make_dagm_samples(root: Path, category: str) -> pd.DataFrame:
    """Return the table of samples for an anomalib dataset.

    Raises:
        ArgumentError: If ``category`` is unknown.
        DataValidationError: If the folders do not have the published layout.
    """
    if category not in CATEGORIES:
        msg = f"`category` must be one of {CATEGORIES}, got {category!r}."
        raise ArgumentError(msg)
    rows = []
    for split in (Split.TRAIN, Split.TEST):
        folder = root / category / split.value.capitalize()
        masks = {path.stem.removesuffix("_label"): path for path in _images(folder / "Label")}
        images = _images(folder)
        if not images or not masks:
            msg = (
                f"`root` must be the folder of DAGM 2007, with {category}/{folder.name}/0001.PNG and masks in "
                f"{category}/{folder.name}/Label/0001_label.PNG, got {root}. Download the data set from {HOMEPAGE}."
            )
            raise DataValidationError(msg)
        for path in images:
            mask = masks.get(path.stem)
            label = LabelName.NORMAL if mask is None else LabelName.ABNORMAL
            if split == Split.TEST or label == LabelName.NORMAL:
                rows.append((str(path), split.value, int(label), str(mask or "")))
    samples = pd.DataFrame(rows, columns=["image_path", "split", "label_index", "mask_path"])
    samples["label"] = samples.label_index.map({0: "good", 1: "defect"})
    return samples


def _images(folder: Path) -> list[Path]:
    return sorted(path for path in folder.glob("*") if path.suffix.lower() == ".png")


class DAGM(AnomalibDataModule):
    """DAGM 2007 in its published layout. Trains on the normal images of ``Train`` and tests on all images of ``Test``.

    Args:
        root (str | Path): Folder that contains the categories. Defaults to ``"./datasets/DAGM"``.
        category (str): ``"Class1"`` to ``"Class10"``. Defaults to ``"Class1"``.
        train_batch_size (int): Defaults to ``32``.
        eval_batch_size (int): Defaults to ``32``.
        num_workers (int): Defaults to ``8``.
        train_augmentations (Transform | None): Defaults to ``None``.
        val_augmentations (Transform | None): Defaults to ``None``.
        test_augmentations (Transform | None): Defaults to ``None``.
        augmentations (Transform | None): Augmentations for stages without their own. Defaults to ``None``.
        val_split_mode (ValSplitMode | str): Defaults to the test images, as in ``MVTecAD``.
        val_split_ratio (float): Defaults to ``0.5``.
        seed (int | None): Seed of the validation split. Defaults to ``None``.

    Raises:
        ArgumentError: During ``setup``, if ``category`` is unknown.
        DataValidationError: During ``setup``, if the folders do not have the published layout.

    Example:
        >>> DAGM("datasets/DAGM", "Class7").category
        'Class7'

    Reference:
        DAGM 2007, Weakly Supervised Learning for Industrial Optical Inspection, Heidelberg Collaboratory for Image
        Processing.
    """

    def __init__(
        self,
        root: str | Path = "./datasets/DAGM",
        category: str = "Class1",
        train_batch_size: int = 32,
        eval_batch_size: int = 32,
        num_workers: int = 8,
        train_augmentations: Transform | None = None,
        val_augmentations: Transform | None = None,
        test_augmentations: Transform | None = None,
        augmentations: Transform | None = None,
        val_split_mode: ValSplitMode | str = ValSplitMode.SAME_AS_TEST,
        val_split_ratio: float = 0.5,
        seed: int | None = None,
    ) -> None:
        super().__init__(
            train_batch_size=train_batch_size,
            eval_batch_size=eval_batch_size,
            num_workers=num_workers,
            train_augmentations=train_augmentations,
            val_augmentations=val_augmentations,
            test_augmentations=test_augmentations,
            augmentations=augmentations,
            val_split_mode=val_split_mode,
            val_split_ratio=val_split_ratio,
            test_split_mode=TestSplitMode.FROM_DIR,
            seed=seed,
        )
        self.root = root
        self.category = category

    def prepare_data(self) -> None:
        """Check that the data set exists.

        Raises:
            DataValidationError: If the folders do not have the published layout.
        """
        make_dagm_samples(Path(self.root), self.category)

    def _setup(self, _stage: str | None = None) -> None:
        self.train_data = DAGMDataset(self.root, self.category, Split.TRAIN)
        self.test_data = DAGMDataset(self.root, self.category, Split.TEST)
