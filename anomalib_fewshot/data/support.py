# Copyright (C) 2026 anomalib-fewshot contributors
# SPDX-License-Identifier: Apache-2.0

"""Access to the support set: the normal images that a model is fitted to, in a fixed order."""

import hashlib
import json
import os
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from copy import copy
from dataclasses import replace
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import torch
from anomalib.data import AnomalibDataModule, AnomalibDataset, ImageBatch, ImageItem
from anomalib.data.utils import LabelName
from lightning.pytorch import Callback, LightningModule, Trainer
from torch.utils.data import DataLoader
from torchvision.transforms.v2 import Compose, Resize, Transform

from anomalib_fewshot._cli.console import print_messages_once
from anomalib_fewshot._cli.signals import raise_on_signals
from anomalib_fewshot._host import add_callbacks, is_memory_bank

from .manifest import SupportManifest
from .unlabeled import UnlabeledDataset

MIN_IMAGES = 3  # for leave-one-out thresholds: some memory banks score NaN after a fit to a single image

CALLBACK_GROUP = "anomalib_fewshot.callbacks"  # entry points avoid a circular import: `callbacks` imports this module


class SupportDataModule(AnomalibDataModule):
    """Base class of data modules that choose a support set: :class:`FewShot` and :class:`MultiCategory`.

    Models and callbacks check ``isinstance(datamodule, SupportDataModule)``.

    Attributes:
        manifest (SupportManifest | None): The support set after ``setup``. ``None`` with several support sets.
        unlabeled_data (UnlabeledDataset | None): The unlabeled images after ``setup``, if there are any.
        append_unlabeled (bool): Whether the training images contain the unlabeled images.
    """

    manifest: SupportManifest | None
    unlabeled_data: UnlabeledDataset | None = None
    append_unlabeled: bool = False

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
        """Categories that a network is trained on, without the tested category."""
        return [name for name in self.train_categories if name != self.category] if self.category else []

    @property
    def category_by_path(self) -> Mapping[str, str]:
        """Category of each image by its path, after ``setup``. Empty if only one category is tested."""
        return {}

    @abstractmethod
    def support_dataloader(self) -> DataLoader:
        """Return the loader of the support set, in a fixed order."""

    def unlabeled_dataloader(self, max_images: int | None = None) -> DataLoader | list:
        """Return the loader of the unlabeled images, in a fixed order. An empty list if there are none.

        The items have an image and its path, for error messages. They have no labels and no masks.
        A model that uses them has the class attribute ``uses_unlabeled = True``.

        Args:
            max_images (int | None): Number of images. Of more, a random choice that depends only on how many
                there are. Defaults to ``None``: all.
        """
        if self.unlabeled_data is None:
            return []
        data: Any = self.unlabeled_data
        if max_images is not None and len(data) > max_images:
            order = torch.randperm(len(data), generator=torch.Generator().manual_seed(0))
            data = data.subset(sorted(order[:max_images].tolist()))
        return ordered_dataloader(self, data)

    @property
    def num_appended(self) -> int:
        """Number of unlabeled images among the training images, after ``setup``."""
        return len(self.unlabeled_data) if self.append_unlabeled and self.unlabeled_data is not None else 0

    def manifests(self) -> list[SupportManifest]:
        """Return the manifest of each tested category, after ``setup``."""
        return [] if self.manifest is None else [self.manifest]

    def write_manifests(self, folder: Path) -> None:
        """Write the manifests to the results folder, after a fit."""
        if self.manifest is not None:
            self.manifest.write(folder / "support.json")

    @abstractmethod
    def normal_images(self, category: str) -> AnomalibDataset:
        """Return the normal training images of a category, after ``setup``.

        Raises:
            ArgumentError: If the data module does not have the category.
        """

    @abstractmethod
    def train_on(self, categories: Sequence[str]) -> None:
        """Train on the given categories only, or on the support set if the list is empty. Call this after ``setup``.

        Raises:
            ArgumentError: If a category is not in ``train_categories``.
        """


def make_callbacks() -> list[Callback]:
    """Return new callbacks for a run with a model or a data module of this package.

    A model returns them from ``configure_callbacks``. A data module adds them in ``setup``, with
    :func:`add_run_callbacks`.
    """
    callbacks: list[Callback] = []
    for entry_point in entry_points(group=CALLBACK_GROUP):
        callbacks += entry_point.load()()
    return callbacks


def add_run_callbacks(trainer: Trainer | None) -> None:
    """Add the callbacks of this package to a trainer. A data module of this package calls this in ``setup``.

    Args:
        trainer (Trainer | None): Trainer of the data module. ``None`` without a trainer: nothing is added.
    """
    if trainer is not None:
        add_callbacks(trainer, make_callbacks())


