# Copyright (C) 2026 anomalib-fewshot contributors
# SPDX-License-Identifier: Apache-2.0

"""Few-shot data: keep k normal training images of any anomalib image datamodule."""

import logging
import os
from collections.abc import Mapping, Sequence
from numbers import Integral
from pathlib import Path
from typing import Any

import torch
from anomalib.data import AnomalibDataModule, AnomalibDataset, ImageItem, get_datamodule
from anomalib.data.utils import LabelName
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn
from torch.utils.data import DataLoader
from torchvision.transforms.v2 import Resize

from anomalib_fewshot._host import forget_validation_data
from anomalib_fewshot.errors import ArgumentError, DataValidationError, FewShotError, MissingDataError, SupportError

from .manifest import SupportManifest, sha256
from .object_strings import object_strings
from .sampling import choose_support, match_support
from .support import SupportDataModule, can_fit_thresholds, join_run, ordered_dataloader, without_global_draws
from .validation.image_check import check_pictures, find_skipped_files
from .validation.issue import DataIssue, report
from .validation.layout_check import check_kinds

logger = logging.getLogger(__name__)

VALIDATIONS = ("support", "source")


class FewShot(SupportDataModule):
    """Keep k normal training images of a datamodule. Validation and test data stay as the datamodule makes them.

    The choice depends on the dataset's name, the category and the seed alone, and is nested: the image at k = 1 is the
    first of those at k = 2. It is made after the datamodule has split validation and test data off its training
    images, so these never hold a support image. A manifest, ``support.json``, is written beside the results.

    Args:
        source (AnomalibDataModule | dict): Datamodule to choose from, or its ``class_path`` and ``init_args``. If it
            has no seed of its own it gets 0, so that its splits are the same for every choice of a support.
        k_shot (int | None): Number of images to keep, ``None`` for all. Not used where ``support`` is given.
            Defaults to ``4``.
        seed (int): Seed of the choice. Defaults to ``0``.
        support (str | Path | Sequence[str] | None): The images to keep instead of a choice: path of a manifest, or a
            list of file names. Defaults to ``None``.
        validation (str): Where thresholds come from: ``"support"``, the images that are kept, see
            ``SupportThreshold``, or ``"source"``, the validation images of the datamodule, which for many are the
            test images. Defaults to ``"support"``.

    Raises:
        TypeError: If ``source`` is not a datamodule.
        ArgumentError: If ``k_shot`` is below 1, ``seed`` is not an integer, or there is no such ``validation``.
        SupportError: During ``setup``, if there are fewer normal images than ``k_shot``, or if ``support`` names an
            image that is not a normal training image or has changed.
        DataValidationError: During ``setup``, if anomalib cannot read an image of the support or of a test, or would
            read it as something else.

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
    ) -> None:
        source = as_datamodule(source)
        check_arguments(k_shot, seed, validation)
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
        self.manifest: SupportManifest | None = None
        self.findings: list[DataIssue] = []  # what the check of the pictures has found, after ``setup``
        self.is_tested = True  # else its test images are of no concern
        self.manifest_file: str | None = "support.json"  # beside the results
        self.logged_paths: set[Path] = set()  # of results: a training and its test log each once
        self.warned_for: set[str] = set()  # models whose thresholds were warned of; categories of one run share it

    @property
    def name(self) -> str:  # type: ignore[override]  # as in anomalib, over an attribute of Lightning's
        """Name of the source: results lie where they lie without this datamodule."""
        return self.source.name

    @property
    def train_categories(self) -> list[str]:
        """The categories that a network is trained on."""
        return [self.category]

    @property
    def category(self) -> str:
        """Category of the source."""
        return self.source.category

    @category.setter
    def category(self, category: str) -> None:
        self.source.category = category

    def prepare_data(self) -> None:
        """Let the source download its data, unless only the category is not there."""
        check_category(self.source)
        try:
            self.source.prepare_data()
        except FewShotError:  # some are an OSError, too
            raise
        except OSError as error:
            root = getattr(self.source, "root", None)
            msg = f"`source` finds no data in {root} and cannot download it ({error}). Check `root` and `category`."
            raise MissingDataError(msg) from error

    def setup(self, stage: str | None = None) -> None:
        """Set up the source and keep the support of its training images."""
        join_run(self.trainer)
        self.source.trainer = self.trainer  # through it anomalib finds the size that the model resizes to
        try:
            with object_strings():
                self.source.setup(stage)
        except ValueError as error:
            msg = _explain_host_error(str(error))
            if msg is None:
                raise
            raise DataValidationError(msg) from error
        rows, folder = self._normal_images()
        support = self._choose(sorted(rows), folder)
        forget_validation_data(self)  # of a model or stage that had a validation
        for name in ("val_data", "test_data") if self._validates(stage, len(support)) else ("test_data",):
            if hasattr(self.source, name):
                setattr(self, name, getattr(self.source, name))
        images = {path: sha256(folder / path) for path in support}
        if self.manifest is None or images != self.manifest.images:
            self._check_pictures([folder / path for path in support])
            seed = self.seed if self.support is None else None
            self.manifest = SupportManifest(self.name, self.category, len(support), seed, images)
        self.normal_data = self.source.train_data.subsample(sorted(rows.values()))
        self.train_data = self.source.train_data.subsample([rows[path] for path in support])

    def _validates(self, stage: str | None, count: int) -> bool:
        """Return whether there is a validation: also of a model that cannot take its thresholds from the support."""
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
                "The thresholds of %s cannot come from a support of %d: they are from the validation images of the "
                "source, which for many data sets are the test images (`val_split_mode`).",
                name,
                count,
            )
        elif stage == TrainerFn.FITTING and not hasattr(
            model,
            "calibrates_out_of_fold",
        ):  # this package's say it themselves
            self.warned_for.add(name)
            logger.warning(
                "%s has no threshold: it cannot come from a support of %d, and the source has no validation images. "
                "Give it some (`val_split_mode`): the labels mean nothing.",
                name,
                count,
            )

    def _setup(self, _stage: str | None = None) -> None:
        """Not used: the source makes the datasets."""

    def train_dataloader(self) -> DataLoader:
        """Return the loader of the support, in an order that the seed alone decides.

        A training of many steps takes the same few images again and again. They are read once, unless there are
        augmentations of the user's, or the model does not say to which size they are to be resized.
        """
        data = self.support_items()
        return DataLoader(
            data,
            batch_size=self.train_batch_size,
            shuffle=True,
            generator=torch.Generator().manual_seed(self.seed),
            num_workers=0 if isinstance(data, list) else self.num_workers,
            collate_fn=self.external_collate_fn or self.train_data.collate_fn,
        )

    def support_dataloader(self) -> DataLoader:
        """Return the loader of the support, in the order of its paths."""
        return ordered_dataloader(self, self.train_data)

    def normal_images(self, category: str) -> AnomalibDataset:
        """Return the normal training images of the category, after ``setup``."""
        if category != self.category:
            msg = f"`category` must be {self.category!r}, got {category!r}. Use `MultiCategory` for several."
            raise ArgumentError(msg)
        return self.normal_data

    def train_on(self, categories: Sequence[str]) -> None:
        """Do nothing: there are no other categories.

        Raises:
            ArgumentError: If one is named.
        """
        if categories:
            msg = f"`categories` must be empty, got {list(categories)}. Use `MultiCategory` for several."
            raise ArgumentError(msg)

    def support_items(self) -> list[ImageItem] | AnomalibDataset:
        """Return the support: in memory, unless it is all images, there are augmentations or no size is known."""
        is_small = self.k_shot is not None or self.support is not None
        return [*self.train_data] if is_small and isinstance(self.train_data.augmentations, Resize) else self.train_data

    def write_manifests(self, folder: Path) -> None:
        """Write the manifest of the support set to a folder of results, after a fit."""
        if self.manifest is not None and self.manifest_file is not None:
            self.manifest.write(folder / self.manifest_file)

    def val_dataloader(self) -> DataLoader | list:
        """Return the loader of the validation images, or none if the thresholds come from the support."""
        return without_global_draws(super().val_dataloader()) if hasattr(self, "val_data") else []

    def test_dataloader(self) -> DataLoader:
        """Return the loader of the test images."""
        return without_global_draws(super().test_dataloader())

    def teardown(self, stage: str) -> None:
        """Say after a fit and a test where the results lie."""
        if stage in {TrainerFn.FITTING, TrainerFn.TESTING}:
            log_result_paths(self.trainer, self.logged_paths)

    def _normal_images(self) -> tuple[dict[str, int], Path]:
        """Return the row of each normal training image by its path, and the folder that the paths are relative to."""
        samples = self.source.train_data.samples
        samples = samples[samples.label_index == LabelName.NORMAL]
        if samples.empty:
            msg = f"`source` must have normal training images, got none in {self.name} {self.category}."
            raise SupportError(msg)
        folder = Path(os.path.commonpath([Path(path).parent for path in samples.image_path]))
        paths = [Path(path).relative_to(folder).as_posix() for path in samples.image_path]
        return dict(zip(paths, samples.index, strict=True)), folder

    def _check_pictures(self, support: list[Path]) -> None:
        """Decode the support, read the headers of the images to score, and refuse or warn of what is wrong."""
        names = ("val_data", "test_data") if self.is_tested else ()
        subsets = [getattr(self, name).samples for name in names if hasattr(self, name)]
        scored = list(dict.fromkeys(Path(path) for samples in subsets for path in samples.image_path))
        pairs = [pair for samples in subsets for pair in zip(samples.image_path, samples.mask_path, strict=True)]
        masks = {image: mask for image, mask in pairs if isinstance(mask, str) and mask}
        known = getattr(self.source, "findings", [])
        upright = getattr(self.source, "reads_upright", False)  # else anomalib reads, which ignores EXIF
        findings = [
            *known,
            *check_pictures(support, scored, masks, decode=False, upright=upright),
            *find_skipped_files(dict.fromkeys(path.parent for path in [*support, *scored])),
        ]
        if "test_data" in names and hasattr(self, "test_data"):
            folder = os.path.commonpath([path.parent for path in [*support, *scored]])
            findings += check_kinds(self.test_data.samples.label_index, folder)
        self.findings = list(dict.fromkeys(findings))
        report(self.findings, known)

    def _choose(self, paths: list[str], folder: Path) -> list[str]:
        """Return the paths to keep: a choice, those that the user names, or those of a manifest."""
        if self.support is None:
            k_shot = len(paths) if self.k_shot is None else self.k_shot
            return choose_support(paths, k_shot, dataset=self.name, category=self.category, seed=self.seed)
        if not isinstance(self.support, str | Path):
            files = [(folder / path).as_posix() for path in paths]
            chosen = match_support(self.support, files, self._other_images())
            return [Path(path).relative_to(folder).as_posix() for path in chosen]
        manifest = SupportManifest.read(Path(self.support))
        if (manifest.dataset, manifest.category) != (self.name, self.category):
            msg = (
                f"`support` must be a manifest of {self.name} {self.category}, got {self.support}, which is of "
                f"{manifest.dataset} {manifest.category}."
            )
            raise SupportError(msg)
        chosen = match_support(list(manifest.images), paths)
        changed = [path for path in chosen if sha256(folder / path) != manifest.images[path]]
        if changed:
            msg = f"`support` must name images that have not changed, got {self.support}, but {changed} have."
            raise SupportError(msg)
        return chosen

    def _other_images(self) -> dict[str, str]:
        """Return what is known of each image that must not be in a support, by its path."""
        known = {}
        for title in ("train", "val", "test"):
            subset: AnomalibDataset | None = getattr(self.source, f"{title}_data", None)
            if subset is not None:
                for path, label in zip(subset.samples.image_path, subset.samples.label_index, strict=True):
                    kind = "a normal" if label == LabelName.NORMAL else "an anomalous"
                    known[Path(path).as_posix()] = f"{kind} image of the {title} data"
        return known


def check_arguments(k_shot: int | None, seed: int, validation: str) -> None:
    """Raise if an argument of :class:`FewShot` or :class:`MultiCategory` is out of its range.

    Raises:
        ArgumentError: If ``k_shot`` is below 1, ``seed`` is not an integer, or there is no such ``validation``.
    """
    if k_shot is not None and k_shot < 1:
        msg = f"`k_shot` must be at least 1, got {k_shot}."
        raise ArgumentError(msg)
    if not isinstance(seed, Integral):
        msg = f"`seed` must be an integer, got {seed!r}. Use 0, or another number for another support set."
        raise ArgumentError(msg)
    if validation not in VALIDATIONS:
        msg = f"`validation` must be one of {VALIDATIONS}, got {validation!r}."
        raise ArgumentError(msg)


def log_result_paths(trainer: Trainer | None, logged: set[Path]) -> None:
    """Log the folders and files that a fit or a test has left, and add them to those that were logged before."""
    if trainer is None or not trainer.is_global_zero:
        return
    parts = {"Heat maps": "images", "Checkpoint": "weights/lightning/model.ckpt"}
    for title, part in (parts | {"Support": "support.json", "Supports": "supports"}).items():
        path = Path(trainer.default_root_dir) / part
        if path.exists() and path not in logged:
            logged.add(path)
            logger.info("%s: %s", title, path)


def as_datamodule(source: AnomalibDataModule | Mapping[str, Any]) -> AnomalibDataModule:
    """Return a datamodule, made if its ``class_path`` and ``init_args`` are given.

    Raises:
        TypeError: If it is neither.
    """
    if isinstance(source, Mapping):
        source = get_datamodule(dict(source))
    if not isinstance(source, AnomalibDataModule):
        msg = f"`source` must be an anomalib datamodule or its class_path and init_args, got {type(source).__name__}."
        raise TypeError(msg)
    return source


def category_folders(root: str | Path | None) -> list[str]:
    """Return the categories that are folders of a root: those with a folder ``train``, or ``Train`` as DAGM has it."""
    return [] if root is None else sorted(path.parent.name for path in Path(root).glob("*/[Tt]rain"))


def check_category(source: AnomalibDataModule) -> None:
    """Raise if the root has folders of categories, but not the one that is asked for.

    anomalib's datamodules would take this for a data set that is yet to be downloaded.
    """
    root = getattr(source, "root", None)
    if not source.category or root is None or (Path(root) / source.category).exists():
        return
    categories = category_folders(root)
    if categories:
        msg = f"`category` must be a folder of {root}, got {source.category!r}. There are {categories}."
        raise ArgumentError(msg)


def check_ascii(path: str | Path) -> None:
    """Raise if a path holds letters that anomalib refuses."""
    names = [name for name in Path(path).parts if not (name.isascii() and name.isprintable())]
    if names:
        msg = (
            f"Folders must have names of ASCII letters alone, got {names[0]!r} in {path}: anomalib refuses others. "
            "Rename the folder."
        )
        raise DataValidationError(msg)


def _explain_host_error(error: str) -> str | None:
    """Return what an error of anomalib's or pandas' in a setup means, nothing of one that is not known."""
    if "non-printable characters: " in error:  # anomalib's words for all but ASCII
        check_ascii(error.partition("non-printable characters: ")[2])
    if "not enough values to unpack" in error:
        return (
            f"`source` cannot make its splits ({error}). With good images alone, set its `val_split_mode` and "
            "`test_split_mode` to `none`."
        )
    if "equal len keys" in error:
        return (
            f"`source` must have a mask for each anomalous image ({error}). For images without masks, use "
            "`MVTecFolder` or `Folder`."
        )
    return None
