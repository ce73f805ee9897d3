# Copyright (C) 2026 anomalib-fewshot contributors
# SPDX-License-Identifier: Apache-2.0

"""Several categories as one datamodule: a target and the other categories, or a few images of each."""

from collections.abc import Iterator, Sequence
from copy import deepcopy
from itertools import accumulate
from math import ceil
from pathlib import Path
from typing import Any

import torch
from anomalib import TaskType
from anomalib.data import AnomalibDataModule, AnomalibDataset, ImageBatch
from anomalib.metrics import Evaluator
from lightning.pytorch.trainer.states import TrainerFn
from torch.utils.data import ConcatDataset, DataLoader, DistributedSampler, Sampler

from anomalib_fewshot._host import forget_validation_data, replaces_sampler
from anomalib_fewshot.errors import ArgumentError, DataValidationError, SupportError

from .few_shot import FewShot, as_datamodule, category_folders, check_arguments, log_result_paths
from .manifest import SupportManifest
from .support import SupportDataModule, collate_normal, join_run
from .validation.issue import report_together

Source = AnomalibDataModule | dict[str, Any]


class MultiCategory(SupportDataModule):
    """Several categories of an anomalib dataset.

    With a ``target``, a network is trained on all normal training images of the other categories; the support is
    ``k_shot`` images of the target, and the test is on the target. Without one, ``k_shot`` images of each category are
    trained on and are the support, and each is tested: the figures are those of each category and their mean.

    A batch is of one category, as episodes need it; without a target, training batches are mixed.

    Args:
        source (AnomalibDataModule | dict | list): Datamodule of a category dataset, or its ``class_path`` and
            ``init_args``: each category gets a copy. Or a list of datamodules, one for each category, which may be of
            different classes.
        categories (list[str] | None): Categories. Defaults to ``None``: the folders of the source's root that have a
            folder ``train``, or the categories of a list of sources.
        target (str | None): Category to test on. No model is trained on it. Defaults to ``None``.
        k_shot (int | None): Number of normal images in a support, ``None`` for all. Defaults to ``4``.
        seed (int): Seed of the supports and of the order of batches. Defaults to ``0``.
        support (str | Path | list[str] | None): The target's support instead of a choice, as in :class:`FewShot`.
            Defaults to ``None``.
        validation (str): Where thresholds come from, as in :class:`FewShot`. Defaults to ``"support"``.

    Raises:
        TypeError: If a source is not a datamodule.
        ArgumentError: If an argument is out of its range, if a support is given without a target, or during ``setup``
            if there are fewer than two categories, if the target is not one of them, or if a category is there twice.
        SupportError, DataValidationError: During ``setup``, as :class:`FewShot` does.

    Example:
        >>> from anomalib_fewshot import ELPV
        >>> datamodule = MultiCategory([ELPV(category="mono"), ELPV(category="poly")], target="poly", k_shot=2)
        >>> datamodule.train_categories, datamodule.category
        (['mono'], 'poly')
    """

    seed: int
    train_data: ConcatDataset  # type: ignore[assignment]  # categories may be datasets of different classes

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
        given = [as_datamodule(part) for part in (source if isinstance(source, list) else [source])]
        if isinstance(source, list) and categories is not None:
            msg = "`categories` must be left out where `source` is a list: each source has its own."
            raise ArgumentError(msg)
        if support is not None and target is None:
            msg = "`support` must be that of a `target`, got no target. Name one."
            raise ArgumentError(msg)
        super().__init__(
            train_batch_size=given[0].train_batch_size,
            eval_batch_size=given[0].eval_batch_size,
            num_workers=given[0].num_workers,
            seed=seed,
        )
        self.sources = given
        self.categories = categories
        self.target = target
        self.k_shot = k_shot
        self.support = support
        self.validation = validation
        self.logged_paths: set[Path] = set()  # of results
        self.warned_for: set[str] = set()  # shared by the parts, so that each warning comes once
        self._parts: dict[str, FewShot] = {}
        self._chosen: list[str] | None = None  # of the other categories, by a model

    @property
    def name(self) -> str:  # type: ignore[override]  # as in anomalib, over an attribute of Lightning's
        """Name of the first source."""
        return self.sources[0].name

    @property
    def category(self) -> str:
        """The target, or nothing where all categories are tested."""
        return self.target or ""

    @category.setter
    def category(self, category: str) -> None:
        self.target = category
        self._parts = {}

    @property
    def parts(self) -> dict[str, FewShot]:
        """The few-shot datamodule of each category, by its name."""
        if not self._parts:
            sources = self._sources_by_category()
            if self.target is not None and self.target not in sources:
                msg = f"`target` must be one of the categories {list(sources)}, got {self.target!r}."
                raise ArgumentError(msg)
            if len(sources) < 2:
                msg = f"`categories` must be at least two, got {list(sources)}. For one category, use `FewShot`."
                raise ArgumentError(msg)
            self._parts = {name: self._part(name, source) for name, source in sources.items()}
        return self._parts

    @property
    def train_categories(self) -> list[str]:
        """The categories that a network is trained on."""
        return [name for name in self.parts if name != self.target] if self._chosen is None else self._chosen

    @property
    def manifest(self) -> SupportManifest | None:  # type: ignore[override]  # it is the target's, and not assigned
        """The target's support, after ``setup``."""
        return None if self.target is None else self.parts[self.target].manifest

    @property
    def category_by_path(self) -> dict[str, str]:
        """The category of each image by its path, after ``setup``. Empty where one category is tested."""
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
            self.sources[0].prepare_data()  # the categories are known once they are there
        with report_together():
            for part in self.parts.values():
                part.prepare_data()

    def setup(self, stage: str | None = None) -> None:
        """Set up all categories, choose the supports, and check that nothing of the target is trained on."""
        join_run(self.trainer)
        self._check_devices()
        self._chosen = None
        with report_together():
            for part in self.parts.values():
                part.trainer = self.trainer
                part.setup(stage)
        tested = self.parts if self.target is None else {self.target: self.parts[self.target]}
        trained = [self.parts[name] for name in self.train_categories]
        self.train_data = ConcatDataset([p.train_data if self.target is None else p.normal_data for p in trained])
        self.support_data = ConcatDataset([part.train_data for part in tested.values()])
        self.test_data = ConcatDataset([part.test_data for part in tested.values()])
        forget_validation_data(self)
        if all(hasattr(part, "val_data") for part in tested.values()):
            self.val_data = ConcatDataset([part.val_data for part in tested.values()])
        self._check()
        self._check_evaluator()

    def normal_images(self, category: str) -> AnomalibDataset:
        """Return the normal training images of a category, after ``setup``.

        Raises:
            ArgumentError: If there is no such category.
        """
        if category not in self.parts:
            msg = f"`category` must be one of {list(self.parts)}, got {category!r}."
            raise ArgumentError(msg)
        return self.parts[category].normal_data

    def train_on(self, categories: Sequence[str]) -> None:
        """Train on some of the other categories alone. Call it after ``setup``, which goes back to all.

        Args:
            categories (Sequence[str]): Their names. Of none, the training images are the support.

        Raises:
            ArgumentError: If one is not among ``train_categories``.
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
        """Write the manifests of the tested categories to a folder of results, after a fit."""
        for part in self.parts.values():
            part.write_manifests(folder)

    def teardown(self, stage: str) -> None:
        """Say after the test where the results lie."""
        if stage == TrainerFn.TESTING:
            log_result_paths(self.trainer, self.logged_paths)

    def _setup(self, _stage: str | None = None) -> None:
        """Not used: the sources make the datasets."""

    def train_dataloader(self) -> DataLoader:
        """Return the loader of the training images, in an order that the seed alone decides."""
        generator = torch.Generator().manual_seed(self.seed)
        if self.target is None:
            items = [part.support_items() for part in self.parts.values()]
            data, sampler = ConcatDataset(items), None
            if self.trainer and self.trainer.world_size > 1:
                ranks = {"num_replicas": self.trainer.world_size, "rank": self.trainer.global_rank}
                sampler = DistributedSampler(data, **ranks, seed=self.seed)
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
        """Return the loader of the supports of what is tested, in their order."""
        return self._loader(self.support_data, self.train_batch_size)

    def val_dataloader(self) -> DataLoader | list:
        """Return the loader of the validation images, or none if a category has none."""
        return self._loader(self.val_data, self.eval_batch_size) if hasattr(self, "val_data") else []

    def test_dataloader(self) -> DataLoader:
        """Return the loader of the test images, whose batches are of one category."""
        return self._loader(self.test_data, self.eval_batch_size)

    def _loader(self, data: ConcatDataset, batch_size: int, generator: torch.Generator | None = None) -> DataLoader:
        lengths = [len(part) for part in data.datasets]
        # every process sees the whole of a support, and of what is tested
        process = (self.trainer.global_rank, self.trainer.world_size) if generator and self.trainer else (0, 1)
        return DataLoader(
            data,
            batch_sampler=CategoryBatches(lengths, batch_size, generator, *process),
            generator=torch.Generator(),  # else a loader draws from the global generator
            num_workers=self.num_workers,
            collate_fn=self.external_collate_fn or ImageBatch.collate,
        )

    def _part(self, name: str, source: AnomalibDataModule) -> FewShot:
        support = self.support if name == self.target else None
        k_shot = self.k_shot if self.target in {None, name} else 1  # a support of the others is not used
        part = FewShot(source, k_shot, self.seed, support, self.validation)
        part.warned_for = self.warned_for
        part.is_tested = self.target in {None, name}
        part.manifest_file = {None: f"supports/{name}.json", name: "support.json"}.get(self.target)
        return part

    def _sources_by_category(self) -> dict[str, AnomalibDataModule]:
        if len(self.sources) > 1:
            names = [source.category for source in self.sources]
            if len(set(names)) < len(names):
                msg = f"`source` must be a list of different categories, got {names}."
                raise ArgumentError(msg)
            return dict(zip(names, self.sources, strict=True))
        source = self.sources[0]
        root = getattr(source, "root", None)
        names = self.categories if self.categories is not None else category_folders(root)
        if not names:
            msg = f"`categories` must be named, as the root {root} has no folder with a `train` in it."
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
                "`use_distributed_sampler` must be false on several devices: MultiCategory divides the batches itself. "
                "Give `--trainer.use_distributed_sampler false`, or train on one device."
            )
            raise ArgumentError(msg)

    def _check(self) -> None:
        """Raise if a training category has one image, or if an image of the target is in another category."""
        if self.target is None:
            return
        small = [name for name in self.train_categories if len(self.parts[name].normal_data) < 2]
        if small:
            msg = f"Every category must have two normal training images or more, got one in {small}. Leave it out."
            raise SupportError(msg)
        target = self.parts[self.target].source
        held = {path for data in _subsets(target) for path in data.samples.image_path}
        leaked = held & {path for data in self.train_data.datasets for path in data.samples.image_path}
        if leaked:
            msg = f"No image of the target must be trained on, got {sorted(leaked)[0]} in another category too."
            raise DataValidationError(msg)

    def _check_evaluator(self) -> None:
        """Raise if the model's evaluator would pool the scores of several categories."""
        evaluator = getattr(getattr(self.trainer, "lightning_module", None), "evaluator", None)
        if self.target is None and isinstance(evaluator, Evaluator) and not hasattr(evaluator, "measures_by_category"):
            msg = (
                "`evaluator` must measure each category by itself, got anomalib's, which pools their scores. Give the "
                "model `anomalib_fewshot.CategoryEvaluator`: `--model.evaluator CategoryEvaluator`."
            )
            raise ArgumentError(msg)


