# Copyright (C) 2026 anomalib-fewshot contributors
# SPDX-License-Identifier: Apache-2.0

"""Unlabeled pool: images without labels that a model can use in addition to the support set."""

import logging
import os
from collections.abc import Iterable, Sequence
from copy import copy, deepcopy
from dataclasses import dataclass, field
from functools import lru_cache
from numbers import Integral
from pathlib import Path
from typing import Any

import pandas as pd
from anomalib.data import AnomalibDataset, ImageBatch, ImageItem
from anomalib.data.utils import LabelName, Split
from lightning.pytorch import LightningModule
from torch.utils.data import Dataset
from torchvision.transforms.v2 import Transform

from anomalib_fewshot.errors import ArgumentError, DataValidationError, MissingDataError, SupportError

from .manifest import SupportManifest, sha256
from .sampling import mix_pool, order_anomalous, order_pool
from .validation.image_check import list_images
from .validation.issue import DataIssue

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class UnlabeledPool:
    """Files of an unlabeled pool.

    Args:
        files (dict[str, Path]): Files in the order of the pool, keyed by their names in the manifest.
        num_left_out (int): Number of images of a folder that are in the support set and therefore not in the pool.
        issues (list[DataIssue]): Issues of the folder of the pool.
    """

    files: dict[str, Path] = field(default_factory=dict)
    num_left_out: int = 0
    issues: list[DataIssue] = field(default_factory=list)

    def hashes(self) -> dict[str, str]:
        """Return the SHA-256 of each file. It is empty for a file that cannot be read."""
        return {name: _hash_once(path) for name, path in self.files.items()}


class UnlabeledDataset(Dataset):
    """Images of a pool without their labels and masks, in the order of the pool.

    Args:
        dataset (AnomalibDataset): Dataset that reads the images.
        files (Iterable[Path]): Files in the order of the pool.
    """

    def __init__(self, dataset: AnomalibDataset, files: Iterable[Path]) -> None:
        self.dataset = dataset
        rows = {path: row for row, path in enumerate(dataset.samples.image_path)}
        self.rows = [rows[str(path)] for path in files]

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.rows)

    def __getitem__(self, index: int) -> ImageItem:
        """Return an image and its path."""
        item: Any = self.dataset[self.rows[index]]
        return ImageItem(image=item.image, image_path=item.image_path)

    @property
    def augmentations(self) -> Transform | None:
        """Augmentations of the images. Setting them does not change other datasets."""
        return self.dataset.augmentations

    @augmentations.setter
    def augmentations(self, augmentations: Transform | None) -> None:
        self.dataset = copy(self.dataset)
        self.dataset.augmentations = augmentations

    def subset(self, indices: Sequence[int]) -> "UnlabeledDataset":
        """Return the dataset of some of the images."""
        chosen = copy(self)
        chosen.rows = [self.rows[index] for index in indices]
        return chosen

    collate_fn = staticmethod(ImageBatch.collate)


def check_unlabeled(unlabeled: int | str | Path | Sequence[str | Path] | None, contamination: float) -> None:
    """Raise an error if an argument of :class:`FewShot` about the pool is out of range.

    Raises:
        ArgumentError: If ``unlabeled`` is negative or has another type, if ``contamination`` is not in ``[0, 1)``, or
            if it is above 0 without a number of unlabeled images.
    """
    if isinstance(unlabeled, bool) or not isinstance(unlabeled, str | Path | Integral | Sequence | None):
        msg = f"`unlabeled` must be a folder, a list of files or a number of images, got {unlabeled!r}."
        raise ArgumentError(msg)
    if isinstance(unlabeled, Integral) and int(unlabeled) < 0:
        msg = f"`unlabeled` must be at least 0, got {unlabeled}."
        raise ArgumentError(msg)
    if not 0 <= contamination < 1:
        msg = f"`contamination` must be at least 0 and below 1, got {contamination}."
        raise ArgumentError(msg)
    if contamination and not (unlabeled and isinstance(unlabeled, Integral)):
        msg = (
            f"`contamination` must be used with a number of unlabeled images, got `unlabeled={unlabeled!r}`. The "
            "images are drawn from the data module. Set `unlabeled` to a number, or remove `contamination`."
        )
        raise ArgumentError(msg)


