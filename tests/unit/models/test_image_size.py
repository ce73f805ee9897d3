# Copyright (C) 2026 anomalib-fewshot contributors
# SPDX-License-Identifier: Apache-2.0

"""Image size that follows the shape of the support images: rule, fit, checkpoint, prediction and export."""

import json
import logging
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from anomalib.data import MVTecAD
from anomalib.data.utils import read_image
from anomalib.engine import Engine
from anomalib.models import Padim, Patchcore
from image_files import save_image
from torchvision.transforms.v2 import CenterCrop, Compose, Resize

from anomalib_fewshot import AutoSizePreProcessor, CoftAD, FewShot, MultiCategory, MVTecFolder, RegAD, UniAD
from anomalib_fewshot.data.support import image_shapes
from anomalib_fewshot.errors import ArgumentError, CheckpointMismatchError
from anomalib_fewshot.models.components import choose_image_size

SMALL = {"backbone": "resnet10t", "pre_trained": False, "image_size": "auto", "visualizer": False}
WIDE = (64, 160)  # about as many pixels as 96 x 96, for images of 40 x 100


@pytest.fixture(autouse=True)
def quick_models(monkeypatch: pytest.MonkeyPatch) -> None:
    """Use 96 x 96 pixels instead of 320 x 320 or 224 x 224."""
    for model_class in (CoftAD, RegAD, UniAD):
        monkeypatch.setattr(model_class, "default_image_size", (96, 96))


