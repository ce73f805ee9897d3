# Copyright (C) 2026 anomalib-fewshot contributors
# SPDX-License-Identifier: Apache-2.0

"""Folders in MVTec AD's layout, with and without masks."""

import shutil
from pathlib import Path

import pytest
import torch
from anomalib.data import AnomalibDataModule, AnomalibDataset, MVTecAD, get_datamodule
from PIL import Image

from anomalib_fewshot import FewShot, MVTecFolder


@pytest.fixture
def root(mvtec_root: Path, tmp_path: Path) -> Path:
    """Return a copy that a test may change."""
    return shutil.copytree(mvtec_root, tmp_path / "mine")


def make(root: Path, category: str = "bolt", **arguments) -> MVTecFolder:
    datamodule = MVTecFolder(root, category, num_workers=0, **arguments)
    datamodule.setup()
    return datamodule


def subsets(datamodule: AnomalibDataModule) -> list[AnomalibDataset]:
    return [datamodule.train_data, datamodule.val_data, datamodule.test_data]


def to_jpg(folder: Path, suffix: str = ".jpg") -> None:
    for path in folder.rglob("*.png"):
        Image.open(path).save(path.with_suffix(suffix))
        path.unlink()


@pytest.mark.parametrize("mode", ["same_as_test", "from_test"])
def test_same_images_and_masks_as_anomalib(mvtec_root: Path, mode: str) -> None:
    mine = make(mvtec_root, val_split_mode=mode, seed=0)
    theirs = MVTecAD(mvtec_root, "bolt", num_workers=0, val_split_mode=mode, seed=0)
    theirs.setup()
    assert mine.task == theirs.task
    for my_data, their_data in zip(subsets(mine), subsets(theirs), strict=True):
        assert len(my_data) == len(their_data) > 0
        for my_item, their_item in zip(my_data, their_data, strict=True):
            assert Path(my_item.image_path) == Path(their_item.image_path).resolve()
            assert my_item.gt_label == their_item.gt_label
            torch.testing.assert_close(my_item.image, their_item.image)
            torch.testing.assert_close(my_item.gt_mask, their_item.gt_mask)


def test_without_masks_there_are_only_labels(root: Path) -> None:
    shutil.rmtree(root / "bolt/ground_truth")
    datamodule = make(root)
    assert datamodule.task == datamodule.test_data.task == "classification"
    assert sorted(datamodule.test_data.samples.label_index) == [0] * 4 + [1] * 4
    assert datamodule.test_data[0].gt_mask is None
    batch = next(iter(datamodule.test_dataloader()))
    assert batch.image.shape == (8, 3, 64, 64)


def test_masks_are_matched_for_any_name(root: Path) -> None:
    """`1.jpg` lies before `10.jpg`, and `1_mask.png` behind `10_mask.png`; a mask may lack the `_mask`."""
    bolt = root / "bolt"
    shutil.copytree(bolt / "test/hole", bolt / "test/a.scratch")
    shutil.copytree(bolt / "ground_truth/hole", bolt / "ground_truth/a.scratch")
    for number, name in enumerate(("1", "10", "a.b", "c_mask")):
        (bolt / f"test/hole/00{number}.png").rename(bolt / f"test/hole/{name}.png")
        mask = f"{name}_mask.png" if name != "a.b" else "a.b.png"
        (bolt / f"ground_truth/hole/00{number}_mask.png").rename(bolt / "ground_truth/hole" / mask)
    to_jpg(bolt / "test/hole")
    items = [item for item in make(root).test_data if item.gt_label]
    assert len(items) == 8
    for item in items:
        assert Path(item.mask_path).parent.name == Path(item.image_path).parent.name
        assert item.gt_mask.sum() == 16 * 16
        defect = item.gt_mask.as_subclass(torch.Tensor).bool()  # a dark square
        assert item.image[:, defect].max() < 0.2


@pytest.mark.parametrize("suffix", [".jpg", ".JPEG", ".bmp", ".tif"])
def test_images_of_other_suffixes(root: Path, suffix: str) -> None:
    to_jpg(root / "bolt/train", suffix)
    to_jpg(root / "bolt/test", suffix)
    datamodule = make(root)
    assert [len(data) for data in subsets(datamodule)] == [10, 8, 8]
    assert datamodule.task == "segmentation"