def read_pool(folder: Path, support: Sequence[Path]) -> UnlabeledPool:
    """Return the images in a folder and its subfolders as a pool, without the support set.

    Args:
        folder (Path): Folder of the pool.
        support (Sequence[Path]): Files of the support set. The same files are left out of the pool.

    Raises:
        MissingDataError: If the folder does not exist.
        DataValidationError: If it has no images outside the support set.
    """
    if not folder.is_dir():
        msg = f"`unlabeled` must be a folder of images or a number of images, got no folder: {folder}"
        raise MissingDataError(msg)
    paths, issues = list_images(folder)
    files = _without_support(paths, support, folder)
    if not files:
        reason = f", all of its {len(paths)} images are in the support set" if paths else ""
        msg = f"`unlabeled` must be a folder with images, got one without{reason}. Add images: {folder}"
        raise DataValidationError(msg)
    return UnlabeledPool(files, len(paths) - len(files), issues)


def read_pool_files(files: Iterable[str | Path], support: Sequence[Path]) -> UnlabeledPool:
    """Return a list of files as a pool, without the support set.

    Args:
        files (Iterable[str | Path]): Files of the pool. A file that is listed twice is used once.
        support (Sequence[Path]): Files of the support set. The same files are left out of the pool.

    Raises:
        MissingDataError: If a file does not exist.
        DataValidationError: If all files are in the support set.
    """
    paths = list(dict.fromkeys(map(Path, files)))
    for path in paths:
        if not path.is_file():
            msg = f"`unlabeled` must list files that exist, got no file: {path}"
            raise MissingDataError(msg)
    folder = Path(os.path.commonpath([path.absolute().parent for path in paths]))
    kept = _without_support(paths, support, folder)
    if not kept:
        msg = f"`unlabeled` must list images outside the support set, got {len(paths)} images of it. Add others."
        raise DataValidationError(msg)
    return UnlabeledPool(kept, len(paths) - len(kept))


def _without_support(paths: Iterable[Path], support: Sequence[Path], folder: Path) -> dict[str, Path]:
    """Return the files outside the support set, keyed by their paths relative to the folder."""
    labeled = {path.resolve() for path in support}
    files = {}
    for path in paths:
        if path.resolve() not in labeled:
            files[path.absolute().relative_to(folder.absolute()).as_posix()] = path
    return files


@dataclass(frozen=True)
class PoolCandidates:
    """Images of a data module from which a pool can be drawn.

    Args:
        normal (dict[str, str]): Paths of the normal training images, keyed by their names in the manifest.
        anomalous (dict[str, str]): Paths of the anomalous test images, keyed by their names in the manifest.
    """

    normal: dict[str, str]
    anomalous: dict[str, str]

    def draw(
        self,
        support: Sequence[str],
        size: int,
        contamination: float,
        *,
        dataset: str,
        category: str,
        seed: int,
    ) -> UnlabeledPool:
        """Draw a pool of normal training images outside the support set and of anomalous test images.

        Args:
            support (Sequence[str]): Names of the support set.
            size (int): Number of images in the pool.
            contamination (float): Share of anomalous images. At least one stays in the test data.
            dataset (str): Name of the dataset, part of the random key.
            category (str): Name of the category, part of the random key.
            seed (int): Seed, part of the random key.

        Raises:
            SupportError: If there are too few images.
        """
        normal = order_pool(list(self.normal), support, dataset=dataset, category=category, seed=seed)
        anomalous = order_anomalous(list(self.anomalous), dataset=dataset, category=category, seed=seed)
        names = mix_pool(normal, anomalous[1:], size, contamination)  # the first anomalous image stays in the test data
        return self._pool(names)

    def repeat(self, manifest: SupportManifest) -> UnlabeledPool:
        """Return the pool of a manifest.

        Raises:
            SupportError: If an image is missing or has changed.
        """
        pool = self._pool([name for name in manifest.unlabeled if name in self.normal or name in self.anomalous])
        hashes = pool.hashes()
        changed = [name for name, digest in manifest.unlabeled.items() if hashes.get(name) != digest]
        if changed:
            msg = (
                f"`unlabeled` must repeat the pool of the manifest, got {len(changed)} images that are missing or "
                f"changed, such as {changed[0]}. To draw another pool, change `unlabeled`."
            )
            raise SupportError(msg)
        return pool

    def _pool(self, names: Sequence[str]) -> UnlabeledPool:
        paths = self.normal | self.anomalous
        return UnlabeledPool({name: Path(paths[name]) for name in names})


