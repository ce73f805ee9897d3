# Copyright (C) 2026 anomalib-fewshot contributors
# SPDX-License-Identifier: Apache-2.0

"""Datamodules of anomalib that assign paths and lists to columns of strings."""

import shutil
import warnings
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
from anomalib.data import AnomalibDataModule, MVTecLOCO, Tabular

from anomalib_fewshot import FewShot, MultiCategory
from anomalib_fewshot.data.object_strings import object_strings


def tabular(root: Path) -> Tabular:
    rows = []
    for path in sorted((root / "bolt").glob("t*/*/*.png")):
        kind, name = path.parent.name, path.relative_to(root).as_posix()
        mask = f"bolt/ground_truth/hole/{path.stem}_mask.png" if kind == "hole" else ""
        rows.append({
            "image_path": name,
            "label_index": int(kind == "hole"),
            "split": path.parts[-3],
            "mask_path": mask,
        })
    return Tabular(name="table", samples=rows, root=root, num_workers=0, seed=0, val_split_mode="none")


def loco(root: Path) -> MVTecLOCO:
    for split in ("train", "validation", "test"):
        shutil.copytree(root / "bolt/train/good", root / f"loco/bolt/{split}/good")
    shutil.copytree(root / "bolt/test/hole", root / "loco/bolt/test/structural_anomalies")
    for mask in (root / "bolt/ground_truth/hole").iterdir():
        folder = root / "loco/bolt/ground_truth/structural_anomalies" / mask.stem.removesuffix("_mask")
        folder.mkdir(parents=True)
        shutil.copy(mask, folder / "000.png")
    return MVTecLOCO(root / "loco", "bolt", num_workers=0)


@pytest.mark.parametrize("make", [tabular, loco])
def test_masks_are_read(make: Callable[[Path], AnomalibDataModule], mvtec_root: Path, tmp_path: Path) -> None:
    source = make(shutil.copytree(mvtec_root, tmp_path / "data"))
    datamodule = FewShot(source, k_shot=2)
    before = pd.DataFrame({"path": ["a"]}).path.dtype
    for stage in ("fit", "test"):
        datamodule.prepare_data()
        datamodule.setup(stage)
    assert len(datamodule.train_data) == 2
    items = [*datamodule.test_data]
    assert sum(item.gt_label.item() for item in items) == 4
    assert all(bool(item.gt_mask.any()) == item.gt_label.item() for item in items if item.gt_mask is not None)
    assert sum(item.gt_mask is not None and bool(item.gt_mask.any()) for item in items) == 4
    assert pd.DataFrame({"path": ["a"]}).path.dtype == before


def test_several_tables(mvtec_root: Path) -> None:
    one, two = tabular(mvtec_root), tabular(mvtec_root)
    one.category, two.category = "a", "b"
    datamodule = MultiCategory([one, two], target="b", k_shot=2)
    # The setup succeeds, and then the check finds that both categories have the same images.
    with pytest.raises(ValueError, match="must not contain images of the target"):
        datamodule.setup()


def test_option_is_restored_after_an_error_without_a_warning() -> None:
    before = pd.DataFrame({"path": ["a"]}).path.dtype
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with object_strings():
            assert pd.DataFrame({"path": ["a"]}).path.dtype == object
        with pytest.raises(KeyError), object_strings():
            raise KeyError
    assert pd.DataFrame({"path": ["a"]}).path.dtype == before
