# Copyright (C) 2026 anomalib-fewshot contributors
# SPDX-License-Identifier: Apache-2.0

"""Training and test data of several categories."""

import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from anomalib.data import Folder, MVTecAD
from anomalib.engine import Engine
from anomalib.models import Padim
from PIL import Image

from anomalib_fewshot import CategoryEvaluator, FewShot, ImageStatistic, MultiCategory, MVTecFolder
from anomalib_fewshot.data.category_batches import CategoryBatchSampler
from anomalib_fewshot.data.support import ordered_dataloader
from anomalib_fewshot.errors import DataValidationError


@pytest.fixture
def root(mvtec_root: Path, tmp_path: Path) -> Path:
    """Return a folder of three categories, of which the third has no masks."""
    shutil.copytree(mvtec_root, tmp_path / "data")
    shutil.copytree(mvtec_root / "bolt", tmp_path / "data" / "nut")
    for image in (tmp_path / "data" / "nut").rglob("*.png"):
        image.write_bytes(image.read_bytes() + b"other")  # a file of its own
    shutil.rmtree(tmp_path / "data" / "nut" / "ground_truth")
    return tmp_path / "data"


def make(root: Path, **arguments: Any) -> MultiCategory:  # noqa: ANN401
    datamodule = MultiCategory(MVTecFolder(root, num_workers=0, train_batch_size=4), **arguments)
    datamodule.setup()
    return datamodule


def paths(data: Any) -> list[str]:  # noqa: ANN401
    return [path for part in data.datasets for path in part.samples.image_path]


def categories(data: Any, root: Path) -> set[str]:  # noqa: ANN401
    return {Path(path).relative_to(root).parts[0] for path in paths(data)}


def test_target_is_tested_and_other_categories_are_trained_on(root: Path) -> None:
    datamodule = make(root, target="cloth", k_shot=2, validation="source")
    assert datamodule.train_categories == ["bolt", "nut"]
    assert categories(datamodule.train_data, root) == {"bolt", "nut"}
    assert len(datamodule.train_data) == 20  # all normal images
    for data, count in ((datamodule.support_data, 2), (datamodule.test_data, 8), (datamodule.val_data, 8)):
        assert categories(data, root) == {"cloth"}
        assert len(data) == count
    assert (datamodule.name, datamodule.category) == ("data", "cloth")


def test_some_of_the_other_categories_are_trained_on(root: Path) -> None:
    datamodule = make(root, target="cloth", k_shot=3)
    datamodule.train_on(["nut"])
    assert datamodule.train_categories == ["nut"]
    assert {Path(path).parents[2].name for batch in datamodule.train_dataloader() for path in batch.image_path} == {
        "nut",
    }
    datamodule.train_on([])
    batches = list(datamodule.train_dataloader())
    assert sorted(path for batch in batches for path in batch.image_path) == sorted(
        path for batch in datamodule.support_dataloader() for path in batch.image_path
    )
    datamodule.setup()
    assert datamodule.train_categories == ["bolt", "nut"]
    with pytest.raises(ValueError, match=r"`categories` must be some of \['bolt', 'nut'\], got \['cloth'\]"):
        datamodule.train_on(["cloth"])


def test_test_images_of_other_categories_are_not_checked(root: Path) -> None:
    (root / "bolt/test/good/000.png").write_bytes(b"")
    make(root, target="cloth")
    for target in ("bolt", None):
        with pytest.raises(ValueError, match=r"bolt/test/good/000\.png: is empty"):
            make(root, target=target)


@pytest.mark.parametrize("target", ["bolt", "cloth", "nut"])
def test_target_is_not_used_for_training(root: Path, target: str) -> None:
    datamodule = make(root, target=target, k_shot=1, validation="source")
    seen = {path for batch in datamodule.train_dataloader() for path in batch.image_path}
    held = {*paths(datamodule.support_data), *paths(datamodule.test_data), *paths(datamodule.val_data)}
    assert len(seen) == 20
    assert not seen & held
    assert all(f"/{target}/" not in path for path in seen)


def test_image_in_two_categories_is_an_error(mvtec_root: Path) -> None:
    folder = {"root": mvtec_root / "bolt", "normal_dir": "train/good", "num_workers": 0}
    test = {"normal_test_dir": "test/good", "abnormal_dir": "test/hole"}
    same = Folder(name="same", **folder, **test)
    same.category = "other"
    datamodule = MultiCategory([MVTecFolder(mvtec_root, "bolt"), same], target="bolt", k_shot=1)
    with pytest.raises(ValueError, match="must not contain images of the target, got .*bolt/train/good/000.png"):
        datamodule.setup()


def test_without_a_target_each_category_is_trained_on_and_tested(root: Path) -> None:
    datamodule = make(root, k_shot=3)
    assert datamodule.train_categories == ["bolt", "cloth", "nut"]
    assert (len(datamodule.train_data), len(datamodule.test_data), len(datamodule.support_data)) == (9, 24, 9)
    assert datamodule.category == ""
    (batch, *_) = datamodule.train_dataloader()
    assert batch.gt_mask is None  # batches are mixed, and one category has none


