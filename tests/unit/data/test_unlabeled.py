# Copyright (C) 2026 anomalib-fewshot contributors
# SPDX-License-Identifier: Apache-2.0

"""The unlabeled pool of a few-shot data module."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from anomalib.data import MVTecAD, get_datamodule
from anomalib.engine import Engine
from anomalib.models import Padim
from lightning.pytorch import seed_everything
from PIL import Image

from anomalib_fewshot import CoftAD, FewShot, MultiCategory
from anomalib_fewshot.data.manifest import SupportManifest
from anomalib_fewshot.data.support import support_digest
from anomalib_fewshot.errors import (
    ArgumentError,
    CheckpointMismatchError,
    DataValidationError,
    MissingDataError,
    SupportError,
)


def bolt(root: Path, unlabeled: int | str | Path | None, source: dict | None = None, **arguments) -> FewShot:
    """Return a data module after ``setup``: 10 normal training images, 4 normal and 4 anomalous test images."""
    data = FewShot(
        MVTecAD(root, "bolt", num_workers=0, **(source or {})),
        **{"k_shot": 2, "unlabeled": unlabeled} | arguments,
    )
    data.setup()
    return data


def pool_of(data: FewShot) -> list[str]:
    return [path for batch in data.unlabeled_dataloader() for path in batch.image_path]


def paths_of(dataset) -> set[str]:  # noqa: ANN001
    return set(dataset.samples.image_path)


@pytest.fixture
def root(mvtec_root: Path, tmp_path: Path) -> Path:
    shutil.copytree(mvtec_root, tmp_path / "data")
    return tmp_path / "data"


# --- A number of images


def test_without_a_pool_nothing_changes(mvtec_root: Path) -> None:
    data = bolt(mvtec_root, None)
    assert data.unlabeled_dataloader() == []
    assert data.train_data is data.support_data
    assert data.manifest.digest == bolt(mvtec_root, 0).manifest.digest
    sources = [MVTecAD(mvtec_root, category, num_workers=0) for category in ("bolt", "cloth")]
    assert MultiCategory(sources, k_shot=2).unlabeled_dataloader() == []


def test_pool_is_disjoint_from_support_and_test_images(mvtec_root: Path) -> None:
    data = bolt(mvtec_root, 8)
    pool = pool_of(data)
    assert len(pool) == len(set(pool)) == 8
    assert not paths_of(data.support_data) & set(pool)
    assert paths_of(data.support_data) | set(pool) == paths_of(data.source.train_data)
    assert len(data.test_data) == 8
    assert paths_of(data.train_data) == paths_of(data.support_data)


def test_pool_is_nested_and_repeatable(mvtec_root: Path) -> None:
    largest = pool_of(bolt(mvtec_root, 8))
    for size in range(1, 8):
        seed_everything(size)
        data = bolt(mvtec_root, size)
        assert pool_of(data) == largest[:size]
        data.setup("fit")
        assert pool_of(data) == largest[:size]
    assert pool_of(bolt(mvtec_root, 8, seed=1)) != largest


def test_pool_is_the_same_for_all_k_while_images_suffice(mvtec_root: Path) -> None:
    """Of ten images, two are not in a support set of eight."""
    pools = [pool_of(bolt(mvtec_root, 2, k_shot=k)) for k in (1, 2, 4, 8)]
    assert all(pool == pools[0] for pool in pools)


def test_pool_depends_on_names_only(mvtec_root: Path, root: Path) -> None:
    names = [Path(path).name for path in pool_of(bolt(mvtec_root, 5))]
    assert [Path(path).name for path in pool_of(bolt(root, 5))] == names


def test_pool_of_a_named_support_set(mvtec_root: Path) -> None:
    """It has the order of the random one. The image that would be the support set for k = 1 is now in the pool."""
    random = bolt(mvtec_root, 9, k_shot=1)
    first, second, *others = pool_of(random)
    (support,) = paths_of(random.support_data)
    assert pool_of(bolt(mvtec_root, 9, support=[Path(first).name])) == [second, support, *others]


def test_too_large_a_pool_is_an_error(mvtec_root: Path) -> None:
    with pytest.raises(SupportError, match="got 9 normal images, but there are 8. Lower `unlabeled`"):
        bolt(mvtec_root, 9)


def test_items_have_no_labels(mvtec_root: Path) -> None:
    data = bolt(mvtec_root, 6, contamination=0.34)
    for item in data.unlabeled_data:
        assert item.gt_label is item.gt_mask is item.mask_path is None
        assert item.image.shape == (3, 64, 64)
    (batch,) = data.unlabeled_dataloader()
    assert batch.gt_label is batch.gt_mask is None
    assert len(batch.image) == 6
    assert any("hole" in path for path in batch.image_path)


def test_loader_leaves_the_global_generator_alone(mvtec_root: Path) -> None:
    data = bolt(mvtec_root, 6, source={"train_batch_size": 4})
    before = torch.get_rng_state()
    assert [len(batch.image) for batch in data.unlabeled_dataloader()] == [4, 2]
    assert torch.equal(before, torch.get_rng_state())


def test_loader_with_worker_processes(mvtec_root: Path) -> None:
    expected = bolt(mvtec_root, 4)
    data = bolt(mvtec_root, 4, source={"train_batch_size": 2})
    data.num_workers = 2
    assert data.unlabeled_dataloader().num_workers == 2
    assert pool_of(data) == pool_of(expected)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"unlabeled": -1}, "`unlabeled` must be at least 0, got -1"),
        ({"unlabeled": True}, "`unlabeled` must be a folder, a list of files or a number of images, got True"),
        ({"unlabeled": 2.5}, "`unlabeled` must be a folder, a list of files or a number of images, got 2.5"),
        ({"unlabeled": 4, "contamination": 1.0}, "`contamination` must be at least 0 and below 1, got 1.0"),
        ({"contamination": 0.1}, "must be used with a number of unlabeled images, got `unlabeled=None`"),
        ({"unlabeled": "folder", "contamination": 0.1}, "got `unlabeled='folder'`"),
        ({"unlabeled": ["a.png"], "contamination": 0.1}, r"got `unlabeled=\['a.png'\]`"),
    ],
)
def test_invalid_arguments(mvtec_root: Path, arguments: dict, message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        FewShot(MVTecAD(mvtec_root, "bolt"), **arguments)


@pytest.mark.parametrize("unlabeled", [3, "new", ["a.png", "b.png"]])
def test_command_line_arguments(mvtec_root: Path, unlabeled: int | str | list[str]) -> None:
    source = {"class_path": "anomalib.data.MVTecAD", "init_args": {"root": str(mvtec_root), "category": "bolt"}}
    data = get_datamodule({"class_path": "FewShot", "init_args": {"source": source, "unlabeled": unlabeled}})
    assert data.unlabeled == unlabeled


# --- Contamination


def test_contamination_moves_anomalous_test_images_into_the_pool(mvtec_root: Path) -> None:
    data = bolt(mvtec_root, 8, contamination=0.25, validation="source")
    anomalous = {path for path in pool_of(data) if "hole" in path}
    assert len(anomalous) == 2
    assert not paths_of(data.test_data) & anomalous
    assert not paths_of(data.val_data) & anomalous
    assert len(data.test_data) == 6
    assert len(data.source.test_data) == 8  # the source is shared by several runs
    data.setup()
    assert len(data.test_data) == 6
    assert pool_of(data) == pool_of(bolt(mvtec_root, 8, contamination=0.25))


def test_contaminated_pool_is_nested(mvtec_root: Path) -> None:
    largest = pool_of(bolt(mvtec_root, 8, contamination=0.25))
    for size in range(1, 8):
        pool = pool_of(bolt(mvtec_root, size, contamination=0.25))
        assert pool == largest[:size]
        assert sum("hole" in path for path in pool) == round(size / 4)


def test_one_anomalous_image_stays_in_the_test_data(mvtec_root: Path) -> None:
    assert sum(bolt(mvtec_root, 4, contamination=0.75).test_data.samples.label_index) == 1
    with pytest.raises(SupportError, match="got 4 images for the pool, but only 3 can be removed"):
        bolt(mvtec_root, 5, contamination=0.8)


# --- A folder


def test_folder_is_searched_recursively_in_a_fixed_order(root: Path) -> None:
    folder = root / "bolt/test"
    data = bolt(root, str(folder))
    assert pool_of(data) == [str(path) for path in sorted(folder.rglob("*.png"))]
    assert len(data.test_data) == 8  # a model may use the images that it scores
    assert next(iter(data.manifest.unlabeled)) == "good/000.png"


def test_support_images_are_left_out_of_a_folder(root: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "anomalib_fewshot")
    (root / "pool").symlink_to(root / "bolt/train/good")
    data = bolt(root, root / "pool")
    assert len(pool_of(data)) == 8
    assert not {Path(path).name for path in pool_of(data)} & set(data.manifest.images)
    data.setup()
    assert caplog.text.count("2 images of the support set are left out of the unlabeled images") == 1


def test_folder_without_images(root: Path) -> None:
    (root / "pool").mkdir()
    (root / "pool" / "notes.txt").touch()
    with pytest.raises(DataValidationError, match="`unlabeled` must be a folder with images"):
        bolt(root, root / "pool")
    for name in ("000.png", "001.png"):
        shutil.copy(root / "bolt/train/good" / name, root / "pool" / name)
    shutil.rmtree(root / "bolt/train/good")
    shutil.move(root / "pool", root / "bolt/train/good")
    with pytest.raises(DataValidationError, match="all of its 2 images are in the support set"):
        bolt(root, root / "bolt/train/good")


def test_missing_folder(mvtec_root: Path) -> None:
    with pytest.raises(MissingDataError, match="got no folder: .*missing"):
        bolt(mvtec_root, mvtec_root / "missing")


@pytest.mark.parametrize("content", [b"", b"no image", None])
def test_unreadable_image_of_a_folder(root: Path, content: bytes | None) -> None:
    path = root / "bolt/test/good/001.png"
    shutil.copytree(path.parent, root / "pool")
    path = root / "pool" / "001.png"
    if content is None:
        path.unlink()
        path.symlink_to(root / "gone.png")
    else:
        path.write_bytes(content)
    with pytest.raises(DataValidationError, match=r"pool/001\.png: "):
        bolt(root, root / "pool")


def test_image_checks_cover_the_pool(root: Path, caplog: pytest.LogCaptureFixture) -> None:
    shutil.copytree(root / "bolt/test/good", root / "pool")
    Image.fromarray(np.zeros((64, 200, 3), dtype=np.uint8)).save(root / "pool" / "wide.png")
    (root / "pool" / "photo.HEIC").touch()
    bolt(root, root / "pool")
    assert "wide.png: has another aspect ratio than the support set" in caplog.text
    assert "has files that anomalib skips: photo.HEIC" in caplog.text


# --- A list of files


def test_list_of_files(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the given order, from several folders, with relative and absolute paths and a file of the support set."""
    monkeypatch.chdir(root)
    data = bolt(root, 2)
    (support, *_), (inside, _) = data.manifest.images, pool_of(data)
    first, second = Path("bolt/test/hole/001.png"), root / "bolt/test/good/000.png"
    data = bolt(root, [first, str(second), first, root / "bolt/train/good" / support, inside])
    assert pool_of(data) == [str(first), str(second), inside]
    assert list(data.manifest.unlabeled)[:2] == ["test/hole/001.png", "test/good/000.png"]
    assert bolt(root, []).unlabeled_dataloader() == []


