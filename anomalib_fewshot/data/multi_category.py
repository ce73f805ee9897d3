# Copyright (C) 2026 anomalib-fewshot contributors
# SPDX-License-Identifier: Apache-2.0

"""Several categories in one data module: a target and other categories, or a support set for each category."""

from collections.abc import Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from anomalib import TaskType
from anomalib.data import AnomalibDataModule, AnomalibDataset, ImageBatch
from anomalib.metrics import Evaluator
from lightning.pytorch.trainer.states import TrainerFn
from torch.utils.data import ConcatDataset, DataLoader, DistributedSampler

from anomalib_fewshot._host import forget_validation_data, replaces_sampler
from anomalib_fewshot.errors import ArgumentError, DataValidationError, SupportError

from .category_batches import CategoryBatchSampler
from .few_shot import FewShot, check_arguments, log_result_paths
from .manifest import SupportManifest
from .source import as_datamodule, category_folders
from .support import SupportDataModule, add_run_callbacks, collate_normal
from .validation.issue import report_together

Source = AnomalibDataModule | dict[str, Any]


class MultiCategory(SupportDataModule):
    """Several categories of an anomalib dataset.

    With a ``target``, a network is trained on all normal training images of the other categories. The support set is
    ``k_shot`` images of the target, and the test images are those of the target.

    Without a ``target``, the training images and the support set are ``k_shot`` images of each category. All categories
    are tested, and each metric is reported for each category and as their mean.

    All images of a batch belong to one category. Training batches without a ``target`` are mixed.

    Args:
        source (AnomalibDataModule | dict | list): Data module of a dataset with categories, or its ``class_path``
            and ``init_args``, which is copied for each category. Or a list with one data module for each category,
            which may have different classes.
        categories (list[str] | None): Names of the categories. Defaults to ``None``: all folders in the root of
            the source that contain ``train``, or the categories of the list of sources.
        target (str | None): Category to test on. It is not used for training. Defaults to ``None``.
        k_shot (int | None): Number of images in each support set, ``None`` for all. Defaults to ``4``.
        seed (int): Seed of the support sets and of the batch order. Defaults to ``0``.
        support (str | Path | list[str] | None): Support set of the target, as in :class:`FewShot`.
            Defaults to ``None``.
        validation (str): Images that determine the thresholds, as in :class:`FewShot`. Defaults to ``"support"``.

    Raises:
        TypeError: If a source is not a data module.
        ArgumentError: If an argument is out of range, or if ``support`` is given without ``target``. During
            ``setup``: if there are fewer than two categories, if ``target`` is not one of them, or if a category is
            given twice.
        SupportError, DataValidationError: During ``setup``, as in :class:`FewShot`.

    Example:
        >>> from anomalib_fewshot import ELPV
        >>> datamodule = MultiCategory([ELPV(category="mono"), ELPV(category="poly")], target="poly", k_shot=2)
        >>> datamodule.train_categories, datamodule.category
        (['mono'], 'poly')
    """

    seed: int
    train_data: ConcatDataset  # type: ignore[assignment]  # the datasets of the categories may have different classes
    val_data: ConcatDataset  # type: ignore[assignment]
    test_data: ConcatDataset  # type: ignore[assignment]

    def __init__(
        self,
        source: Source | list[Source],
        categories: list[str] | None = None,
        target: str | None = None,
        k_shot: int | None = 4,
        seed: int = 0,
        support: str | Path | Sequence[str] | None = None,
        validation: str = "support",
    ) -> None:
        check_arguments(k_shot, seed, validation)
        sources = [as_datamodule(part) for part in (source if isinstance(source, list) else [source])]
        if isinstance(source, list) and categories is not None:
            msg = "`categories` must not be given if `source` is a list. Set the category of each source."
            raise ArgumentError(msg)
        if support is not None and target is None:
            msg = "`support` requires `target`, got none. Give a target."
            raise ArgumentError(msg)
        super().__init__(
            train_batch_size=sources[0].train_batch_size,
            eval_batch_size=sources[0].eval_batch_size,
            num_workers=sources[0].num_workers,
            seed=seed,
        )
        self.sources = sources
        self.categories = categories
        self.target = target
        self.k_shot = k_shot
        self.support = support
        self.validation = validation
        self.logged_paths: set[Path] = set()  # of the results
        self.warned_for: set[str] = set()  # shared by the parts, so that each warning is logged once
        self._parts: dict[str, FewShot] = {}
        self._chosen: list[str] | None = None  # training categories chosen by a model

    @property
    def name(self) -> str:  # type: ignore[override]  # as in anomalib: Lightning has an attribute
        """Name of the first source."""
        return self.sources[0].name

    @property
    def category(self) -> str:
        """The target. Empty if all categories are tested."""
        return self.target or ""

    @category.setter
    def category(self, category: str) -> None:
        self.target = category
        self._parts = {}

    @property
    def parts(self) -> dict[str, FewShot]:
        """The few-shot data module of each category, by its name."""
        if not self._parts:
            sources = self._sources_by_category()
            if self.target is not None and self.target not in sources:
                msg = f"`target` must be one of the categories {list(sources)}, got {self.target!r}."
                raise ArgumentError(msg)
            if len(sources) < 2:
                msg = f"`categories` must have two or more names, got {list(sources)}. For one category, use `FewShot`."
                raise ArgumentError(msg)
            self._parts = {name: self._part(name, source) for name, source in sources.items()}
        return self._parts

    @property
    def train_categories(self) -> list[str]:
        """Categories that a network is trained on."""
        return [name for name in self.parts if name != self.target] if self._chosen is None else self._chosen

    @property
    def manifest(self) -> SupportManifest | None:  # type: ignore[override]  # a property here
        """Manifest of the target, after ``setup``. ``None`` without a target."""
        return None if self.target is None else self.parts[self.target].manifest

    @property
    def category_by_path(self) -> dict[str, str]:
        """Category of each image by its path, after ``setup``. Empty with a target."""
        if self.target is not None:
            return {}
        subsets = [(name, data) for name, part in self.parts.items() for data in _subsets(part)]
        return {path: name for name, data in subsets for path in data.samples.image_path}

    @property
    def task(self) -> TaskType:
        """Segmentation if any category has masks."""
        tasks = {part.task for part in self.parts.values()}
        return TaskType.SEGMENTATION if TaskType.SEGMENTATION in tasks else TaskType.CLASSIFICATION

    def prepare_data(self) -> None:
        """Let the sources download their data."""
        root = getattr(self.sources[0], "root", None)
        if self.categories is None and len(self.sources) == 1 and not category_folders(root):
            self.sources[0].prepare_data()  # a download creates the folders of the categories
        with report_together():
            for part in self.parts.values():
                part.prepare_data()

    def setup(self, stage: str | None = None) -> None:
        """Set up all categories, choose the support sets, and check that training uses no image of the target."""
        add_run_callbacks(self.trainer)
        self._check_devices()
        self._chosen = None
        with report_together():
            for part in self.parts.values():
                part.trainer = self.trainer
                part.setup(stage)
        tested = self.parts if self.target is None else {self.target: self.parts[self.target]}
        trained = [self.parts[name] for name in self.train_categories]
        self.train_data = ConcatDataset([p.train_data if self.target is None else p.normal_data for p in trained])
        self.support_data: ConcatDataset = ConcatDataset([part.train_data for part in tested.values()])
        self.test_data = ConcatDataset([part.test_data for part in tested.values()])
        forget_validation_data(self)
        if all(hasattr(part, "val_data") for part in tested.values()):
            self.val_data = ConcatDataset([part.val_data for part in tested.values()])
        self._check()
        self._check_evaluator()

    def normal_images(self, category: str) -> AnomalibDataset:
        """Return the normal training images of a category, after ``setup``.

        Raises:
            ArgumentError: If the data module does not have the category.
        """
        if category not in self.parts:
            msg = f"`category` must be one of {list(self.parts)}, got {category!r}."
            raise ArgumentError(msg)
        return self.parts[category].normal_data

    def train_on(self, categories: Sequence[str]) -> None:
        """Train on the given categories only. Call this after ``setup``, which resets the choice.

        Args:
            categories (Sequence[str]): Names of categories. If empty, the training images are the support set.

        Raises:
            ArgumentError: If a category is not in ``train_categories``.
        """
        unknown = [name for name in categories if name not in self.train_categories]
        if unknown:
            msg = f"`categories` must be some of {self.train_categories}, got {unknown}."
            raise ArgumentError(msg)
        self._chosen = list(categories)
        self.train_data = ConcatDataset([self.parts[name].normal_data for name in categories] or [self.support_data])

    def manifests(self) -> list[SupportManifest]:
        """Return the manifest of each tested category, after ``setup``."""
        names = [self.target] if self.target is not None else list(self.parts)
        return [manifest for name in names for manifest in self.parts[name].manifests()]

    def write_manifests(self, folder: Path) -> None:
        """Write the manifests of the tested categories to the results folder, after a fit."""
        for part in self.parts.values():
            part.write_manifests(folder)

    def teardown(self, stage: str) -> None:
        """Log the paths of the results after a test."""
        if stage == TrainerFn.TESTING:
            log_result_paths(self.trainer, self.logged_paths)

    def _setup(self, _stage: str | None = None) -> None:
        """Not used: the sources create the datasets."""

    def train_dataloader(self) -> DataLoader:
        """Return the loader of the training images, shuffled with the seed."""
        generator = torch.Generator().manual_seed(self.seed)
        if self.target is None:
            items: list[Any] = [part.support_items() for part in self.parts.values()]
            data: ConcatDataset = ConcatDataset(items)
            sampler: DistributedSampler | None = None
            if self.trainer and self.trainer.world_size > 1:
                sampler = DistributedSampler(
                    data,
                    num_replicas=self.trainer.world_size,
                    rank=self.trainer.global_rank,
                    seed=self.seed,
                )
            return DataLoader(
                data,
                batch_size=self.train_batch_size,
                shuffle=sampler is None,
                sampler=sampler,
                generator=generator,
                num_workers=0 if all(isinstance(part, list) for part in items) else self.num_workers,
                collate_fn=collate_normal,
            )
        return self._loader(self.train_data, self.train_batch_size, generator)

    def support_dataloader(self) -> DataLoader:
        """Return the loader of the support sets of the tested categories, in a fixed order."""
        return self._loader(self.support_data, self.train_batch_size)

    def val_dataloader(self) -> DataLoader | list:
        """Return the loader of the validation images. Empty if a tested category has none."""
        return self._loader(self.val_data, self.eval_batch_size) if hasattr(self, "val_data") else []

    def test_dataloader(self) -> DataLoader:
        """Return the loader of the test images. All images of a batch belong to one category."""
        return self._loader(self.test_data, self.eval_batch_size)

    def _loader(self, data: ConcatDataset, batch_size: int, generator: torch.Generator | None = None) -> DataLoader:
        parts: list[Any] = data.datasets
        lengths = [len(part) for part in parts]
        # only training batches are divided between processes
        process = (self.trainer.global_rank, self.trainer.world_size) if generator and self.trainer else (0, 1)
        return DataLoader(
            data,
            batch_sampler=CategoryBatchSampler(lengths, batch_size, generator, *process),
            generator=torch.Generator(),  # otherwise the loader draws from the global generator
            num_workers=self.num_workers,
            collate_fn=self.external_collate_fn or ImageBatch.collate,
        )

    def _part(self, name: str, source: AnomalibDataModule) -> FewShot:
        support = self.support if name == self.target else None
        k_shot = self.k_shot if self.target in {None, name} else 1  # the support sets of other categories are not used
        part = FewShot(source, k_shot, self.seed, support, self.validation)
        part.warned_for = self.warned_for
        part.is_tested = self.target in {None, name}
        part.manifest_file = {None: f"supports/{name}.json", name: "support.json"}.get(self.target)
        return part

    def _sources_by_category(self) -> dict[str, AnomalibDataModule]:
        if len(self.sources) > 1:
            names = [source.category for source in self.sources]
            if len(set(names)) < len(names):
                msg = f"`source` must have each category once, got {names}."
                raise ArgumentError(msg)
            return dict(zip(names, self.sources, strict=True))
        source = self.sources[0]
        root = getattr(source, "root", None)
        names = self.categories if self.categories is not None else category_folders(root)
        if not names:
            msg = f"`categories` must be given, because no folder of the root contains `train`: {root}"
            raise ArgumentError(msg)
        sources = {name: deepcopy(source) for name in names}
        for name, copy in sources.items():
            copy.category = name
        return sources

    def _check_devices(self) -> None:
        if self.trainer is None or self.trainer.world_size == 1:
            return
        if replaces_sampler(self.trainer):
            msg = (
                "`use_distributed_sampler` must be false on several devices, because MultiCategory distributes the "
                "batches. Set `--trainer.use_distributed_sampler false`, or train on one device."
            )
            raise ArgumentError(msg)

    def _check(self) -> None:
        """Raise an error if a training category has one image, or if it contains an image of the target."""
        if self.target is None:
            return
        small = [name for name in self.train_categories if len(self.parts[name].normal_data) < 2]
        if small:
            msg = f"`categories` must have at least two normal training images each, got one in {small}. Remove them."
            raise SupportError(msg)
        target = self.parts[self.target].source
        held_out = {path for data in _subsets(target) for path in data.samples.image_path}
        training: list[Any] = self.train_data.datasets
        leaked = held_out & {path for data in training for path in data.samples.image_path}
        if leaked:
            msg = f"Training categories must not contain images of the target, got {sorted(leaked)[0]}."
            raise DataValidationError(msg)

    def _check_evaluator(self) -> None:
        """Raise an error if the evaluator of the model would pool the scores of several categories."""
        evaluator = getattr(getattr(self.trainer, "lightning_module", None), "evaluator", None)
        if self.target is None and isinstance(evaluator, Evaluator) and not hasattr(evaluator, "measures_by_category"):
            msg = (
                "`evaluator` must compute the metrics of each category, got anomalib's `Evaluator`, which pools the "
                "scores. Set `--model.evaluator CategoryEvaluator` (`anomalib_fewshot.CategoryEvaluator`)."
            )
            raise ArgumentError(msg)


def _subsets(part: AnomalibDataModule) -> list[AnomalibDataset]:
    return [getattr(part, name) for name in ("train_data", "val_data", "test_data") if hasattr(part, name)]
