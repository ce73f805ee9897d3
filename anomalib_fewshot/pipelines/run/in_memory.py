# Copyright (C) 2026 anomalib-fewshot contributors
# SPDX-License-Identifier: Apache-2.0

"""Dataset that decodes and resizes each image once, for testing many models on the same images."""

from dataclasses import dataclass, field

import pandas as pd
import torch
from anomalib.data import AnomalibDataset, DatasetItem


@dataclass
class ItemCache:
    """Cache of dataset items by path, size and label, up to a memory limit. A deep copy is the same cache.

    Args:
        limit (int): Maximum size of the cached images and masks, in bytes.
    """

    limit: int
    num_bytes: int = 0
    items: dict[tuple[str, str, int], DatasetItem] = field(default_factory=dict)

    def __deepcopy__(self, memo: dict) -> "ItemCache":
        """Return this cache. Subsets of a dataset are made from deep copies and share it."""
        return self

    def add(self, key: tuple[str, str, int], item: DatasetItem) -> None:
        """Add an item if it fits."""
        num_bytes = 0
        for value in (item.image, item.gt_mask):
            if isinstance(value, torch.Tensor):
                num_bytes += value.nbytes
        if self.num_bytes + num_bytes <= self.limit:
            self.num_bytes += num_bytes
            self.items[key] = item


class InMemoryDataset(AnomalibDataset):
    """Dataset that reads each item of another dataset once per image size.

    Args:
        dataset (AnomalibDataset): Dataset to read from. Its augmentations must be deterministic.
        cache (ItemCache): Cache of the items. Datasets with the same images can share it.
    """

    def __init__(self, dataset: AnomalibDataset, cache: ItemCache) -> None:
        super().__init__(dataset.augmentations)
        self.dataset = dataset
        self.cache = cache

    @property
    def name(self) -> str:
        """Name of the underlying dataset."""
        return self.dataset.name

    @property
    def samples(self) -> pd.DataFrame:
        """Samples of the underlying dataset."""
        return self.dataset.samples

    @samples.setter
    def samples(self, samples: pd.DataFrame) -> None:
        self.dataset.samples = samples

    def __getitem__(self, index: int) -> DatasetItem:
        """Return an item from the cache, or read it."""
        sample = self.samples.iloc[index]
        # An anomalous test image can also be in an unlabeled pool, where it is read as if it were normal.
        key = (sample.image_path, str(self.augmentations), int(sample.label_index))
        if key not in self.cache.items:
            self.dataset.augmentations = self.augmentations
            item = self.dataset[index]
            self.cache.add(key, item)
            return item
        return self.cache.items[key]