def test_some_missing_masks_are_an_error(root: Path) -> None:
    for name in ("001_mask.png", "003_mask.png"):
        (root / "bolt/ground_truth/hole" / name).unlink()
    datamodule = FewShot(MVTecFolder(root, "bolt"))
    with pytest.raises(ValueError, match=r"^`root` must have masks .* got 2 images without a mask.*test/hole/001\.png"):
        datamodule.prepare_data()


def test_unmatched_masks_are_an_error(root: Path) -> None:
    for path in (root / "bolt/ground_truth/hole").iterdir():
        path.rename(path.with_name(f"gt_{path.name}"))
    with pytest.raises(ValueError, match=r"got 4 images without a mask.*test/hole/000\.png"):
        make(root)


def test_two_images_with_one_mask_are_an_error(root: Path) -> None:
    folder = root / "bolt/test/hole"
    Image.open(folder / "001.png").save(folder / "001.jpg")
    with pytest.raises(ValueError, match=r"differ in more than their suffix, got .*001\.jpg and .*001\.png"):
        make(root)
    shutil.rmtree(root / "bolt/ground_truth")
    assert len(make(root).test_data) == 9  # without masks there is nothing to share


def test_choice_depends_on_name_and_category(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (root.parent / "elsewhere").symlink_to(root)
    monkeypatch.chdir(root)
    for path, name in ((root, "mine"), (Path(), "mine"), ("../elsewhere/", "elsewhere")):
        assert MVTecFolder(path, "bolt").name == name
    support = []
    for path in (root, "."):
        datamodule = FewShot(MVTecFolder(path, "bolt", num_workers=0), k_shot=3)
        datamodule.setup()
        support.append(datamodule.manifest)
    assert support[0] == support[1]
    assert (support[0].dataset, support[0].category) == ("mine", "bolt")


def test_category_can_be_set_later(root: Path) -> None:
    datamodule = FewShot(MVTecFolder(root, "not_yet_there", num_workers=0), k_shot=2)
    for category in ("bolt", "cloth"):
        datamodule.category = category
        datamodule.setup()
        paths = [*datamodule.train_data.samples.image_path, *datamodule.test_data.samples.image_path]
        assert {Path(path).relative_to(root).parts[0] for path in paths} == {category}


def test_linked_folders(root: Path) -> None:
    for folder in ("bolt/test/hole", "bolt/ground_truth", "cloth"):
        shutil.move(root / folder, root.parent / Path(folder).name)
        (root / folder).symlink_to(root.parent / Path(folder).name)
    for category in ("bolt", "cloth"):
        assert [len(data) for data in subsets(make(root, category))] == [10, 8, 8]


def test_constructor_reads_no_files() -> None:
    arguments = {"root": "/no/such/folder", "category": "bolt"}
    assert get_datamodule({"class_path": "MVTecFolder", "init_args": arguments}).name == "folder"


def test_normal_images_only(root: Path) -> None:
    shutil.rmtree(root / "bolt/test")
    with pytest.raises(ValueError, match=r"must have images in test/good or test/<defect>, got .*bolt, which has none"):
        make(root)
    datamodule = make(root, val_split_mode="none", test_split_mode="none")
    assert (len(datamodule.train_data), len(datamodule.test_data)) == (10, 0)


def test_empty_folder_is_ignored(root: Path) -> None:
    (root / "bolt/test/dent").mkdir()
    assert len(make(root).test_data) == 8


@pytest.mark.parametrize("wrap", [False, True])
def test_missing_folders_are_errors(root: Path, *, wrap: bool) -> None:
    def prepare(path: Path, category: str) -> None:
        source = MVTecFolder(path, category)
        (FewShot(source) if wrap else source).prepare_data()

    shutil.rmtree(root / "cloth/train/good")
    with pytest.raises(ValueError, match=r"^`root` must be a folder, got .*missing, which does not exist\.$"):
        prepare(root / "missing", "bolt")
    with pytest.raises(
        ValueError,
        match=r"^`category` must be a folder of .*'nut'\. Available: \['bolt', 'cloth'\]\.$",
    ):
        prepare(root, "nut")
    with pytest.raises(ValueError, match=r"^`category` must have images in train/good, got .*cloth, which has none"):
        prepare(root, "cloth")