def test_training_images_in_order(root: Path) -> None:
    datamodule = make(root, k_shot=3)
    batches = list(ordered_dataloader(datamodule))  # of several categories, of which one has no masks
    assert [len(batch.image) for batch in batches] == [4, 4, 1]
    assert [path for batch in batches for path in batch.image_path] == paths(datamodule.train_data)


def test_all_images_of_each_category(root: Path) -> None:
    datamodule = make(root, k_shot=None)
    assert len(datamodule.train_data) == len(datamodule.support_data) == 30
    seen = [path for batch in datamodule.train_dataloader() for path in batch.image_path]
    assert len(seen) == len(set(seen)) == 30
    assert len(make(root, target="cloth", k_shot=None).support_data) == 10


def test_support_equals_few_shot(root: Path) -> None:
    alone = FewShot(MVTecFolder(root, "cloth"), k_shot=3, seed=5)
    alone.setup()
    both = [make(root, target=target, k_shot=3, seed=5) for target in ("cloth", None)]
    assert paths(both[0].support_data) == alone.train_data.samples.image_path.tolist()
    assert set(alone.train_data.samples.image_path) < set(paths(both[1].train_data))
    assert both[0].manifest == alone.manifest


def test_support_by_file_names(root: Path) -> None:
    datamodule = make(root, target="cloth", support=["007.png"])
    assert [Path(path).name for path in paths(datamodule.support_data)] == ["007.png"]


def test_target_can_be_changed(root: Path) -> None:
    datamodule = make(root, target="cloth", k_shot=2)
    datamodule.category = "nut"
    datamodule.setup()
    assert datamodule.train_categories == ["bolt", "cloth"]
    assert categories(datamodule.test_data, root) == {"nut"}


def test_sources_of_different_classes(mvtec_root: Path) -> None:
    sources = [
        {"class_path": "MVTecAD", "init_args": {"root": str(mvtec_root), "category": "bolt", "num_workers": 0}},
        MVTecFolder(mvtec_root, "cloth", num_workers=0),
    ]
    datamodule = MultiCategory(sources, target="cloth", k_shot=1)
    datamodule.setup()
    assert isinstance(datamodule.parts["bolt"].source, MVTecAD)
    assert len(datamodule.train_data) == 10


def test_batches_have_one_category_and_at_least_two_images(root: Path) -> None:
    datamodule = make(root, target="cloth", k_shot=2)
    for loader in (datamodule.train_dataloader(), datamodule.test_dataloader(), datamodule.val_dataloader()):
        for batch in loader:
            assert len({Path(path).relative_to(root).parts[0] for path in batch.image_path}) == 1
            assert len(batch.image) >= 2


def test_order_depends_only_on_the_seed(root: Path) -> None:
    def order(seed: int) -> list[list[str]]:
        loader = make(root, target="cloth", k_shot=2, seed=seed).train_dataloader()
        return [list(batch.image_path) for _ in range(2) for batch in loader]

    torch.manual_seed(1)
    first = order(0)
    torch.manual_seed(2)
    assert order(0) == first != order(1)
    half = len(first) // 2
    assert first[:half] != first[half:]  # every epoch has an order of its own


@pytest.mark.parametrize("lengths", [[5, 2], [7], [2, 2, 2], [9, 33, 4]])
@pytest.mark.parametrize("batch_size", [1, 2, 3, 8, 32])
def test_category_batches(lengths: list[int], batch_size: int) -> None:
    generator = torch.Generator().manual_seed(0)
    sampler = CategoryBatchSampler(lengths, batch_size, generator)
    batches = list(sampler)
    assert len(batches) == len(sampler)
    assert sorted(index for batch in batches for index in batch) == list(range(sum(lengths)))
    category = [number for number, length in enumerate(lengths) for _ in range(length)]
    for batch in batches:
        assert len({category[index] for index in batch}) == 1
        assert 2 <= len(batch) <= max(batch_size, 3)


@pytest.mark.parametrize("num_replicas", [2, 3])
def test_batches_are_distributed_over_processes(num_replicas: int) -> None:
    def batches(*process: int) -> list[list[int]]:
        return list(CategoryBatchSampler([9, 4, 5], 3, torch.Generator().manual_seed(0), *process))

    shares = [batches(rank, num_replicas) for rank in range(num_replicas)]
    assert len({len(share) for share in shares}) == 1  # else one would wait for another for ever
    together = [batch for batches in zip(*shares, strict=True) for batch in batches]
    assert together[: len(batches())] == batches()
    assert all(batch in batches() for batch in together)


