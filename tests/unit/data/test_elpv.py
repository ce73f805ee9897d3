# Copyright (C) 2026 anomalib-fewshot contributors
# SPDX-License-Identifier: Apache-2.0

"""The solar cells of the quickstart."""

from pathlib import Path

import pytest

from anomalib_fewshot.data import ELPV, elpv


@pytest.mark.parametrize("category", ["mono", "poly"])
def test_splits_are_disjoint_balanced_and_fixed(category: str) -> None:
    first, again = ELPV(category, num_test=30), ELPV(category, num_test=30)
    for datamodule in (first, again):
        datamodule.setup()
    subsets = [set(data.samples.image_path) for data in (first.train_data, first.val_data, first.test_data)]
    assert len(set.union(*subsets)) == sum(len(subset) for subset in subsets)
    assert first.test_data.samples.label_index.tolist().count(1) == 15 == len(first.test_data) / 2
    assert not first.train_data.samples.label_index.any()
    assert first.test_data.samples.image_path.tolist() == again.test_data.samples.image_path.tolist()
    assert first.test_data[0].image.shape == (3, 300, 300)
    assert Path(first.train_data[0].image_path).is_file()


def test_all_cells_with_a_certain_label() -> None:
    """1508 cells have a defect probability of 0 and 715 one of 1, of 2624."""
    total = 0
    for category in ("mono", "poly"):
        datamodule = ELPV(category, num_test=None, val_split_mode="none")
        datamodule.setup()
        total += len(datamodule.train_data) + len(datamodule.test_data)
    assert total == 1508 + 715


def test_unknown_category() -> None:
    with pytest.raises(ValueError, match=r"must be one of \('mono', 'poly'\), got 'thin'"):
        ELPV("thin").setup()


def test_no_test_images() -> None:
    with pytest.raises(ValueError, match="`num_test` must be at least 1, got -1"):
        ELPV(num_test=-1).setup()


def test_missing_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(elpv, "find_spec", lambda _: None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'anomalib-fewshot\[elpv\]'"):
        ELPV().setup()