def test_errors_of_a_list_of_files(root: Path) -> None:
    with pytest.raises(MissingDataError, match=r"got no file: .*gone\.png"):
        bolt(root, [root / "bolt/test/good/000.png", root / "gone.png"])
    support = next(iter(bolt(root, None).manifest.images))
    with pytest.raises(DataValidationError, match="outside the support set, got 1 images of it"):
        bolt(root, [root / "bolt/train/good" / support])
    (root / "broken.png").write_bytes(b"no image")
    with pytest.raises(DataValidationError, match=r"broken\.png: "):
        bolt(root, [root / "broken.png", root / "bolt/test/good/000.png"])


# --- Manifest


def test_manifest_repeats_the_pool_if_it_has_the_same_size(mvtec_root: Path, tmp_path: Path) -> None:
    first = bolt(mvtec_root, 4, seed=3, contamination=0.25)
    file = tmp_path / "support.json"
    first.manifest.write(file)
    assert SupportManifest.read(file) == first.manifest
    content = json.loads(file.read_text(encoding="utf-8"))
    assert len(content["unlabeled"]) == 4
    assert content["contamination"] == pytest.approx(0.25)
    assert sum(name.startswith("../../test/hole/") for name in content["unlabeled"]) == 1

    assert bolt(mvtec_root, None, support=file).unlabeled_dataloader() == []
    assert pool_of(bolt(mvtec_root, 4, support=file, contamination=0.25)) == pool_of(first)
    other = bolt(mvtec_root, 8, support=file)
    assert paths_of(other.support_data) == paths_of(first.support_data)
    assert len(pool_of(other)) == 8


