# Copyright (C) 2026 anomalib-fewshot contributors
# SPDX-License-Identifier: Apache-2.0

"""Few-shot data: keep k normal training images of any anomalib image data module."""

import logging
import os
from collections.abc import Sequence
from numbers import Integral
from pathlib import Path
from typing import Any

import torch
from anomalib.data import AnomalibDataModule, AnomalibDataset, ImageItem
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn
from torch.utils.data import DataLoader
from torchvision.transforms.v2 import Resize

from anomalib_fewshot._host import forget_validation_data
from anomalib_fewshot.errors import ArgumentError, SupportError

from .manifest import SupportManifest, sha256
from .sampling import choose_support, match_support
from .source import as_datamodule, describe_images, find_normal_images, prepare_source, set_up_source
from .support import SupportDataModule, add_run_callbacks, can_fit_thresholds, ordered_dataloader, with_own_generator
from .unlabeled import (
    UnlabeledDataset,
    UnlabeledPool,
    as_normal,
    check_unlabeled,
    find_candidates,
    read_pool,
    read_pool_files,
    warn_pool_use,
    without_files,
)
from .validation.image_check import check_images, find_skipped_files
from .validation.issue import DataIssue, report
from .validation.layout_check import check_label_classes

logger = logging.getLogger(__name__)

VALIDATIONS = ("support", "source")


