# Copyright (C) 2026 anomalib-fewshot contributors
# SPDX-License-Identifier: Apache-2.0

"""ELPV: electroluminescence images of solar cells, from the package ``elpv-dataset``."""

from importlib.util import find_spec
from pathlib import Path

import pandas as pd
from anomalib.data import AnomalibDataModule, AnomalibDataset
from anomalib.data.utils import LabelName, Split, TestSplitMode, ValSplitMode
from torchvision.transforms.v2 import Transform

from anomalib_fewshot.errors import ArgumentError, MissingDependencyError

from .sampling import shuffled

CATEGORIES = ("mono", "poly")


class ELPVDataset(AnomalibDataset):
    """Grayscale images of solar cells of one silicon type, 300 x 300 pixels, with image-level labels and no masks.

    Only cells with a defect probability of 0 (normal) or 1 (anomalous) are used. The train/test split is fixed: it
    depends on no seed.

    Args:
        category (str): ``"mono"`` or ``"poly"``, for mono- or polycrystalline. Defaults to ``"mono"``.
        split (Split | str | None): ``"train"``, ``"test"`` or both. Defaults to ``None``, both.
        num_test (int | None): Number of normal and of anomalous test images. All other normal images are training
            images. ``None``: all anomalous images, and as many normal ones, at most half of them. Defaults to ``100``.
        augmentations (Transform | None): Augmentations of the images. Defaults to ``None``.

    Raises:
        MissingDependencyError: If the package ``elpv-dataset`` is not installed.
        ArgumentError: If ``category`` is unknown or ``num_test`` is below 1.

    Reference:
        Buerhop-Lutz et al., A Benchmark for Visual Identification of Defective Solar Cells in Electroluminescence
        Imagery, EU PVSEC 2018. The images are licensed under CC BY-NC-SA 4.0.
    """

    def __init__(
        self,
        category: str = "mono",
        split: Split | str | None = None,
        num_test: int | None = 100,
        augmentations: Transform | None = None,
    ) -> None:
        super().__init__(augmentations=augmentations)
        if category not in CATEGORIES:
            msg = f"`category` must be one of {CATEGORIES}, got {category!r}."
            raise ArgumentError(msg)
        if num_test is not None and num_test < 1:
            msg = f"`num_test` must be at least 1, got {num_test}."
            raise ArgumentError(msg)
        self.category = category
        samples = make_elpv_samples(package_folder() / "data", category, num_test)
        if split is not None:
            samples = samples[samples.split == Split(split).value]
        samples.attrs["task"] = "classification"
        self.samples = samples


def package_folder() -> Path:
    """Return the folder of the installed package ``elpv-dataset``.

    Raises:
        MissingDependencyError: If it is not installed.
    """
    spec = find_spec("elpv_dataset")
    if spec is None or not spec.submodule_search_locations:
        msg = "ELPV requires the package `elpv-dataset`. Run `pip install 'anomalib-fewshot[elpv]'`."
        raise MissingDependencyError(msg)
    return Path(spec.submodule_search_locations[0])


def make_elpv_samples(root: Path, category: str, num_test: int | None) -> pd.DataFrame:
    """Return the table of samples for an anomalib dataset."""
    cells = pd.read_csv(root / "labels.csv", sep=r"\s+", names=["path", "probability", "type"])
    cells = cells[cells.type == category]
    normal, anomalous = (shuffled(list(cells.path[cells.probability == label]), category) for label in (0, 1))
    num_normal = min(len(anomalous) if num_test is None else num_test, len(normal) // 2)
    rows = [
        *((path, "test", LabelName.NORMAL) for path in normal[:num_normal]),
        *((path, "train", LabelName.NORMAL) for path in normal[num_normal:]),
        *((path, "test", LabelName.ABNORMAL) for path in anomalous[:num_test]),
    ]
    samples = pd.DataFrame(rows, columns=["image_path", "split", "label_index"])
    samples["image_path"] = [str(root / path) for path in samples.image_path]
    samples["label_index"] = samples.label_index.astype(int)
    samples["label"] = samples.label_index.map({0: "good", 1: "defect"})
    samples["mask_path"] = ""
    return samples


class ELPV(AnomalibDataModule):
    """Solar cells from the package ``elpv-dataset``: real images without a download.

    Args:
        category (str): ``"mono"`` or ``"poly"``. Defaults to ``"mono"``.
        num_test (int | None): Number of normal and of anomalous test images, see :class:`ELPVDataset`.
            Defaults to ``100``.
        train_batch_size (int): Defaults to ``32``.
        eval_batch_size (int): Defaults to ``32``.
        num_workers (int): Defaults to ``0``, because the images are small.
        train_augmentations (Transform | None): Defaults to ``None``.
        val_augmentations (Transform | None): Defaults to ``None``.
        test_augmentations (Transform | None): Defaults to ``None``.
        augmentations (Transform | None): Augmentations for stages without their own. Defaults to ``None``.
        val_split_mode (ValSplitMode | str): Defaults to half of the test images, so that no threshold is fitted to
            the images that it is tested on.
        val_split_ratio (float): Defaults to ``0.5``.
        seed (int | None): Seed of the validation split. Defaults to ``0``.
    """

    def __init__(
        self,
        category: str = "mono",
        num_test: int | None = 100,
        train_batch_size: int = 32,
        eval_batch_size: int = 32,
        num_workers: int = 0,
        train_augmentations: Transform | None = None,
        val_augmentations: Transform | None = None,
        test_augmentations: Transform | None = None,
        augmentations: Transform | None = None,
        val_split_mode: ValSplitMode | str = ValSplitMode.FROM_TEST,
        val_split_ratio: float = 0.5,
        seed: int | None = 0,
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
        self.category = category
        self.num_test = num_test

    def _setup(self, _stage: str | None = None) -> None:
        self.train_data = ELPVDataset(self.category, Split.TRAIN, self.num_test)
        self.test_data = ELPVDataset(self.category, Split.TEST, self.num_test)
