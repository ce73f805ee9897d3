# Copyright (C) 2026 anomalib-fewshot contributors
# SPDX-License-Identifier: Apache-2.0

"""The pictures of a prediction are checked before the first is scored, by any model of anomalib."""

import re
import subprocess
import sys
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest
from anomalib.data import PredictDataset
from anomalib.engine import Engine
from anomalib.models import AnomalibModule, Padim
from PIL import ExifTags, Image

import anomalib_fewshot
from anomalib_fewshot import PlainStatistic
from anomalib_fewshot.callbacks import PredictCheck
from anomalib_fewshot.plugin import make_callbacks


@pytest.fixture
def new(tmp_path: Path) -> Path:
    folder = tmp_path / "new"
    folder.mkdir()
    for number in range(3):
        Image.linear_gradient("L").convert("RGB").resize((64, 48)).save(folder / f"{number}.jpg")
    return folder


@pytest.fixture(scope="module", params=["Padim", "PlainStatistic"])
def model(request: pytest.FixtureRequest) -> AnomalibModule:
    parts = {"visualizer": False, "evaluator": False, "post_processor": False}
    if request.param == "Padim":
        model = Padim("resnet18", layers=["layer1"], pre_trained=False, n_features=8, **parts)
        model.on_predict_start = lambda: pytest.fail("scored")  # after the callbacks
        return model
    model = PlainStatistic("mean", image_size=64, **parts)
    model.is_fitted.fill_(value=True)
    return model


def predict(model: AnomalibModule, tmp_path: Path, **arguments) -> list:
    engine = Engine(
        accelerator="cpu",
        default_root_dir=tmp_path,
        enable_progress_bar=False,
        callbacks=[PredictCheck()],
        logger=False,
    )
    return engine.predict(model, **arguments)


def test_all_that_cannot_be_read_is_named(model: AnomalibModule, new: Path, tmp_path: Path) -> None:
    content = (new / "1.jpg").read_bytes()
    (new / "1.jpg").write_bytes(content[: len(content) // 2])
    (new / "empty.png").touch()
    (new / "._0.jpg").write_bytes(b"note")
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 3
    Image.open(new / "2.jpg").save(new / "2.jpg", exif=exif)
    Image.new("I;16", (64, 48)).save(new / "deep.png")
    with pytest.raises(ValueError, match="got 5 that are not:") as error:
        predict(model, tmp_path, data_path=new)
    for part in (
        "1.jpg: cannot be read",
        "empty.png: is empty",
        "._0.jpg",
        "orientation 3",
        "deep.png: must have 8 bits",
    ):
        assert part in str(error.value)


def test_healthy_pictures_are_scored_and_what_is_left_out_is_said(
    new: Path,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    (new / "3.HEIC").write_bytes(b"x")
    model = PlainStatistic("mean", image_size=64, visualizer=False, evaluator=False, post_processor=False)
    model.is_fitted.fill_(value=True)
    for arguments in ({"data_path": new}, {"dataset": PredictDataset(new)}, {"data_path": new / "0.jpg"}):
        caplog.clear()
        is_folder = arguments.get("data_path") != new / "0.jpg"
        assert len(predict(model, tmp_path, **arguments)) == (3 if is_folder else 1)
        assert any(text.startswith(f"{new}: 1 files left out: ") for text in caplog.messages) is is_folder


def test_lightning_gets_the_callback_where_anomalib_is_used() -> None:
    (callback,) = make_callbacks()
    assert isinstance(callback, PredictCheck)
    code = "import sys; from anomalib_fewshot import plugin; print(plugin.make_callbacks(), 'torch' in sys.modules)"
    command = [sys.executable, "-S", "-c", code]
    root = Path(anomalib_fewshot.__file__).parents[1]
    answer = subprocess.run(command, capture_output=True, text=True, check=True, env={"PYTHONPATH": str(root)})
    assert answer.stdout == "[] False\n"


def test_entry_point_makes_the_callback() -> None:
    """Lightning reads the entry points of installed packages at the start of each trainer."""
    project = (Path(anomalib_fewshot.__file__).parents[1] / "pyproject.toml").read_text(encoding="utf-8")
    (value,) = re.findall(r'lightning\.pytorch\.callbacks_factory"\]\nanomalib_fewshot = "(.*)"', project)
    assert EntryPoint("anomalib_fewshot", value, "lightning.pytorch.callbacks_factory").load() is make_callbacks