def test_changed_pool_of_a_manifest_is_an_error(root: Path, tmp_path: Path) -> None:
    data = bolt(root, 3)
    data.manifest.write(tmp_path / "support.json")
    changed = Path(pool_of(data)[1])
    shutil.copy(root / "cloth/train/good/000.png", changed)
    with pytest.raises(SupportError, match=f"got 1 images that are missing or changed, such as {changed.name}"):
        bolt(root, 3, support=tmp_path / "support.json")


def test_manifest_without_a_pool_is_as_before(mvtec_root: Path, tmp_path: Path) -> None:
    data = bolt(mvtec_root, None)
    data.manifest.write(tmp_path / "support.json")
    content = json.loads((tmp_path / "support.json").read_text(encoding="utf-8"))
    assert set(content) == {"version", "dataset", "category", "k_shot", "seed", "images"}


def test_digest_identifies_the_pool(root: Path) -> None:
    digests = [support_digest(bolt(root, size)) for size in (0, 3, 4)]
    assert len(set(digests)) == 3
    assert support_digest(bolt(root, 3)) == digests[1]
    shutil.copytree(root / "bolt/test/good", root / "pool")
    data = bolt(root, root / "pool")
    first = support_digest(data)
    shutil.copy(root / "bolt/test/hole/000.png", root / "pool" / "000.png")
    data.setup()
    assert support_digest(data) != first