def find_candidates(
    normal: dict[str, str],
    test_data: AnomalibDataset | None,
    folder: Path,
) -> PoolCandidates:
    """Return the images of a data module from which a pool can be drawn.

    Args:
        normal (dict[str, str]): Paths of the normal training images, keyed by their paths relative to ``folder``.
        test_data (AnomalibDataset | None): Test images, if there are any.
        folder (Path): Folder of the normal training images.
    """
    anomalous = {}
    if test_data is not None:
        samples = test_data.samples
        for path in samples.image_path[samples.label_index == LabelName.ABNORMAL]:
            anomalous[Path(os.path.relpath(path, folder)).as_posix()] = path
    return PoolCandidates(normal, anomalous)


def as_normal(dataset: AnomalibDataset, files: Iterable[Path], others: pd.DataFrame | None = None) -> AnomalibDataset:
    """Return a dataset that reads files as the given dataset reads its images, with the label normal.

    Args:
        dataset (AnomalibDataset): Dataset with the class and the augmentations to use.
        files (Iterable[Path]): The files.
        others (pd.DataFrame | None): Samples to add. Defaults to ``None``.
    """
    samples = pd.DataFrame({
        "image_path": [str(path) for path in files],
        "split": Split.TRAIN,
        "label": "normal",
        "label_index": LabelName.NORMAL.value,
        "mask_path": "",
    })
    if others is not None:
        samples = pd.concat([others, samples], ignore_index=True)
    samples.attrs = dict(dataset.samples.attrs)
    copied = deepcopy(dataset)
    copied.samples = samples
    return copied


def without_files(dataset: AnomalibDataset, files: Iterable[Path]) -> AnomalibDataset:
    """Return a dataset without the images of the given files. The same dataset if it has none of them."""
    paths = {str(path) for path in files}
    kept = [row for row, path in enumerate(dataset.samples.image_path) if str(Path(path)) not in paths]
    return dataset if len(kept) == len(dataset.samples) else dataset.subsample(kept)


def warn_pool_use(model: LightningModule, count: int, append_unlabeled: bool, warned_for: set[str]) -> None:
    """Log a warning, once, if a model ignores the pool, or if it uses an appended pool in two ways.

    A model that reads ``unlabeled_dataloader`` has the attribute ``uses_unlabeled = True``.

    Args:
        model (LightningModule): The model.
        count (int): Number of images in the pool.
        append_unlabeled (bool): Whether the training images contain the pool.
        warned_for (set[str]): Warnings that were logged before. The new one is added.
    """
    name = type(model).__name__
    uses_pool = bool(getattr(model, "uses_unlabeled", False))
    key = f"unlabeled images of {name}"
    if uses_pool != append_unlabeled or key in warned_for:
        return
    warned_for.add(key)
    if uses_pool:
        logger.warning(
            "%s uses the %d unlabeled images itself, and `append_unlabeled` also trains it on them as if they were "
            "normal. Remove `append_unlabeled`.",
            name,
            count,
        )
    else:
        logger.warning(
            "%s does not use the %d unlabeled images. Set `append_unlabeled` to train on them as if they were normal, "
            "or remove `unlabeled`.",
            name,
            count,
        )


@lru_cache(maxsize=2**15)
def _hash_unchanged(path: Path, _mtime: int, _num_bytes: int) -> str:
    """Hash each file only once per process, unless it changes."""
    return sha256(path)


def _hash_once(path: Path) -> str:
    try:
        status = path.stat()
        return _hash_unchanged(path, status.st_mtime_ns, status.st_size)
    except OSError:
        return ""  # the image check reports the file
