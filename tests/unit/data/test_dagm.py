# Copyright (C) 2026 anomalib-fewshot contributors
# SPDX-License-Identifier: Apache-2.0

"""DAGM 2007, on files in its published layout."""

from pathlib import Path
from shutil import copytree, rmtree

import pytest
import torch

from anomalib_fewshot import DAGM, FewShot, MultiCategory

DEFECTS = ["0002", "0005"]  # in the folder Test


def test_anomalous_images_are_only_tested(dagm_root: Path) -> None:
    datamodule = DAGM(dagm_root, "Class10", num_workers=0)
    datamodule.prepare_data()
    datamodule.setup()
    names = [Path(path).name for path in datamodule.train_data.samples.image_path]
    assert names == ["0001.PNG", "0002.PNG", "0004.PNG", "0005.PNG"]
    assert not datamodule.train_data.samples.label_index.any()
    tested = datamodule.test_data.samples
    assert [Path(path).stem for path in tested.image_path[tested.label_index == 1]] == DEFECTS
    assert len(tested) == len(datamodule.val_data) == 6
    assert (datamodule.name, datamodule.category, datamodule.task) == ("DAGM", "Class10", "segmentation")


def test_masks_are_ellipses(dagm_root: Path) -> None:
    datamodule = DAGM(dagm_root, num_workers=0)
    datamodule.setup()
    for item in datamodule.test_data:
        assert item.image.shape == (3, 64, 64)
        assert bool(item.gt_label) is bool(item.gt_mask.any())
        assert torch.equal(item.gt_mask.bool(), item.image[0] < 0.2)


def test_few_shot_and_multi_category(dagm_root: Path) -> None:
    few = FewShot(DAGM(dagm_root, "Class1", num_workers=0), k_shot=2)
    few.prepare_data()
    few.setup()
    assert len(few.train_data) == 2
    several = MultiCategory(DAGM(dagm_root, num_workers=0), k_shot=None)
    several.prepare_data()
    several.setup()
    assert several.train_categories == ["Class1", "Class10"]
    assert len(several.train_data) == 8


@pytest.mark.parametrize("split", ["Train", "Test"])
def test_missing_masks_are_an_error(dagm_root: Path, tmp_path: Path, split: str) -> None:
    copytree(dagm_root, tmp_path / "DAGM")
    rmtree(tmp_path / "DAGM" / "Class1" / split / "Label")
    with pytest.raises(ValueError, match=f"masks in Class1/{split}/Label/0001_label.PNG, got"):
        DAGM(tmp_path / "DAGM").prepare_data()


@pytest.mark.parametrize("folder", ["nothing", "."])
def test_wrong_path(tmp_path: Path, folder: str) -> None:
    datamodule = FewShot(DAGM(tmp_path / folder, num_workers=0))
    with pytest.raises(
        ValueError,
        match=r"with Class1/Train/0001.PNG and masks in .*_label.PNG, got .*Download the data set",
    ):
        datamodule.prepare_data()


def test_unknown_category(dagm_root: Path) -> None:
    with pytest.raises(ValueError, match=r"`category` must be one of \('Class1', .*, got 'Class11'"):
        DAGM(dagm_root, "Class11").prepare_data()