class FewShot(SupportDataModule):
    """Keep k normal training images of a data module, the support set. Validation and test images are not changed.

    The choice depends only on the dataset name, the category and the seed. It is nested: the image for k = 1 is the
    first one for k = 2. Images that the data module splits off for validation and test are never chosen. A fit writes
    a manifest, ``support.json``, to the results folder.

    Args:
        source (AnomalibDataModule | dict): Data module to choose from, or its ``class_path`` and ``init_args``. If its
            ``seed`` is ``None``, it is set to 0, so that its splits are the same for every support set.
        k_shot (int | None): Number of images to keep, ``None`` for all. Not used if ``support`` is given.
            Defaults to ``4``.
        seed (int): Seed of the random choice. Defaults to ``0``.
        support (str | Path | Sequence[str] | None): Images to keep instead of a random choice: path of a manifest,
            or a list of file names. Defaults to ``None``.
        validation (str): Images that determine the thresholds: ``"support"``, the support set, see
            ``SupportThreshold``; or ``"source"``, the validation images of the data module, which in many data
            modules are the test images. Defaults to ``"support"``.
        unlabeled (int | str | Path | Sequence[str | Path] | None): Unlabeled images for models that use them, the pool:
            a folder, which is searched recursively, a list of files, or a number of normal training images outside the
            support set. The choice depends only on the dataset name, the category and the seed, and it is nested. It is
            the same for every ``k_shot`` up to 8, as long as there are enough images. Support images are left out of a
            folder or list. Test images are not: a model may use the images that it scores, without their labels.
            Defaults to ``None``: no pool.
        contamination (float): Share of a pool of a given number that is drawn from the anomalous test images, which
            are then not tested. Only for experiments on the effect of anomalous images in the pool. The tested images
            then depend on the seed. Defaults to ``0.0``.
        append_unlabeled (bool): Train on the support set and the pool, as if all images of the pool were normal. Only
            for models that do not use the pool themselves, such as ``Patchcore``. Defaults to ``False``.

    A manifest as ``support`` repeats only the support set. It also repeats the pool if ``unlabeled`` is the number of
    images in its pool and ``contamination`` is the same.

    Raises:
        TypeError: If ``source`` is not a data module.
        ArgumentError: If ``k_shot`` is below 1, ``seed`` is not an integer, or ``validation``, ``unlabeled`` or
            ``contamination`` is out of range.
        SupportError: During ``setup``, if there are fewer normal images than ``k_shot`` or ``unlabeled`` requires, if
            there are too few anomalous images for ``contamination``, or if an image of ``support`` is not a normal
            training image or has changed.
        MissingDataError: During ``setup``, if the folder or a file of ``unlabeled`` does not exist.
        DataValidationError: During ``setup``, if anomalib cannot read an image correctly.

    Example:
        >>> from anomalib_fewshot import ELPV
        >>> datamodule = FewShot(ELPV(category="poly"), k_shot=2)
        >>> datamodule.setup()
        >>> len(datamodule.train_data), len(datamodule.test_data)
        (2, 100)
    """

    seed: int

    def __init__(
        self,
        source: AnomalibDataModule | dict[str, Any],
        k_shot: int | None = 4,
        seed: int = 0,
        support: str | Path | Sequence[str] | None = None,
        validation: str = "support",
        unlabeled: int | str | Path | Sequence[str | Path] | None = None,
        contamination: float = 0.0,
        append_unlabeled: bool = False,
    ) -> None:
        source = as_datamodule(source)
        check_arguments(k_shot, seed, validation)
        check_unlabeled(unlabeled, contamination)
        super().__init__(
            train_batch_size=source.train_batch_size,
            eval_batch_size=source.eval_batch_size,
            num_workers=source.num_workers,
            seed=seed,
        )
        source.seed = 0 if source.seed is None else source.seed
        self.source = source
        self.k_shot = k_shot
        self.support = support
        self.validation = validation
        self.unlabeled = unlabeled
        self.contamination = contamination
        self.append_unlabeled = append_unlabeled
        self.support_data: AnomalibDataset  # after ``setup``; the training images unless a pool is appended
        self.manifest: SupportManifest | None = None
        self.data_issues: list[DataIssue] = []  # after ``setup``
        self.is_tested = True  # False: the test images are not checked
        self.manifest_file: str | None = "support.json"  # in the results folder
        self.logged_paths: set[Path] = set()  # so that a fit and its test log each path once
        self.warned_for: set[str] = set()  # names of models; all categories of a run share it

    @property
    def name(self) -> str:  # type: ignore[override]  # as in anomalib: Lightning has an attribute
        """Name of the source, so that the results folder is the same as without this data module."""
        return self.source.name

    @property
    def train_categories(self) -> list[str]:
        """Categories that a network is trained on."""
        return [self.category]

    @property
    def category(self) -> str:
        """Category of the source."""
        return self.source.category

    @category.setter
    def category(self, category: str) -> None:
        self.source.category = category

    def prepare_data(self) -> None:
        """Let the source download its data.

        Raises:
            ArgumentError: If other categories exist, but not this one.
            MissingDataError: If there is no data and the download fails.
        """
        prepare_source(self.source)

    def setup(self, stage: str | None = None) -> None:
        """Set up the source and keep the support set of its training images."""
        add_run_callbacks(self.trainer)
        self.source.trainer = self.trainer  # anomalib reads the image size of the model from it
        set_up_source(self.source, stage)
        rows, folder = find_normal_images(self.source)
        support = self._choose(sorted(rows), folder)
        pool = self._choose_pool(sorted(rows), support, folder)
        num_fitted = len(support) + (len(pool.files) if self.append_unlabeled else 0)
        forget_validation_data(self)  # of an earlier stage
        for name in ("val_data", "test_data") if self._validates(stage, num_fitted) else ("test_data",):
            if hasattr(self.source, name):
                data = getattr(self.source, name)
                setattr(self, name, without_files(data, pool.files.values()) if self.contamination else data)
        images = {path: sha256(folder / path) for path in support}
        seed = self.seed if self.support is None else None
        contents = (images, pool.hashes(), self.contamination)
        manifest = SupportManifest(self.name, self.category, len(support), seed, *contents)
        if manifest != self.manifest:
            self._check_images([folder / path for path in support], pool)
            self.manifest = manifest
        self.normal_data = self.source.train_data.subsample(sorted(rows.values()))
        self.support_data = self.source.train_data.subsample([rows[path] for path in support])
        self._use_pool(pool, stage)

    def _validates(self, stage: str | None, count: int) -> bool:
        """Return whether to keep the validation images: on request, or if the support set cannot give thresholds."""
        if self.validation == "source" or stage == TrainerFn.VALIDATING:
            return True
        if self.trainer is None or can_fit_thresholds(self.trainer.lightning_module, count):
            return False
        self._warn_threshold_source(self.trainer.lightning_module, stage, count)
        return True

    def _warn_threshold_source(self, model: LightningModule, stage: str | None, count: int) -> None:
        name = type(model).__name__
        if name in self.warned_for:
            return
        if hasattr(self.source, "val_data"):
            self.warned_for.add(name)
            logger.warning(
                "The thresholds of %s cannot be calibrated on %d support images. They are fitted to the validation "
                "images, which in many data modules are the test images (`val_split_mode`).",
                name,
                count,
            )
        elif stage == TrainerFn.FITTING and not hasattr(model, "calibrates_out_of_fold"):
            # The models of this package, which have this attribute, log their own warning.
            self.warned_for.add(name)
            logger.warning(
                "%s has no threshold, so predicted labels are not meaningful: it cannot be calibrated on %d support "
                "images, and there are no validation images. Set `val_split_mode` of the source.",
                name,
                count,
            )

    def _setup(self, _stage: str | None = None) -> None:
        """Not used: the source creates the datasets."""

    def train_dataloader(self) -> DataLoader:
        """Return the loader of the support set and of an appended pool, shuffled with the seed.

        A long training repeats the same few images. They are read only once, unless the user sets augmentations, the
        image size of the model is unknown, or a pool is appended.
        """
        data: Any = self.train_data if self.num_appended else self.support_items()
        return DataLoader(
            data,
            batch_size=self.train_batch_size,
            shuffle=True,
            generator=torch.Generator().manual_seed(self.seed),
            num_workers=0 if isinstance(data, list) else self.num_workers,
            collate_fn=self.external_collate_fn or self.train_data.collate_fn,
        )

    def support_dataloader(self) -> DataLoader:
        """Return the loader of the support set, in a fixed order."""
        return ordered_dataloader(self, self.support_data)

    def normal_images(self, category: str) -> AnomalibDataset:
        """Return the normal training images of the category, after ``setup``."""
        if category != self.category:
            msg = (
                f"`category` must be {self.category!r}, got {category!r}. For several categories, use `MultiCategory`."
            )
            raise ArgumentError(msg)
        return self.normal_data

    def train_on(self, categories: Sequence[str]) -> None:
        """Do nothing: there are no other categories.

        Raises:
            ArgumentError: If ``categories`` is not empty.
        """
        if categories:
            msg = f"`categories` must be empty, got {list(categories)}. For several categories, use `MultiCategory`."
            raise ArgumentError(msg)

    def support_items(self) -> list[ImageItem] | AnomalibDataset:
        """Return the support set, as a list in memory if it is small and has no random augmentations."""
        is_small = self.k_shot is not None or self.support is not None
        data: Any = self.support_data
        return [*data] if is_small and isinstance(data.augmentations, Resize) else data

    def write_manifests(self, folder: Path) -> None:
        """Write the manifest of the support set to the results folder, after a fit."""
        if self.manifest is not None and self.manifest_file is not None:
            self.manifest.write(folder / self.manifest_file)

    def val_dataloader(self) -> DataLoader | list:
        """Return the loader of the validation images. Empty if the thresholds are calibrated on the support set."""
        return with_own_generator(super().val_dataloader()) if hasattr(self, "val_data") else []

    def test_dataloader(self) -> DataLoader:
        """Return the loader of the test images."""
        return with_own_generator(super().test_dataloader())

    def teardown(self, stage: str) -> None:
        """Log the paths of the results after a fit or a test."""
        if stage in {TrainerFn.FITTING, TrainerFn.TESTING}:
            log_result_paths(self.trainer, self.logged_paths)

    def _choose_pool(self, normal: list[str], support: list[str], folder: Path) -> UnlabeledPool:
        """Return the unlabeled pool. It is empty without one."""
        if not self.unlabeled:
            return UnlabeledPool()
        if isinstance(self.unlabeled, str | Path):
            return read_pool(Path(self.unlabeled), [folder / path for path in support])
        if isinstance(self.unlabeled, Sequence):
            return read_pool_files(self.unlabeled, [folder / path for path in support])
        test_data = getattr(self.source, "test_data", None)
        candidates = find_candidates({path: str(folder / path) for path in normal}, test_data, folder)
        size = int(self.unlabeled)
        if isinstance(self.support, str | Path):
            manifest = SupportManifest.read(Path(self.support))
            if len(manifest.unlabeled) == size and manifest.contamination == self.contamination:
                return candidates.repeat(manifest)
        key = {"dataset": self.name, "category": self.category}
        return candidates.draw(support, size, self.contamination, **key, seed=self.seed)

    def _use_pool(self, pool: UnlabeledPool, stage: str | None) -> None:
        """Create the dataset of the pool and the training images."""
        self.train_data = self.support_data
        self.unlabeled_data = None
        if not pool.files:
            return
        files = pool.files.values()
        self.unlabeled_data = UnlabeledDataset(as_normal(self.support_data, files), files)
        if self.append_unlabeled:
            self.train_data = as_normal(self.support_data, files, others=self.support_data.samples)
        if self.trainer is not None and stage == TrainerFn.FITTING:
            warn_pool_use(self.trainer.lightning_module, len(files), self.append_unlabeled, self.warned_for)

    def _check_images(self, support: list[Path], pool: UnlabeledPool) -> None:
        """Decode the support set, read the headers of the other images, and report the issues."""
        if pool.num_left_out:
            source = f": {self.unlabeled}" if isinstance(self.unlabeled, str | Path) else "."
            text = "%d images of the support set are left out of the unlabeled images%s"
            logger.info(text, pool.num_left_out, source)
        names = ("val_data", "test_data") if self.is_tested else ()
        subsets = [getattr(self, name).samples for name in names if hasattr(self, name)]
        scored = list(dict.fromkeys(Path(path) for samples in subsets for path in samples.image_path))
        pairs = [pair for samples in subsets for pair in zip(samples.image_path, samples.mask_path, strict=True)]
        masks = {image: mask for image, mask in pairs if isinstance(mask, str) and mask}
        known = getattr(self.source, "data_issues", [])
        upright = getattr(self.source, "reads_upright", False)  # anomalib ignores the EXIF orientation
        issues = [
            *known,
            *check_images(support, [*scored, *pool.files.values()], masks, decode=False, upright=upright),
            *pool.issues,
            *find_skipped_files(dict.fromkeys(path.parent for path in [*support, *scored])),
        ]
        if "test_data" in names and hasattr(self, "test_data"):
            folder = os.path.commonpath([path.parent for path in [*support, *scored]])
            issues += check_label_classes(self.test_data.samples.label_index, folder)
        self.data_issues = list(dict.fromkeys(issues))
        report(self.data_issues, known)

    def _choose(self, paths: list[str], folder: Path) -> list[str]:
        """Return the paths to keep: chosen at random, named by the user, or from a manifest."""
        if self.support is None:
            k_shot = len(paths) if self.k_shot is None else self.k_shot
            return choose_support(paths, k_shot, dataset=self.name, category=self.category, seed=self.seed)
        if not isinstance(self.support, str | Path):
            files = [(folder / path).as_posix() for path in paths]
            chosen = match_support(self.support, files, describe_images(self.source))
            return [Path(path).relative_to(folder).as_posix() for path in chosen]
        manifest = SupportManifest.read(Path(self.support))
        if (manifest.dataset, manifest.category) != (self.name, self.category):
            msg = (
                f"`support` must be a manifest of {self.name} {self.category}, got one of {manifest.dataset} "
                f"{manifest.category}: {self.support}"
            )
            raise SupportError(msg)
        chosen = match_support(list(manifest.images), paths)
        changed = [path for path in chosen if sha256(folder / path) != manifest.images[path]]
        if changed:
            msg = f"`support` must list unchanged images, got {len(changed)} that changed since: {', '.join(changed)}."
            raise SupportError(msg)
        return chosen


