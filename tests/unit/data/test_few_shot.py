# Copyright (C) 2026 anomalib-fewshot contributors
# SPDX-License-Identifier: Apache-2.0

"""The datamodule that keeps k normal images, and its manifest."""

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from urllib.error import URLError

import numpy as np
import pytest
import torch
from anomalib import LearningType
from anomalib.data import AnomalibDataModule, Folder, MVTecAD, get_datamodule
from anomalib.data.datamodules.image import mvtecad
from anomalib.data.utils import TestSplitMode, ValSplitMode
from anomalib.engine import Engine
from anomalib.models import Padim
from lightning.pytorch import seed_everything
from PIL import ExifTags, Image
from torchvision.transforms.v2 import Resize

from anomalib_fewshot import CoftAD
from anomalib_fewshot.data import FewShot
from anomalib_fewshot.data.manifest import SupportManifest


def bolt(root: Path, **arguments) -> MVTecAD:
    return MVTecAD(root, "bolt", num_workers=0, **arguments)


def support_of(datamodule: AnomalibDataModule) -> list[str]:
    datamodule.setup()
    return sorted(Path(path).name for path in datamodule.train_data.samples.image_path)


@pytest.fixture
def copied_root(mvtec_root: Path, tmp_path: Path) -> Path:
    shutil.copytree(mvtec_root, tmp_path / "data")
    return tmp_path / "data"


def test_keeps_k_normal_images_and_changes_nothing_else(mvtec_root: Path) -> None:
    source = bolt(mvtec_root)
    datamodule = FewShot(source, k_shot=3, validation="source")
    assert len(support_of(datamodule)) == 3
    assert (len(datamodule.val_data), len(datamodule.test_data)) == (8, 8)
    assert (datamodule.name, datamodule.category, datamodule.task) == ("MVTecAD", "bolt", source.task)
    batch = next(iter(datamodule.train_dataloader()))
    assert batch.image.shape == (3, 3, 64, 64)
    assert not batch.gt_label.any()


def test_validation_images_are_only_used_on_request(mvtec_root: Path) -> None:
    datamodule = FewShot(bolt(mvtec_root))
    datamodule.setup()
    assert not hasattr(datamodule, "val_data")
    assert datamodule.val_dataloader() == []
    datamodule.setup("validate")
    assert len(datamodule.val_data) == 8
    datamodule.setup("fit")
    assert datamodule.val_dataloader() == []  # that of the validation is forgotten


def test_choice_is_independent_of_setup_and_global_seed(mvtec_root: Path) -> None:
    datamodule = FewShot(bolt(mvtec_root), seed=3)
    first = support_of(datamodule)
    seed_everything(99)
    assert support_of(datamodule) == first
    assert support_of(FewShot(bolt(mvtec_root), seed=3)) == first
    assert support_of(FewShot(bolt(mvtec_root), seed=4)) != first


def test_batch_order_is_independent_of_the_global_seed(mvtec_root: Path) -> None:
    orders = []
    for seed in (1, 2):
        seed_everything(seed)
        datamodule = FewShot(bolt(mvtec_root, train_batch_size=2), k_shot=8)
        datamodule.setup()
        orders.append([path for batch in datamodule.train_dataloader() for path in batch.image_path])
    assert orders[0] == orders[1]


def test_choice_is_independent_of_the_data_folder(mvtec_root: Path, copied_root: Path) -> None:
    assert support_of(FewShot(bolt(copied_root))) == support_of(FewShot(bolt(mvtec_root)))


@pytest.mark.parametrize("mode", [ValSplitMode.FROM_TRAIN, ValSplitMode.SYNTHETIC])
def test_validation_from_training_images_excludes_the_support_set(mvtec_root: Path, mode: ValSplitMode) -> None:
    for seed in range(5):
        datamodule = FewShot(bolt(mvtec_root, val_split_mode=mode), k_shot=5, seed=seed, validation="source")
        support = support_of(datamodule)
        validated = {Path(path).read_bytes() for path in datamodule.val_data.samples.image_path}
        assert len(support) == 5
        assert not any((mvtec_root / "bolt/train/good" / name).read_bytes() in validated for name in support)


def test_split_of_the_source_is_the_same_for_every_seed(mvtec_root: Path) -> None:
    """The source splits at random where a source has no seed: the test images would differ from run to run."""
    tested = []
    for seed in (0, 1):
        datamodule = FewShot(bolt(mvtec_root, val_split_mode=ValSplitMode.FROM_TEST), seed=seed)
        datamodule.setup()
        tested.append(list(datamodule.test_data.samples.image_path))
    assert tested[0] == tested[1]


