# Copyright (C) 2026 anomalib-fewshot contributors
# SPDX-License-Identifier: Apache-2.0

"""The base class of datamodules that choose a support set, and the loader of the support set."""

from pathlib import Path

import pytest
from anomalib.data import AnomalibDataModule, MVTecAD, get_datamodule
from lightning.pytorch import LightningDataModule

from anomalib_fewshot import FewShot, MultiCategory, MVTecFolder
from anomalib_fewshot.data.support import SupportDataModule, support_dataloader
from anomalib_fewshot.errors import ArgumentError


def names(datamodule: AnomalibDataModule) -> list[str]:
    return [Path(path).name for batch in support_dataloader(datamodule) for path in batch.image_path]


@pytest.mark.parametrize("num_workers", [0, 2])
def test_order_is_that_of_the_paths_however_often_it_is_read(mvtec_root: Path, num_workers: int) -> None:
    datamodule = FewShot(MVTecAD(mvtec_root, "bolt", num_workers=num_workers, train_batch_size=3), k_shot=8)
    datamodule.setup()
    first, _ = names(datamodule), list(datamodule.train_dataloader())
    assert first == names(datamodule) == sorted(datamodule.manifest.images)


def test_without_shots_all_normal_images_are_the_support(mvtec_root: Path) -> None:
    datamodule = MVTecAD(mvtec_root, "bolt", num_workers=2, train_batch_size=4)
    datamodule.setup()
    assert not isinstance(datamodule, SupportDataModule)
    assert names(datamodule) == [f"{number:03}.png" for number in range(10)]
    samples = datamodule.train_data.samples.copy()
    samples.loc[3, "label_index"] = 1
    datamodule.train_data.samples = samples
    assert "003.png" not in names(datamodule)
    assert len(names(datamodule)) == 9


def test_support_of_several_categories(mvtec_root: Path) -> None:
    datamodule = MultiCategory(MVTecFolder(mvtec_root, num_workers=0), k_shot=2)
    assert isinstance(datamodule, SupportDataModule)
    datamodule.setup()
    assert len(names(datamodule)) == 4
    datamodule = MultiCategory(MVTecFolder(mvtec_root, num_workers=0), target="cloth", k_shot=2)
    datamodule.setup()
    assert names(datamodule) == sorted(datamodule.manifest.images)


@pytest.mark.parametrize("arguments", [{"target": "typo"}, {"categories": ["missing"]}, {}])
def test_the_base_class_is_asked_without_user_code(arguments: dict, tmp_path: Path) -> None:
    class Source(MVTecFolder):
        @property
        def name(self) -> str:
            raise AssertionError

        @name.setter
        def name(self, _: str) -> None: ...

    datamodule = MultiCategory(Source(tmp_path / "missing"), **arguments)
    assert isinstance(datamodule, SupportDataModule)
    assert isinstance(FewShot(Source(tmp_path / "missing")), SupportDataModule)
    assert not isinstance(MVTecFolder(tmp_path), SupportDataModule)
    assert not isinstance(object(), SupportDataModule)


def test_names_that_anomalib_looks_up(mvtec_root: Path) -> None:
    source = {"class_path": "MVTecFolder", "init_args": {"root": str(mvtec_root), "category": "bolt"}}
    for name in ("FewShot", "MultiCategory"):
        datamodule = get_datamodule({"class_path": name, "init_args": {"source": source}})
        assert type(datamodule).__name__ == name
        assert isinstance(datamodule, SupportDataModule)


def test_other_categories(mvtec_root: Path) -> None:
    source = MVTecFolder(mvtec_root, "bolt", num_workers=0)
    one, several = FewShot(source, k_shot=2), MultiCategory(source, target="cloth", k_shot=2)
    assert (one.other_categories, one.category_by_path) == ([], {})
    assert several.other_categories == ["bolt"]
    assert MultiCategory(source, k_shot=2).other_categories == []
    for datamodule in (one, several):
        datamodule.setup()
        assert len(datamodule.normal_images("bolt")) == 10
        datamodule.train_on([])
        with pytest.raises(ArgumentError, match="typo"):
            datamodule.train_on(["typo"])
        with pytest.raises(ArgumentError, match="typo"):
            datamodule.normal_images("typo")


def test_other_data_are_refused() -> None:
    with pytest.raises(TypeError, match="must be an anomalib data module, got LightningDataModule"):
        support_dataloader(LightningDataModule())
