# Copyright (C) 2026 anomalib-fewshot contributors
# SPDX-License-Identifier: Apache-2.0

"""Test images are read once for each size, within a limit of bytes."""

from pathlib import Path

import pytest
import torch
from torchvision.transforms.v2 import Resize

from anomalib_fewshot import FewShot, MVTecFolder
from anomalib_fewshot.data.unlabeled import as_normal
from anomalib_fewshot.pipelines.run import in_memory
from anomalib_fewshot.pipelines.run.in_memory import InMemoryDataset, ItemCache
from anomalib_fewshot.pipelines.run.sources import Sources

ITEM_BYTES = 32 * 32 * (3 * 4 + 1)  # an image of floats, and a mask of bytes


@pytest.fixture
def source(mvtec_root: Path) -> MVTecFolder:
    source = MVTecFolder(mvtec_root, "bolt", num_workers=0)
    source.setup()
    return source


def dataset(source: MVTecFolder, cache: ItemCache, size: int = 32) -> InMemoryDataset:
    data = InMemoryDataset(source.test_data, cache)
    data.augmentations = Resize((size, size))
    return data


def test_items_are_those_of_the_dataset(source: MVTecFolder) -> None:
    data = dataset(source, ItemCache(10**9))
    source.test_data.augmentations = data.augmentations
    for index, expected in enumerate(source.test_data):
        for item in (data[index], data[index]):  # read, and kept
            torch.testing.assert_close(item.image, expected.image, rtol=0, atol=0)
            torch.testing.assert_close(item.gt_mask, expected.gt_mask, rtol=0, atol=0)
            assert (item.image_path, item.gt_label) == (expected.image_path, expected.gt_label)


def test_items_are_read_once_for_each_size(source: MVTecFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = ItemCache(10**9)
    small, again, large = dataset(source, cache), dataset(source, cache), dataset(source, cache, size=48)
    assert small[0] is again[0]  # two datasets of the same images share the cache
    assert large[0].image.shape[-2:] == (48, 48)
    monkeypatch.setattr(in_memory.AnomalibDataset, "__getitem__", None)  # reading would fail
    assert small[0].image.shape[-2:] == (32, 32)


def test_limit_is_kept_and_items_above_it_are_read_again(source: MVTecFolder) -> None:
    cache = ItemCache(limit=3 * ITEM_BYTES)
    data = dataset(source, cache)
    assert [item.image.shape for item in data] == [(3, 32, 32)] * 8
    assert (len(cache.items), cache.num_bytes) == (3, 3 * ITEM_BYTES)
    assert data[7].image.shape == (3, 32, 32)


def test_subsets_share_the_cache_and_labels_are_not_mixed(source: MVTecFolder) -> None:
    """An anomalous test image in an unlabeled pool is read as normal, and stays anomalous in the test."""
    cache = ItemCache(10**9)
    data = dataset(source, cache)
    index = int(data.samples.index[data.samples.label_index == 1][0])
    path = Path(data.samples.image_path[index])
    pool = as_normal(data, [path])
    assert pool[0].gt_label == 0
    assert not pool[0].gt_mask.any()
    assert data[index].gt_label == 1
    assert data[index].gt_mask.any()
    subset = data.subsample([index])
    assert subset[0] is data[index]
    assert len(cache.items) == 2
    assert len(data) == 8  # the subset has its own samples


def test_unlabeled_images_are_read_once(mvtec_root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = {"class_path": "MVTecFolder", "init_args": {"root": str(mvtec_root), "category": "bolt"}}
    sources = Sources(10**9)
    images = []
    for _ in range(2):
        (source,) = sources.get([spec])
        data = FewShot(source, k_shot=2, unlabeled=4, contamination=0.25)
        sources.set_up(data)
        data.setup("fit")
        images.append([item.image for item in data.unlabeled_data])
        assert len(data.test_data) == 7
        assert isinstance(data.test_data, InMemoryDataset)
        monkeypatch.setattr(in_memory.AnomalibDataset, "__getitem__", None)  # reading again would fail
    assert all(first is second for first, second in zip(*images, strict=True))