def test_category_of_one_image(root: Path) -> None:
    for image in list((root / "nut/train/good").iterdir())[1:]:
        image.unlink()
    with pytest.raises(ValueError, match=r"at least two normal training images each, got one in \['nut'\]"):
        make(root, target="cloth", k_shot=1)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"target": "bottle"}, r"`target` must be one of the categories \['bolt', 'cloth', 'nut'\], got 'bottle'"),
        (
            {"categories": ["bolt"]},
            r"`categories` must have two or more names, got \['bolt'\]. For one .* use `FewShot`",
        ),
        ({"categories": ["bolt", "screw"]}, "got 'screw'"),
        ({"support": ["0.png"]}, "`support` requires `target`"),
        ({"target": "bolt", "k_shot": 11}, "got 11, but .* has 10"),
    ],
)
def test_wrong_arguments(root: Path, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make(root, **arguments)


def test_root_without_categories(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="`categories` must be given, because no folder of the root contains `train`"):
        make(tmp_path)


def test_list_of_sources(mvtec_root: Path) -> None:
    sources = [MVTecFolder(mvtec_root, "bolt"), MVTecFolder(mvtec_root, "bolt")]
    with pytest.raises(ValueError, match=r"must have each category once, got \['bolt', 'bolt'\]"):
        MultiCategory(sources).setup()
    with pytest.raises(ValueError, match="`categories` must not be given if `source` is a list"):
        MultiCategory(sources, categories=["bolt"])
    with pytest.raises(TypeError, match="got str"):
        MultiCategory(["MVTecAD"])


def test_metrics_are_restored_for_other_data(root: Path, mvtec_root: Path, tmp_path: Path) -> None:
    model, engine = ImageStatistic(image_size=64, visualizer=False), Engine(default_root_dir=tmp_path / "results")
    metrics = [metric.name for metric in model.evaluator.test_metrics]
    engine.fit(model, datamodule=make(root))
    (several,) = engine.test(model, datamodule=make(root), verbose=False)
    assert {"bolt/image_AUROC", "image_AUROC"} <= several.keys()
    source = MVTecFolder(shutil.copytree(mvtec_root, tmp_path / "other"), category="bolt", num_workers=0)
    (one,) = engine.test(model, datamodule=FewShot(source, k_shot=2), verbose=False)
    assert one.keys() == {"image_AUROC", "image_F1Score"}
    assert [metric.name for metric in model.evaluator.test_metrics] == metrics


def test_distributed_sampler_of_lightning_is_an_error(root: Path) -> None:
    datamodule = MultiCategory(MVTecFolder(root, num_workers=0), k_shot=1)
    connector = SimpleNamespace(use_distributed_sampler=True)
    datamodule.trainer = SimpleNamespace(world_size=2, callbacks=[], _accelerator_connector=connector)
    with pytest.raises(ValueError, match="`use_distributed_sampler` must be false on several devices"):
        datamodule.setup()


def test_images_of_all_categories_are_distributed_over_devices(root: Path) -> None:
    datamodule = MultiCategory(MVTecFolder(root, num_workers=0), k_shot=2)
    datamodule.setup()
    shares = []
    for rank in range(2):
        datamodule.trainer = SimpleNamespace(world_size=2, global_rank=rank)
        shares.append([path for batch in datamodule.train_dataloader() for path in batch.image_path])
    assert len(shares[0]) == len(shares[1]) == len(datamodule.train_data) / 2
    assert len({*shares[0], *shares[1]}) == len(datamodule.train_data)


def test_four_categories_log_each_kind_of_warning_once(
    mvtec_root: Path,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    for name in ("a", "b", "c", "d"):
        folder = shutil.copytree(mvtec_root / "bolt", tmp_path / "data" / name)
        (folder / "train/good/0.HEIC").touch()
        for number in range(3):
            Image.new("RGB", (64, 20), (name == "a", ord(name), number)).save(folder / f"test/good/narrow_{number}.png")
    datamodule = MultiCategory(MVTecFolder(tmp_path / "data", num_workers=0), k_shot=2)
    model = Padim("resnet18", layers=["layer1"], pre_trained=False, n_features=8, evaluator=CategoryEvaluator())
    trainer = SimpleNamespace(callbacks=[], lightning_module=model, world_size=1, is_global_zero=True)
    trainer.default_root_dir = tmp_path
    datamodule.trainer = trainer
    for stage in ("fit", "test"):
        datamodule.prepare_data()
        datamodule.setup(stage)
    (aspect,) = [text for text in caplog.messages if "aspect ratio" in text]
    (skipped,) = [text for text in caplog.messages if ".jpg" in text]
    (threshold,) = [text for text in caplog.messages if "thresholds of Padim" in text]
    assert aspect.startswith("12 images ")
    assert skipped.startswith("4 folders ")
    assert len(caplog.messages) == 3, threshold


def test_errors_of_any_category_are_raised(root: Path) -> None:
    (root / "cloth/test/good/000.png").write_bytes(b"broken")
    with pytest.raises(DataValidationError, match=r"cloth/test/good/000\.png"):
        make(root, k_shot=2)
