# Copyright (C) 2026 anomalib-fewshot contributors
# SPDX-License-Identifier: Apache-2.0

"""The one road to the support: the normal images that a model is fitted to, never shuffled."""

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from anomalib.data import AnomalibDataModule, AnomalibDataset, ImageBatch, ImageItem
from anomalib.data.utils import LabelName
from torch.utils.data import DataLoader

from .manifest import SupportManifest


class SupportDataModule(AnomalibDataModule):
    """Base class of datamodules that choose a support set: :class:`FewShot` and :class:`MultiCategory`.

    Models and callbacks ask ``isinstance(datamodule, SupportDataModule)``, which reads no property.

    Attributes:
        manifest (SupportManifest | None): The support set after ``setup``. ``None`` if there are several categories.
    """

    manifest: SupportManifest | None

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
        num_workers=min(datamodule.num_workers, len(data) // batch_size),
        collate_fn=datamodule.external_collate_fn or getattr(data, "collate_fn", collate_normal),
    )


def collate_normal(items: Sequence[ImageItem]) -> ImageBatch:
    """Collate normal images of several categories, of which some have masks and others do not."""
    batch: Any = ImageBatch.collate([replace(item, gt_mask=None, mask_path=None) for item in items])
    return batch


def _check_datamodule(datamodule: Any) -> None:  # noqa: ANN401  of a trainer, which takes any
    if not isinstance(datamodule, AnomalibDataModule):
        msg = f"The data must be an anomalib datamodule, got {type(datamodule).__name__}. Give it as `datamodule`."
        raise TypeError(msg)
