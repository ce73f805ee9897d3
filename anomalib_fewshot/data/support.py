# Copyright (C) 2026 anomalib-fewshot contributors
# SPDX-License-Identifier: Apache-2.0

"""The one road to the support: the normal images that a model is fitted to, never shuffled."""

import hashlib
import json
import os
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import replace
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import torch
from anomalib.data import AnomalibDataModule, AnomalibDataset, ImageBatch, ImageItem
from anomalib.data.utils import LabelName
from lightning.pytorch import Callback, LightningModule, Trainer
from torch.utils.data import DataLoader

from anomalib_fewshot._cli.console import print_messages_once
from anomalib_fewshot._cli.signals import raise_on_signals
from anomalib_fewshot._host import add_callbacks, is_memory_bank

from .manifest import SupportManifest

MIN_IMAGES = 3  # for the thresholds of a memory bank: some models score NaN after a fit to a single image


CALLBACK_GROUP = "anomalib_fewshot.callbacks"  # of entry points, since `callbacks` imports this module


class SupportDataModule(AnomalibDataModule):
    """Base class of datamodules that choose a support set: :class:`FewShot` and :class:`MultiCategory`.

    Models and callbacks ask ``isinstance(datamodule, SupportDataModule)``, which reads no property.

    Attributes:
        manifest (SupportManifest | None): The support set after ``setup``. ``None`` if there are several categories.
    """

    manifest: SupportManifest | None

    def __init__(self, *args: Any, **kwargs: Any) -> None:  # noqa: ANN401
        print_messages_once()
        raise_on_signals()
        super().__init__(*args, **kwargs)

    @property
    @abstractmethod
    def train_categories(self) -> list[str]:
        """Categories that a network is trained on."""

    @property
    def other_categories(self) -> list[str]:
        """Categories that a network is trained on and that are not tested."""
        return [name for name in self.train_categories if name != self.category] if self.category else []

    @property
    def category_by_path(self) -> Mapping[str, str]:
        """Category of each image by its path, after ``setup``. Empty where one category is tested."""
        return {}

    @abstractmethod
    def support_dataloader(self) -> DataLoader:
        """Return the loader of the support set, in a fixed order."""

    def manifests(self) -> list[SupportManifest]:
        """Return the manifest of each tested category, after ``setup``."""
        return [] if self.manifest is None else [self.manifest]

    def write_manifests(self, folder: Path) -> None:
        """Write the manifests to a folder of results, after a fit."""
        if self.manifest is not None:
            self.manifest.write(folder / "support.json")

    @abstractmethod
    def normal_images(self, category: str) -> AnomalibDataset:
        """Return the normal training images of a category, after ``setup``.

        Raises:
            ArgumentError: If the datamodule does not have the category.
        """

    @abstractmethod
    def train_on(self, categories: Sequence[str]) -> None:
        """Train on some of the other categories only, or on the support set if none is named. Call after ``setup``.

        Raises:
            ArgumentError: If one is not among ``train_categories``.
        """


def make_callbacks() -> list[Callback]:
    """Return new callbacks for a run with a model or a data module of this package. Other runs have none of them.

    A model returns them from ``configure_callbacks``, a data module adds them in ``setup`` (:func:`join_run`).
    """
    callbacks: list[Callback] = []
    for entry_point in entry_points(group=CALLBACK_GROUP):
        callbacks += entry_point.load()()
    return callbacks


def join_run(trainer: Trainer | None) -> None:
    """Add the callbacks of this package to a run whose data module is of this package. Call it in ``setup``.

    Args:
        trainer (Trainer | None): Trainer of the data module. ``None`` if it is set up by hand.
    """
    if trainer is not None:
        add_callbacks(trainer, make_callbacks())


def support_dataloader(datamodule: AnomalibDataModule) -> DataLoader:
    """Return the loader of the support in a fixed order: of a datamodule without shots, all normal training images.

    Args:
        datamodule (AnomalibDataModule): Datamodule after ``setup``.

    Raises:
        TypeError: If it is no datamodule of anomalib, which alone can be read without shuffling.
    """
    if isinstance(datamodule, SupportDataModule):
        return datamodule.support_dataloader()
    _check_datamodule(datamodule)
    samples = datamodule.train_data.samples
    normal = samples.index[samples.label_index == LabelName.NORMAL]
    data = datamodule.train_data if len(normal) == len(samples) else datamodule.train_data.subsample(list(normal))
    return ordered_dataloader(datamodule, data)


def ordered_dataloader(datamodule: AnomalibDataModule, data: Any = None) -> DataLoader:  # noqa: ANN401
    """Return a loader of images in their order, with no more processes than batches.

    Args:
        datamodule (AnomalibDataModule): Datamodule after ``setup``.
        data (Any): Dataset with a length. Defaults to ``None``: all training images.

    Raises:
        TypeError: If it is no datamodule of anomalib.
    """
    _check_datamodule(datamodule)
    data = datamodule.train_data if data is None else data
    batch_size = datamodule.train_batch_size
    return DataLoader(
        data,
        batch_size=batch_size,
        generator=torch.Generator(),  # else a loader draws from the global generator
        num_workers=min(datamodule.num_workers, len(data) // batch_size),
        collate_fn=datamodule.external_collate_fn or getattr(data, "collate_fn", collate_normal),
    )


def without_global_draws(loader: DataLoader) -> DataLoader:
    """Give a loader a generator of its own: each pass over a loader without one advances the global generator."""
    if loader.generator is None:
        loader.generator = torch.Generator()
    return loader


def collate_normal(items: Sequence[ImageItem]) -> ImageBatch:
    """Collate normal images of several categories, of which some have masks and others do not."""
    batch: Any = ImageBatch.collate([replace(item, gt_mask=None, mask_path=None) for item in items])
    return batch


def can_fit_thresholds(model: LightningModule, count: int) -> bool:
    """Return whether the thresholds of a model can come from a support set of so many images.

    The models of this package declare it (``calibrates_out_of_fold``). The callback ``SupportThreshold`` refits a
    memory bank of anomalib without each image in turn.
    """
    if is_memory_bank(model):
        return count >= MIN_IMAGES
    return getattr(model, "calibrates_out_of_fold", False)


def support_digest(datamodule: AnomalibDataModule) -> str:
    """Return eight hexadecimal digits that identify the support set.

    With :class:`FewShot` they are those of the manifest, which depend on the content of the files. Other data modules
    have no manifest: there the digits depend on the names of the normal training images.

    Args:
        datamodule (AnomalibDataModule): Datamodule after ``setup``.
    """
    manifests = datamodule.manifests() if isinstance(datamodule, SupportDataModule) else []
    if len(manifests) == 1:
        return manifests[0].digest
    if manifests:
        names = [manifest.digest for manifest in manifests]
    else:
        _check_datamodule(datamodule)
        samples = datamodule.train_data.samples
        paths = samples.image_path[samples.label_index == LabelName.NORMAL]
        folder = os.path.commonpath([Path(path).parent for path in paths])
        names = sorted(Path(path).relative_to(folder).as_posix() for path in paths)
        names.append(f"{datamodule.name}/{datamodule.category}")
    return hashlib.sha256(json.dumps(names).encode()).hexdigest()[:8]


def _check_datamodule(datamodule: Any) -> None:  # noqa: ANN401  of a trainer, which takes any
    if not isinstance(datamodule, AnomalibDataModule):
        msg = f"The data must be an anomalib datamodule, got {type(datamodule).__name__}. Give it as `datamodule`."
        raise TypeError(msg)