def check_arguments(k_shot: int | None, seed: int, validation: str) -> None:
    """Raise an error if an argument of :class:`FewShot` or :class:`MultiCategory` is out of range.

    Raises:
        ArgumentError: If ``k_shot`` is below 1, ``seed`` is not an integer, or ``validation`` is unknown.
    """
    if k_shot is not None and k_shot < 1:
        msg = f"`k_shot` must be at least 1, got {k_shot}."
        raise ArgumentError(msg)
    if not isinstance(seed, Integral):
        msg = f"`seed` must be an integer, got {seed!r}. Each integer gives another support set."
        raise ArgumentError(msg)
    if validation not in VALIDATIONS:
        msg = f"`validation` must be one of {VALIDATIONS}, got {validation!r}."
        raise ArgumentError(msg)


def log_result_paths(trainer: Trainer | None, logged: set[Path]) -> None:
    """Log the results of a fit or a test, and add their paths to ``logged``. Paths in ``logged`` are skipped."""
    if trainer is None or not trainer.is_global_zero:
        return
    parts = {"Heat maps": "images", "Checkpoint": "weights/lightning/model.ckpt"}
    for title, part in (parts | {"Support set": "support.json", "Support sets": "supports"}).items():
        path = Path(trainer.default_root_dir) / part
        if path.exists() and path not in logged:
            logged.add(path)
            logger.info("%s: %s", title, path)