class CategoryBatches(Sampler[list[int]]):
    """Batches of indices, each of one category of concatenated datasets, of nearly one size and at least two indices.

    Args:
        lengths (Sequence[int]): Number of images of each category.
        batch_size (int): Images in a batch at most, but for a category that would leave a batch of one.
        generator (torch.Generator | None): Generator that shuffles the images of a category and the batches.
            Defaults to ``None``: all in their order.
        rank (int): Number of this process, which gets its share of the batches, as many as any other: some come twice
            if they do not come out even. Defaults to ``0``.
        num_replicas (int): Number of processes. Defaults to ``1``.

    Example:
        >>> list(CategoryBatches([5, 2], batch_size=3))
        [[0, 1, 2], [3, 4], [5, 6]]
    """

    def __init__(
        self,
        lengths: Sequence[int],
        batch_size: int,
        generator: torch.Generator | None = None,
        rank: int = 0,
        num_replicas: int = 1,
    ) -> None:
        self.lengths = list(lengths)
        self.batch_size = batch_size
        self.generator = generator
        self.rank = rank
        self.num_replicas = num_replicas

    def __len__(self) -> int:
        """Return the number of batches of this process."""
        return ceil(sum(self._count(length) for length in self.lengths) / self.num_replicas)

    def __iter__(self) -> Iterator[list[int]]:
        """Yield the batches."""
        batches = []
        for length, end in zip(self.lengths, accumulate(self.lengths), strict=True):
            order = torch.arange(length) if self.generator is None else torch.randperm(length, generator=self.generator)
            batches += [part.tolist() for part in (order + end - length).tensor_split(self._count(length))]
        if self.generator is not None:
            batches = [batches[i] for i in torch.randperm(len(batches), generator=self.generator)]
        share = range(self.rank, len(self) * self.num_replicas, self.num_replicas)
        yield from (batches[number % len(batches)] for number in share)

    def _count(self, length: int) -> int:
        return max(1, min(ceil(length / self.batch_size), length // 2))


def _subsets(part: AnomalibDataModule) -> list[AnomalibDataset]:
    return [getattr(part, name) for name in ("train_data", "val_data", "test_data") if hasattr(part, name)]