def test_source_as_a_nested_dictionary(mvtec_root: Path) -> None:
    source = {"class_path": "anomalib.data.MVTecAD", "init_args": {"root": str(mvtec_root), "category": "bolt"}}
    arguments = {"source": source, "k_shot": 2, "support": ["001.png", "004.png"]}
    datamodule = get_datamodule({"class_path": "FewShot", "init_args": arguments})
    assert support_of(datamodule) == ["001.png", "004.png"]


def test_folder_with_normal_images_only(mvtec_root: Path) -> None:
    source = Folder("part", "train/good", mvtec_root / "bolt", val_split_mode="none", test_split_mode="none")
    datamodule = FewShot(source, k_shot=2)
    assert len(support_of(datamodule)) == 2
    assert datamodule.val_dataloader() == []


def test_support_is_read_once_if_the_image_size_is_known(mvtec_root: Path) -> None:
    datamodule = FewShot(bolt(mvtec_root), k_shot=2)
    datamodule.setup()
    datamodule.train_data.augmentations = Resize((32, 32))
    loader = datamodule.train_dataloader()
    datamodule.train_data.samples["image_path"] = "/gone.png"
    images = [next(iter(loader)).image for _ in range(3)]
    assert all(image.shape == (2, 3, 32, 32) for image in images)
    assert {tuple(image.mean((1, 2, 3)).sort().values.tolist()) for image in images} == {
        tuple(images[0].mean((1, 2, 3)).sort().values.tolist()),
    }


def test_splits_that_require_anomalous_images(mvtec_root: Path, tmp_path: Path) -> None:
    for name in ("000.png", "001.png"):
        shutil.copy(mvtec_root / "bolt/train/good" / name, tmp_path)
    with pytest.raises(ValueError, match="`source` cannot create its splits .*`test_split_mode`"):
        FewShot(Folder("part", ".", tmp_path)).setup()


def test_error_names_the_folder_that_is_not_ascii(mvtec_root: Path, tmp_path: Path) -> None:
    shutil.copytree(mvtec_root / "bolt", tmp_path / "türen" / "bolt")
    with pytest.raises(
        ValueError,
        match="must be printable ASCII, .* got 'türen'",
    ) as e:
        FewShot(bolt(tmp_path / "türen")).setup()
    assert "split" not in str(e.value)


def test_all_images(mvtec_root: Path) -> None:
    datamodule = FewShot(bolt(mvtec_root), k_shot=None)
    datamodule.setup()
    assert len(datamodule.train_data) == datamodule.manifest.k_shot == 10
    assert datamodule.support_items() is datamodule.train_data  # many images are not kept in memory


def test_manifest_restores_the_support_set(mvtec_root: Path, copied_root: Path, tmp_path: Path) -> None:
    datamodule = FewShot(bolt(mvtec_root), k_shot=2, seed=7)
    first = support_of(datamodule)
    datamodule.manifest.write(tmp_path / "support.json")
    content = json.loads((tmp_path / "support.json").read_text(encoding="utf-8"))
    assert {key: content[key] for key in ("version", "dataset", "category", "k_shot", "seed")} == {
        "version": 1, "dataset": "MVTecAD", "category": "bolt", "k_shot": 2, "seed": 7,
    }  # fmt: skip
    again = FewShot(bolt(copied_root), k_shot=5, seed=1, support=str(tmp_path / "support.json"))
    assert support_of(again) == first
    assert again.manifest.seed is None


@pytest.mark.parametrize("learning_type", [LearningType.ONE_CLASS, LearningType.FEW_SHOT])
def test_manifest_is_written_to_the_results_folder(
    mvtec_root: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    learning_type: LearningType,
) -> None:
    """anomalib's engine validates few-shot models where it fits the others."""
    monkeypatch.setattr(CoftAD, "learning_type", learning_type)
    monkeypatch.setattr(CoftAD, "check_fitted", lambda _: None)
    parts = {"post_processor": False, "evaluator": False, "visualizer": False}
    model = CoftAD("resnet10t", pre_trained=False, image_size=64, num_steps=0, **parts)
    engine = Engine(default_root_dir=tmp_path, enable_progress_bar=False)
    engine.train(model, datamodule=FewShot(bolt(mvtec_root), k_shot=2))
    manifest = SupportManifest.read(Path(engine.trainer.default_root_dir) / "support.json")
    assert len(manifest.images) == manifest.k_shot == 2