def test_resuming_with_another_pool_is_an_error(mvtec_root: Path, tmp_path: Path) -> None:
    def fit(unlabeled: int, checkpoint: str | None = None) -> str:
        model = CoftAD("resnet10t", pre_trained=False, image_size=64, num_steps=0, visualizer=False, evaluator=False)
        data = FewShot(MVTecAD(mvtec_root, "bolt", num_workers=0), k_shot=2, unlabeled=unlabeled)
        engine = Engine(default_root_dir=tmp_path, enable_progress_bar=False, accelerator="cpu")
        engine.fit(model, datamodule=data, ckpt_path=checkpoint)
        return engine.best_model_path

    checkpoint = fit(3)
    fit(3, checkpoint)
    with pytest.raises(CheckpointMismatchError, match="must be a checkpoint that was fitted to the support set"):
        fit(4, checkpoint)


# --- Appended


def test_appended_images_are_normal_training_images(mvtec_root: Path) -> None:
    data = bolt(mvtec_root, 6, contamination=0.34, append_unlabeled=True)
    assert paths_of(data.train_data) == paths_of(data.support_data) | set(pool_of(data))
    assert data.num_appended == 6
    batch = next(iter(data.train_dataloader()))
    assert len(batch.image) == 8
    assert not batch.gt_label.any()
    assert len(data.support_dataloader().dataset) == 2


@pytest.mark.parametrize("uses_unlabeled", [False, True])
@pytest.mark.parametrize("append_unlabeled", [False, True])
def test_warning_if_the_pool_is_ignored_or_used_twice(
    mvtec_root: Path,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    uses_unlabeled: bool,
    append_unlabeled: bool,
) -> None:
    model = Padim("resnet18", layers=["layer1"], pre_trained=False, n_features=8, visualizer=False)
    model.uses_unlabeled = uses_unlabeled
    data = FewShot(
        MVTecAD(mvtec_root, "bolt", num_workers=0),
        k_shot=3,
        unlabeled=4,
        append_unlabeled=append_unlabeled,
    )
    Engine(default_root_dir=tmp_path, enable_progress_bar=False, accelerator="cpu").fit(model, datamodule=data)
    assert caplog.text.count("Padim does not use the 4 unlabeled") == (not uses_unlabeled and not append_unlabeled)
    assert caplog.text.count("Padim uses the 4 unlabeled images itself") == (uses_unlabeled and append_unlabeled)