def write_images(root: Path, shape: tuple[int, int], *, category: str = "part") -> Path:
    """Write striped images: 10 to train, and 3 good and 3 defective ones to test."""
    generator = np.random.default_rng(sum(shape))
    stripes = 110 + 40 * np.sin(np.arange(shape[1]) / 3)
    for folder, count in (("train/good", 10), ("test/good", 3), ("test/hole", 3)):
        for index in range(count):
            image = np.repeat(np.tile(stripes, (shape[0], 1))[..., None], 3, axis=2) + generator.normal(
                0,
                4,
                (*shape, 3),
            )
            if folder == "test/hole":
                image[10:20, 10:20] = 10
            save_image(image.clip(0, 255).astype(np.uint8), root / category / folder / f"{index:03}.png")
    return root


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the root of a category whose images have 40 x 100 pixels."""
    return write_images(tmp_path_factory.mktemp("wide"), (40, 100))


def few_shot(root: Path, category: str = "part", **arguments) -> FewShot:
    return FewShot(MVTecFolder(root, category, num_workers=0), **{"k_shot": 2} | arguments)


def engine(folder: Path) -> Engine:
    return Engine(default_root_dir=folder, enable_progress_bar=False, logger=False)


@pytest.mark.parametrize("multiple", [14, 16, 32])
def test_size_has_the_shape_and_the_number_of_pixels(multiple: int) -> None:
    generator = np.random.default_rng(multiple)
    for _ in range(300):
        height, width = np.exp(generator.uniform(np.log(30), np.log(4000), 2)).astype(int).tolist()
        size = choose_image_size([(height, width)], 320 * 320, multiple)
        assert all(side > 0 and side % multiple == 0 for side in size)
        assert 0.85 < size[0] * size[1] / 320**2 < 1.18
        ratio = min(max(height / width, 0.25), 4)
        assert 0.9 < size[0] / size[1] / ratio < 1.12
        assert choose_image_size([(width, height)], 320 * 320, multiple) == size[::-1]


def test_size_of_known_shapes() -> None:
    assert choose_image_size([(300, 300)], 320 * 320, 32) == (320, 320)
    assert choose_image_size([(240, 320)] * 3, 320 * 320, 32) == (288, 384)
    assert choose_image_size([(500, 1250)], 320 * 320, 32) == (192, 480)
    assert choose_image_size([(100, 10000)], 320 * 320, 32) == (160, 640)  # 1:100 is squeezed to 1:4
    assert choose_image_size([(227, 227)], 320 * 320, 14) == (322, 322)
    assert choose_image_size([(3, 1)], 32 * 32, 32) == (64, 32)  # a side is at least the stride


def test_one_image_of_another_shape_among_many() -> None:
    """The shapes have nothing in common, so none of them decides."""
    assert choose_image_size([(100, 250)] * 4 + [(250, 100)], 320 * 320, 32) == (320, 320)
    assert choose_image_size([(100, 250), (104, 250), (98, 255)], 320 * 320, 32) == (192, 480)  # nearly one shape


@pytest.mark.parametrize("unlabeled", [None, pytest.param(8, marks=pytest.mark.slow)])
def test_fit_checkpoint_test_and_export(
    wide: Path,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    unlabeled: int | None,
) -> None:
    model, datamodule = CoftAD(**SMALL, num_steps=1), few_shot(wide, unlabeled=unlabeled)
    assert model.model.image_size == (96, 96)
    trained = engine(tmp_path)
    with caplog.at_level(logging.INFO):
        trained.fit(model, datamodule=datamodule)
    assert "resized to 64 x 160 pixels (height x width)" in caplog.text
    assert model.model.image_size == WIDE
    assert tuple(datamodule.test_data.augmentations.size) == WIDE
    assert datamodule.test_data[0].image.shape[1:] == WIDE
    paths = list(datamodule.test_data.samples.image_path)
    scores = score_files(model, paths)
    (metrics,) = trained.test(model, datamodule=datamodule, verbose=False)

    path = trained.best_model_path
    loaded = CoftAD.load_from_checkpoint(path)
    torch.testing.assert_close(score_files(loaded, paths), scores, rtol=0, atol=0)
    by_command = CoftAD(**SMALL)  # as `anomalib test --model CoftAD --ckpt_path ...` creates it
    other = few_shot(wide)
    assert engine(tmp_path / "test").test(by_command, datamodule=other, ckpt_path=path, verbose=False) == [metrics]
    assert tuple(other.test_data.augmentations.size) == WIDE  # images are resized once

    predictions = engine(tmp_path / "predict").predict(
        CoftAD(**SMALL),
        data_path=wide / "part/test/hole",
        ckpt_path=path,
    )
    predicted = {}
    for batch in predictions:
        predicted |= dict(zip(map(str, batch.image_path), batch.pred_score.flatten().tolist(), strict=True))
    assert len(predicted) == 3
    if unlabeled is None:
        return  # an export takes long
    exported = loaded.eval().to_onnx(tmp_path / "export")
    session = onnxruntime.InferenceSession(exported)
    assert json.loads(exported.with_name("metadata.json").read_text())["preprocess"]["image_size"] == list(WIDE)
    for file, score in predicted.items():
        image = read_image(file, as_tensor=True)[None].numpy()
        names = [output.name for output in session.get_outputs()]
        outputs = dict(zip(names, session.run(None, {"input": image}), strict=True))
        assert outputs["anomaly_map"].shape[-2:] == WIDE
        assert float(outputs["pred_score"].squeeze()) == pytest.approx(score, abs=1e-3)


@torch.no_grad()
def score_files(model: CoftAD, paths: list[str]) -> torch.Tensor:
    images = torch.stack([read_image(path, as_tensor=True) for path in paths])
    return model.eval().score_images(model.preprocess(images)).pred_score


def test_second_fit_follows_other_images(wide: Path, tmp_path: Path) -> None:
    tall = write_images(tmp_path / "tall", (100, 50))
    model = CoftAD(**SMALL, num_steps=0)
    engine(tmp_path / "one").fit(model, datamodule=few_shot(wide))
    engine(tmp_path / "two").fit(model, datamodule=few_shot(tall))
    assert model.model.image_size == (128, 64)
    assert model.is_fitted
    loaded = CoftAD.load_from_checkpoint(next((tmp_path / "two").rglob("*.ckpt")))
    assert loaded.model.image_size == (128, 64)
    engine(tmp_path / "three").fit(loaded, datamodule=few_shot(wide))  # the size is still automatic
    assert loaded.model.image_size == WIDE


def test_resumed_fit_keeps_the_size(wide: Path, tmp_path: Path) -> None:
    trained = engine(tmp_path)
    trained.fit(CoftAD(**SMALL, num_steps=0), datamodule=few_shot(wide))
    model = CoftAD(**SMALL, num_steps=0)
    engine(tmp_path / "again").fit(model, datamodule=few_shot(wide), ckpt_path=trained.best_model_path)
    assert model.model.image_size == WIDE


def test_given_size_is_kept(wide: Path, tmp_path: Path) -> None:
    for given in ({"image_size": (64, 96)}, {"pre_processor": CoftAD.configure_pre_processor((64, 96))}):
        model = CoftAD(**SMALL | {"num_steps": 0} | given)
        engine(tmp_path).fit(model, datamodule=few_shot(wide))
        assert model.model.image_size == (64, 96)
    path = next(tmp_path.rglob("*.ckpt"))
    with pytest.raises(CheckpointMismatchError, match="image_size"):
        engine(tmp_path).test(CoftAD(**SMALL | {"image_size": 64}), datamodule=few_shot(wide), ckpt_path=path)


def test_square_images_change_nothing(mvtec_root: Path, tmp_path: Path) -> None:
    model = CoftAD(**SMALL, num_steps=0)
    network = model.model
    engine(tmp_path).fit(model, datamodule=FewShot(MVTecAD(mvtec_root, "bolt", num_workers=0), k_shot=2))
    assert model.model is network


def test_other_models(wide: Path, tmp_path: Path) -> None:
    narrow = {"max_epochs": 1, "augment_support": False}
    reg_ad = RegAD(**SMALL, **narrow)
    engine(tmp_path / "reg").fit(reg_ad, datamodule=few_shot(wide))
    assert reg_ad.model.image_size == WIDE
    uni_ad = UniAD(**SMALL, num_steps=1, dim=32, num_layers=1, neighbor_size=3, augment_support=False)
    engine(tmp_path / "uni").fit(uni_ad, datamodule=few_shot(wide))
    assert uni_ad.model.image_size == WIDE


@pytest.mark.parametrize("model_class", [Patchcore, Padim])
def test_models_of_anomalib(wide: Path, tmp_path: Path, model_class: type) -> None:
    pre_processor = AutoSizePreProcessor(96, [0.5] * 3, [0.5] * 3)
    options = {"backbone": "resnet18", "layers": ["layer2"], "pre_trained": False, "visualizer": False}
    model, datamodule = model_class(pre_processor=pre_processor, **options), few_shot(wide, k_shot=4)
    trained = engine(tmp_path)
    trained.fit(model, datamodule=datamodule)
    assert model.pre_processor.size == (64, 160)
    assert datamodule.test_data[0].image.shape[1:] == (64, 160)
    (metrics,) = trained.test(model, datamodule=datamodule, verbose=False)
    fresh = model_class(pre_processor=AutoSizePreProcessor(96, [0.5] * 3, [0.5] * 3), **options)
    path = trained.trainer.checkpoint_callback.best_model_path
    assert engine(tmp_path / "test").test(fresh, datamodule=few_shot(wide, k_shot=4), ckpt_path=path) == [metrics]
    assert fresh.pre_processor.size == (64, 160)


def test_categories_of_different_shapes_are_square(tmp_path: Path) -> None:
    write_images(tmp_path, (40, 100), category="one")
    write_images(tmp_path, (100, 40), category="two")
    sources = [MVTecFolder(tmp_path, name, num_workers=0) for name in ("one", "two")]
    model = UniAD(**SMALL, num_steps=1, dim=32, num_layers=1, neighbor_size=3, augment_support=False)
    engine(tmp_path / "results").fit(model, datamodule=MultiCategory(sources, k_shot=1))
    assert model.model.image_size == (96, 96)


def test_augmentations_come_before_the_shape(wide: Path, tmp_path: Path) -> None:
    source = MVTecFolder(wide, "part", num_workers=0, augmentations=CenterCrop((40, 80)))
    datamodule = FewShot(source, k_shot=2)
    model = CoftAD(**SMALL, num_steps=0)
    engine(tmp_path).fit(model, datamodule=datamodule)
    assert image_shapes(datamodule) == [(40, 80)] * 2
    assert model.model.image_size == (64, 128)


def test_unlabeled_images_of_other_shapes(wide: Path, tmp_path: Path) -> None:
    tall = write_images(tmp_path, (100, 40)) / "part/train/good"
    datamodule = few_shot(wide, k_shot=1, unlabeled=tall)
    datamodule.setup("fit")
    assert image_shapes(datamodule) == [(40, 100)] + [(100, 40)] * 10
    assert datamodule.unlabeled_data.augmentations is None
    model = CoftAD(**SMALL, num_steps=0)
    engine(tmp_path).fit(model, datamodule=datamodule)
    assert model.model.image_size == (96, 96)


def test_shapes_of_many_images_are_a_sample(wide: Path) -> None:
    datamodule = MVTecFolder(wide, "part", num_workers=0, augmentations=Resize((32, 32)))
    datamodule.setup("fit")
    assert image_shapes(datamodule, max_images=4) == [(40, 100)] * 4


def test_augmentations_without_a_resize_are_kept(wide: Path) -> None:
    source = MVTecFolder(wide, "part", num_workers=0, augmentations=Compose([CenterCrop((40, 80))]))
    source.setup("fit")  # without a trainer, anomalib appends no resize
    assert set(image_shapes(source)) == {(40, 80)}


def test_vit_has_patches_of_the_shape(wide: Path, tmp_path: Path) -> None:
    model = CoftAD(**SMALL | {"backbone": "test_vit"}, num_steps=0)
    engine(tmp_path).fit(model, datamodule=few_shot(wide))
    assert model.model.image_size == (64, 160)
    assert model.model.backbone.grids[0] == (4, 10)
    loaded = CoftAD.load_from_checkpoint(next(tmp_path.rglob("*.ckpt")))
    assert loaded.model.image_size == (64, 160)


def test_unknown_word() -> None:
    with pytest.raises(ArgumentError, match="'auto', got 'big'"):
        CoftAD(**SMALL | {"image_size": "big"})