def test_changed_image_is_an_error(copied_root: Path, tmp_path: Path) -> None:
    datamodule = FewShot(bolt(copied_root), k_shot=1)
    (name,) = support_of(datamodule)
    datamodule.manifest.write(tmp_path / "support.json")
    shutil.copy(copied_root / "cloth/train/good" / name, copied_root / "bolt/train/good" / name)
    with pytest.raises(ValueError, match=rf"must list unchanged images, .*{name}"):
        FewShot(bolt(copied_root), support=tmp_path / "support.json").setup()


def test_manifest_of_another_category_is_an_error(mvtec_root: Path, tmp_path: Path) -> None:
    SupportManifest("MVTecAD", "cloth", 1, 0, {"000.png": ""}).write(tmp_path / "support.json")
    with pytest.raises(ValueError, match="must be a manifest of MVTecAD bolt, got one of MVTecAD cloth"):
        FewShot(bolt(mvtec_root), support=tmp_path / "support.json").setup()


@pytest.mark.parametrize(
    ("content", "message"),
    [("{", "invalid"), ("[]", "invalid"), ("{}", "invalid"), ('{"version": 2}', "version 1, got version 2")],
)
def test_invalid_manifest(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "support.json").write_text(content, encoding="utf-8")
    with pytest.raises(ValueError, match=message):
        SupportManifest.read(tmp_path / "support.json")


def test_missing_manifest(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="must be a manifest or a list of file names"):
        SupportManifest.read(tmp_path / "support.json")


