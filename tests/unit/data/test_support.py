# Copyright (C) 2026 anomalib-fewshot contributors
# SPDX-License-Identifier: Apache-2.0

"""The one road to the support."""

from pathlib import Path

import pytest
from anomalib.data import AnomalibDataModule, MVTecAD
from lightning.pytorch import LightningDataModule

from anomalib_fewshot import FewShot, MultiCategory, MVTecFolder
from anomalib_fewshot.data.support import HasSupport, support_dataloader


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
    assert not isinstance(datamodule, HasSupport)
    assert names(datamodule) == [f"{number:03}.png" for number in range(10)]
    samples = datamodule.train_data.samples.copy()
    samples.loc[3, "label_index"] = 1
    datamodule.train_data.samples = samples
    assert "003.png" not in names(datamodule)
    assert len(names(datamodule)) == 9


def test_support_of_several_categories(mvtec_root: Path) -> None:
    datamodule = MultiCategory(MVTecFolder(mvtec_root, num_workers=0), k_shot=2)
    assert isinstance(datamodule, HasSupport)
    datamodule.setup()
    assert len(names(datamodule)) == 4
    datamodule = MultiCategory(MVTecFolder(mvtec_root, num_workers=0), target="cloth", k_shot=2)
    datamodule.setup()
    assert names(datamodule) == sorted(datamodule.manifest.images)


def test_other_data_are_refused() -> None:
    with pytest.raises(TypeError, match="must be an anomalib datamodule, got LightningDataModule. Give it as `data"):
        support_dataloader(LightningDataModule())