def support_dataloader(datamodule: AnomalibDataModule) -> DataLoader:
    """Return the loader of the support set, in a fixed order.

    For a data module that chooses no support set, these are all normal training images.

    Args:
        datamodule (AnomalibDataModule): Data module after ``setup``.

    Raises:
        TypeError: If ``datamodule`` is not an anomalib data module.
    """
    if isinstance(datamodule, SupportDataModule):
        return datamodule.support_dataloader()
    _check_datamodule(datamodule)
    samples = datamodule.train_data.samples
    normal = samples.index[samples.label_index == LabelName.NORMAL]
    data = datamodule.train_data if len(normal) == len(samples) else datamodule.train_data.subsample(list(normal))
    return ordered_dataloader(datamodule, data)


def image_shapes(datamodule: AnomalibDataModule, max_images: int = 16) -> list[tuple[int, int]]:
    """Return height and width of support images and unlabeled images before the model resizes them.

    Args:
        datamodule (AnomalibDataModule): Data module after ``setup``.
        max_images (int): Number of images of each dataset that are read. Of more, some at equal distances. Defaults to
            ``16``.
    """
    support: Any = support_dataloader(datamodule).dataset
    parts: list[Any] = list(getattr(support, "datasets", [support]))
    if isinstance(datamodule, SupportDataModule) and datamodule.unlabeled_data is not None:
        parts.append(datamodule.unlabeled_data)
    shapes = []
    for part in parts:
        images = copy(part)
        images.augmentations = _without_model_resize(part.augmentations)
        for index in range(0, len(images), -(-len(images) // max_images)):
            height, width = images[index].image.shape[-2:]
            shapes.append((height, width))
    return shapes


def _without_model_resize(augmentations: Transform | None) -> Transform | None:
    """Return the augmentations of a dataset without the resize of the model, which anomalib appends to them."""
    if isinstance(augmentations, Compose) and isinstance(augmentations.transforms[-1], Resize):
        return Compose(augmentations.transforms[:-1])
    return None if isinstance(augmentations, Resize) else augmentations


def count_unlabeled(datamodule: AnomalibDataModule) -> int:
    """Return the number of unlabeled images of a data module after ``setup``."""
    data = datamodule.unlabeled_data if isinstance(datamodule, SupportDataModule) else None
    return 0 if data is None else len(data)


def ordered_dataloader(datamodule: AnomalibDataModule, data: Any = None) -> DataLoader:  # noqa: ANN401
    """Return a loader without shuffling, with at most one worker process per full batch.

    Args:
        datamodule (AnomalibDataModule): Data module after ``setup``.
        data (Any): Dataset with a length. Defaults to ``None``: all training images.

    Raises:
        TypeError: If ``datamodule`` is not an anomalib data module.
    """
    _check_datamodule(datamodule)
    data = datamodule.train_data if data is None else data
    batch_size = datamodule.train_batch_size
    return DataLoader(
        data,
        batch_size=batch_size,
        generator=torch.Generator(),  # otherwise the loader draws from the global generator
        num_workers=min(datamodule.num_workers, len(data) // batch_size),
        collate_fn=datamodule.external_collate_fn or getattr(data, "collate_fn", collate_normal),
    )


def with_own_generator(loader: DataLoader) -> DataLoader:
    """Give a loader its own generator, because iterating over a loader without one advances the global generator."""
    if loader.generator is None:
        loader.generator = torch.Generator()
    return loader


def collate_normal(items: Sequence[ImageItem]) -> ImageBatch:
    """Collate normal images without their masks, because only some categories may have masks."""
    batch: Any = ImageBatch.collate([replace(item, gt_mask=None, mask_path=None) for item in items])
    return batch


def can_fit_thresholds(model: LightningModule, count: int) -> bool:
    """Return whether the thresholds of a model can be calibrated on the support set.

    The models of this package set ``calibrates_out_of_fold``. For anomalib's memory banks, the callback
    ``SupportThreshold`` computes leave-one-out scores.

    Args:
        model (LightningModule): The model.
        count (int): Number of support images.
    """
    if is_memory_bank(model):
        return count >= MIN_IMAGES
    return getattr(model, "calibrates_out_of_fold", False)


def support_digest(datamodule: AnomalibDataModule) -> str:
    """Return eight hexadecimal digits that identify the support set.

    With :class:`FewShot` they are the digest of the manifest and depend on the content of the files. Other data modules
    have no manifest: their digits depend on the names of the normal training images.

    Args:
        datamodule (AnomalibDataModule): Data module after ``setup``.
    """
    manifests = datamodule.manifests() if isinstance(datamodule, SupportDataModule) else []
    if len(manifests) == 1:
        return manifests[0].digest
    if manifests:
        parts = [manifest.digest for manifest in manifests]
    else:
        _check_datamodule(datamodule)
        samples = datamodule.train_data.samples
        paths = samples.image_path[samples.label_index == LabelName.NORMAL]
        folder = os.path.commonpath([Path(path).parent for path in paths])
        parts = sorted(Path(path).relative_to(folder).as_posix() for path in paths)
        parts.append(f"{datamodule.name}/{datamodule.category}")
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:8]


def _check_datamodule(datamodule: Any) -> None:  # noqa: ANN401  a trainer accepts any data
    if not isinstance(datamodule, AnomalibDataModule):
        msg = f"`datamodule` must be an anomalib data module, got {type(datamodule).__name__}."
        raise TypeError(msg)
