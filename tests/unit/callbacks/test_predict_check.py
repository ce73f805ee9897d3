# Copyright (C) 2026 anomalib-fewshot contributors
# SPDX-License-Identifier: Apache-2.0

"""The pictures of a prediction are checked before the first is scored, by any model of anomalib."""

import logging
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from anomalib.data import ImageBatch, PredictDataset
from anomalib.engine import Engine
from anomalib.models import AnomalibModule, Padim
from anomalib.visualization import ImageVisualizer
from lightning.pytorch import Callback
from PIL import ExifTags, Image

from anomalib_fewshot import ImageStatistic
from anomalib_fewshot.callbacks import PredictCheck
from anomalib_fewshot.callbacks.predict_check import _warn_overwritten_maps


@pytest.fixture
def new(tmp_path: Path) -> Path:
    folder = tmp_path / "new"
    folder.mkdir()
    for number in range(3):
        Image.linear_gradient("L").convert("RGB").resize((64, 48)).save(folder / f"{number}.jpg")
    return folder


@pytest.fixture(scope="module", params=["Padim", "ImageStatistic"])
def model(request: pytest.FixtureRequest) -> AnomalibModule:
    parts = {"visualizer": False, "evaluator": False, "post_processor": False}
    if request.param == "Padim":
        model = Padim("resnet18", layers=["layer1"], pre_trained=False, n_features=8, **parts)
        model.on_predict_start = lambda: pytest.fail("scored")  # after the callbacks
        return model
    model = ImageStatistic("mean", image_size=64, **parts)
    model.is_fitted.fill_(value=True)
    return model


def predict(model: AnomalibModule, tmp_path: Path, *, callbacks: Sequence[Callback] = (), **arguments) -> list:
    engine = Engine(
        accelerator="cpu",
        default_root_dir=tmp_path,
        enable_progress_bar=False,
        callbacks=[*callbacks] or [PredictCheck()],
        logger=False,
    )
    return engine.predict(model, **arguments)


def test_all_unreadable_images_are_reported(model: AnomalibModule, new: Path, tmp_path: Path) -> None:
    content = (new / "1.jpg").read_bytes()
    (new / "1.jpg").write_bytes(content[: len(content) // 2])
    (new / "empty.png").touch()
    (new / "._0.jpg").write_bytes(b"note")
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 3
    Image.open(new / "2.jpg").save(new / "2.jpg", exif=exif)
    Image.new("I;16", (64, 48)).save(new / "deep.png")
    with pytest.raises(ValueError, match="^5 files or folders") as error:
        predict(model, tmp_path, data_path=new)
    for part in (
        "1.jpg: cannot be read",
        "empty.png: is empty",
        "._0.jpg",
        "orientation 3",
        "deep.png: must have 8 bits",
    ):
        assert part in str(error.value)


def test_valid_images_are_scored_and_skipped_files_are_reported(
    new: Path,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    (new / "3.HEIC").write_bytes(b"x")
    model = ImageStatistic("mean", image_size=64, visualizer=False, evaluator=False, post_processor=False)
    model.is_fitted.fill_(value=True)
    for arguments in ({"data_path": new}, {"dataset": PredictDataset(new)}, {"data_path": new / "0.jpg"}):
        caplog.clear()
        is_folder = arguments.get("data_path") != new / "0.jpg"
        assert len(predict(model, tmp_path, **arguments)) == (3 if is_folder else 1)
        assert (
            any(text.startswith(f"{new}: has files that anomalib skips: 3.HEIC") for text in caplog.messages)
            is is_folder
        )


@pytest.mark.parametrize(
    ("explanation", "labels", "words"),
    [
        (["defect, p = 0.2", "good, p = 1", "defect"], [1, 0, 1], "3 images: 2 defect, 0 review, 1 good."),
        (None, [1, 0, 0], "3 images: 1 anomalous, 2 normal."),
        (None, None, "3 images: no labels."),
    ],
)
def test_summary_of_the_verdicts(
    new: Path,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    explanation: list[str] | None,
    labels: list[int] | None,
    words: str,
) -> None:
    """The batches are complete after the callback: post-processors come later."""
    model = ImageStatistic("mean", image_size=64, visualizer=ImageVisualizer(), evaluator=False, post_processor=False)
    model.is_fitted.fill_(value=True)
    scored = iter(range(3))

    class Late(Callback):
        def on_predict_batch_end(self, trainer: object, module: object, outputs: ImageBatch, *_: object) -> None:
            del trainer, module
            number = next(scored)
            outputs.pred_label = None if labels is None else torch.tensor([bool(labels[number])])
            outputs.explanation = None if explanation is None else [explanation[number]]

    caplog.set_level(logging.INFO)
    predict(model, tmp_path, data_path=new, callbacks=[PredictCheck(), Late()])
    maps = tmp_path / "ImageStatistic" / "latest" / "images"
    said = [text for text in caplog.messages if "images: " in text or "Heat" in text]
    assert list(dict.fromkeys(said)) == [words, f"Heat maps: {maps}"]  # where it is installed, there are two of it
    assert len(list(maps.rglob("*.jpg"))) == 3


def test_overwritten_heat_maps_are_reported(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    files = [tmp_path / name for name in ("a/part/1.png", "b/part/1.png", "b/other/1.png", "b/part/2.png")]
    _warn_overwritten_maps(files[1:], tmp_path / "images")
    assert caplog.messages == []
    (tmp_path / "images" / "part").mkdir(parents=True)
    (tmp_path / "images" / "part" / "2.png").touch()
    _warn_overwritten_maps(files, tmp_path / "images")
    shared, replaced = caplog.messages
    assert shared.startswith("2 images have the same file and folder names")
    assert shared.endswith(f": {files[0]}, {files[1]}")
    assert replaced.endswith(f": {tmp_path / 'images'}")