@pytest.mark.parametrize(
    ("support", "message"),
    [
        (["999.png"], "'999.png', which matches no image"),
        (["hole/000.png"], "'hole/000.png', which is an anomalous image of the test data"),
        (["test/good/000.png"], "'test/good/000.png', which is a normal image of the test data"),
    ],
)
def test_support_must_be_normal_training_images(mvtec_root: Path, support: Sequence[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        FewShot(bolt(mvtec_root), support=support).setup()


def test_more_shots_than_images(mvtec_root: Path) -> None:
    with pytest.raises(ValueError, match="got 11, but MVTecAD bolt has 10"):
        FewShot(bolt(mvtec_root), k_shot=11).setup()


def test_invalid_arguments(mvtec_root: Path) -> None:
    with pytest.raises(ValueError, match="`k_shot` must be at least 1, got 0"):
        FewShot(bolt(mvtec_root), k_shot=0)
    with pytest.raises(TypeError, match="`source` must be an anomalib data module .* got str"):
        FewShot("MVTecAD")


def test_missing_category_is_not_downloaded(mvtec_root: Path) -> None:
    with pytest.raises(ValueError, match=r"got 'nut'\. Available: \['bolt', 'cloth'\]"):
        FewShot(MVTecAD(mvtec_root, "nut")).prepare_data()


def test_missing_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_network(*_) -> None:
        msg = "no network"
        raise URLError(msg)

    monkeypatch.setattr(mvtecad, "download_and_extract", no_network)
    with pytest.raises(FileNotFoundError, match=r"got none in .*missing, .*no network"):
        FewShot(MVTecAD(tmp_path / "missing")).prepare_data()


@pytest.mark.parametrize("content", [b"", b"no image", b"\x89PNG\r\n\x1a\n"])
def test_unreadable_image(copied_root: Path, content: bytes) -> None:
    (copied_root / "bolt/train/good/004.png").write_bytes(content)
    with pytest.raises(ValueError, match=r"004\.png: (is empty|cannot be read \(.*\)).* Replace"):
        FewShot(bolt(copied_root), support=["004.png"]).setup()


def test_gray_and_color_images_have_three_channels(mvtec_root: Path) -> None:
    for category in ("bolt", "cloth"):
        datamodule = FewShot(MVTecAD(mvtec_root, category), k_shot=1)
        datamodule.setup()
        image = datamodule.train_data[0].image
        assert image.shape == (3, 64, 64)
        assert image.dtype == torch.float32


def test_16_bit_image_is_an_error(mvtec_root: Path, tmp_path: Path) -> None:
    """anomalib reads it as white all over."""
    shutil.copytree(mvtec_root, tmp_path / "data")
    for path in (tmp_path / "data" / "bolt" / "train" / "good").iterdir():
        Image.fromarray(np.full((64, 64), 30000, dtype=np.uint16)).save(path)
    datamodule = FewShot(MVTecAD(tmp_path / "data", "bolt"), k_shot=2)
    with pytest.raises(ValueError, match="must have 8 bits per channel, got PIL mode I;16"):
        datamodule.setup()


def test_duplicate_image_is_a_warning(mvtec_root: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    shutil.copytree(mvtec_root, tmp_path / "data")
    first, *others = sorted((tmp_path / "data" / "bolt" / "train" / "good").iterdir())
    for path in others:
        shutil.copy(first, path)
    FewShot(MVTecAD(tmp_path / "data", "bolt"), k_shot=2).setup()
    assert "which is also in the support set" in caplog.text


@pytest.mark.parametrize("wrapped", ["unknown to us", "`root` must be known"])
def test_other_errors_of_a_source_are_not_changed(
    mvtec_root: Path,
    monkeypatch: pytest.MonkeyPatch,
    wrapped: str,
) -> None:
    def fail(*_) -> None:
        raise ValueError(wrapped)

    monkeypatch.setattr(MVTecAD, "setup", fail)
    with pytest.raises(ValueError, match=f"^{wrapped}$"):
        FewShot(bolt(mvtec_root)).setup()


def test_anomalous_images_without_masks(copied_root: Path) -> None:
    shutil.rmtree(copied_root / "bolt/ground_truth/hole")
    (copied_root / "bolt/ground_truth/hole").mkdir()
    with pytest.raises(ValueError, match="`source` must have a mask for each anomalous image .* use `MVTecFolder`"):
        FewShot(bolt(copied_root)).setup()


def test_issues_of_test_images_are_found_without_decoding(copied_root: Path) -> None:
    """Of 8 test images, one has 16 bits, one is rotated, one is truncated, and one has a black mask: all are named."""
    hole = copied_root / "bolt/test/hole"
    Image.fromarray(np.full((64, 64), 30000, dtype=np.uint16)).save(hole / "000.png")
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    Image.open(hole / "001.png").save(hole / "001.png", exif=exif)
    content = (copied_root / "bolt/test/good/002.png").read_bytes()
    (copied_root / "bolt/test/good/002.png").write_bytes(content[: len(content) // 2])
    Image.new("L", (64, 64)).save(copied_root / "bolt/ground_truth/hole/003_mask.png")
    datamodule = FewShot(bolt(copied_root))
    with pytest.raises(ValueError, match="^4 files or folders") as error:
        datamodule.setup()
    for line in (
        "hole/000.png: must have 8 bits",
        "orientation 6",
        "good/002.png: cannot be read",
        "no pixel is marked",
    ):
        assert line in str(error.value)
    assert {issue.severity for issue in datamodule.data_issues} == {"error"}


def test_support_image_among_test_images_is_reported_once(copied_root: Path, caplog: pytest.LogCaptureFixture) -> None:
    shutil.copy(copied_root / "bolt/train/good/004.png", copied_root / "bolt/test/good/copy.png")
    (copied_root / "bolt/train/good/005.HEIC").touch()
    datamodule = FewShot(bolt(copied_root), support=["004.png", "001.png"])
    for _ in range(2):
        datamodule.setup()
    assert caplog.text.count("copy.png: is a copy of the support image") == 1
    assert caplog.text.count("005.HEIC") == 1


@pytest.mark.parametrize("model", [CoftAD, Padim])
def test_test_images_of_one_class_have_no_auroc(
    mvtec_root: Path,
    tmp_path: Path,
    model: type,
    caplog: pytest.LogCaptureFixture,
) -> None:
    source = Folder("part", "train/good", mvtec_root / "bolt", "test/hole", num_workers=0, val_split_mode="none")
    source.test_split_mode = TestSplitMode.NONE
    datamodule = FewShot(source, k_shot=2)
    small = {"layers": ["layer1"], "n_features": 8} if model is Padim else {"image_size": 64, "num_steps": 0}
    fitted = model("resnet18", pre_trained=False, visualizer=False, **small)
    engine = Engine(accelerator="cpu", default_root_dir=tmp_path, enable_progress_bar=False)
    engine.fit(fitted, datamodule=datamodule)
    assert "bolt: has 4 anomalous and no normal test images" in caplog.text
    assert engine.test(fitted, datamodule=datamodule, verbose=False) == [{}]
    assert "Not measured: image_AUROC, image_F1Score. Reason: all 4 images are anomalous." in caplog.text
