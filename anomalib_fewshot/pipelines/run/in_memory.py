# Copyright (C) 2026 anomalib-fewshot contributors
# SPDX-License-Identifier: Apache-2.0

"""A dataset whose images are decoded and resized once, for those who test many models on them."""

from dataclasses import dataclass, field

import torch
from anomalib.data import AnomalibDataset, DatasetItem


@dataclass
class ItemCache:
    """Items by path and size, until a limit of bytes is reached.

    Args:
        limit (int): Bytes of images and masks to keep at most.
    """

    limit: int
    num_bytes: int = 0
    items: dict[tuple[str, str], DatasetItem] = field(default_factory=dict)

    def add(self, key: tuple[str, str], item: DatasetItem) -> None:
        """Keep an item if there is room."""
        tensors = (value for value in (item.image, item.gt_mask) if isinstance(value, torch.Tensor))
        num_bytes = sum(tensor.nbytes for tensor in tensors)
        if self.num_bytes + num_bytes <= self.limit:
            self.num_bytes += num_bytes
            self.items[key] = item


class InMemoryDataset(AnomalibDataset):
    """The items of a dataset, each read once for each size that a model asks for.

    Args:
        dataset (AnomalibDataset): Dataset to read from. Its augmentations must give the same item each time.
        cache (ItemCache): Where items are kept. Datasets of the same images can share it.
    """

    def __init__(self, dataset: AnomalibDataset, cache: ItemCache) -> None:
        super().__init__(dataset.augmentations)
        self.samples = dataset.samples
        self.dataset = dataset
        self.cache = cache

    @property
    def name(self) -> str:
        """Name of the dataset that is read from."""
        return self.dataset.name

    def __getitem__(self, index: int) -> DatasetItem:
        """Return an item, read if it is not kept."""
        key = (self.samples.iloc[index].image_path, str(self.augmentations))
        if key not in self.cache.items:
            self.dataset.augmentations = self.augmentations
            item = self.dataset[index]
            self.cache.add(key, item)
            return item
        return self.cache.items[key]
