# Copyright (C) 2026 anomalib-fewshot contributors
# SPDX-License-Identifier: Apache-2.0

"""The control: its statistics in closed form, and how it is fitted."""

from itertools import product
from pathlib import Path

import pytest
import torch
from anomalib.data import MVTecAD
from anomalib.engine import Engine
from torch import nn

from anomalib_fewshot import FewShot, ImageStatistic
from anomalib_fewshot.errors import NotFittedError
from anomalib_fewshot.models.image_statistic.torch_model import STATISTICS, ImageStatisticModel


def grey(count: int = 3, size: tuple[int, int] = (32, 48)) -> torch.Tensor:
    return torch.rand(count, *size, generator=torch.Generator().manual_seed(0))


def fit(model: ImageStatistic, root: Path, results: Path, category: str = "bolt", k_shot: int = 2) -> Engine:
    engine = Engine(accelerator="cpu", default_root_dir=results, enable_progress_bar=False)
    engine.fit(model, datamodule=FewShot(MVTecAD(root, category, num_workers=0), k_shot=k_shot))
    return engine


def test_values_in_closed_form() -> None:
    """A grey image with a brighter left half, and one with a frame: 2 of 32 pixels wide, 1/16 of the shorter side."""
    halves, frame = torch.full((32, 48), 0.25), torch.zeros(32, 48)
    halves[:, :24] = 0.75
    frame[:2], frame[-2:], frame[:, :2], frame[:, -2:] = 1, 1, 1, 1
    area = 1 - 28 * 44 / (32 * 48)
    expected = {"mean": [0.5, area], "std": [0.25, (area * (1 - area)) ** 0.5], "border": [0.5, 1.0]}
    for name, statistic in STATISTICS.items():
        torch.testing.assert_close(statistic(torch.stack([halves, frame])), torch.tensor(expected[name]))


@pytest.mark.parametrize("size", [(2, 2), (3, 5), (16, 16), (40, 33), (64, 100)])
def test_border_is_that_of_a_slow_loop(size: tuple[int, int]) -> None:
    strip = max(1, min(size) // 16)
    for image, value in zip(grey(size=size), STATISTICS["border"](grey(size=size)), strict=True):
        pixels = [
            image[y, x]
            for y, x in product(range(size[0]), range(size[1]))
            if min(y, x, size[0] - 1 - y, size[1] - 1 - x) < strip
        ]
        torch.testing.assert_close(value, torch.stack(pixels).mean())


@pytest.mark.parametrize("name", STATISTICS)
def test_mirrored_and_turned_images_have_the_same_value(name: str) -> None:
    statistic = STATISTICS[name]
    for other in (grey().flip(-1), grey().flip(-2), grey().mT):
        torch.testing.assert_close(statistic(other), statistic(grey()))


@pytest.mark.parametrize("name", STATISTICS)
def test_brightness_shifts_and_contrast_scales(name: str) -> None:
    statistic = STATISTICS[name]
    shift = 0 if name == "std" else 0.5
    torch.testing.assert_close(statistic(2 * grey() + 0.5), 2 * statistic(grey()) + shift)


def test_border_does_not_see_the_middle() -> None:
    other = grey()
    other[:, 2:-2, 2:-2] = 7
    assert torch.equal(STATISTICS["border"](other), STATISTICS["border"](grey()))
    other[:, 1, 1] = 7
    assert (STATISTICS["border"](other) > STATISTICS["border"](grey())).all()


def test_score_is_the_distance_to_the_mean_of_the_support() -> None:
    model = ImageStatisticModel("mean")
    model.fit(torch.tensor([0.0, 0.0, 0.0, 0.4]))
    result = model(torch.tensor([0.0, 0.1, 0.4]).reshape(3, 1, 1, 1).expand(3, 3, 8, 8))
    torch.testing.assert_close(result.pred_score, torch.tensor([0.1, 0.0, 0.3]))
    assert result.anomaly_map is None


def test_held_out_scores_are_those_of_a_loop() -> None:
    values = torch.tensor([0.1, 0.5, 0.2, 0.9])
    expected = [(values[i] - values[torch.arange(4) != i].mean()).abs() for i in range(4)]
    torch.testing.assert_close(ImageStatisticModel("mean").fit(values), torch.stack(expected))
    assert ImageStatisticModel("mean").fit(values[:1]).tolist() == [0.0]


def test_grey_value_is_the_mean_of_the_channels() -> None:
    model = ImageStatisticModel("mean")
    model.fit(torch.zeros(1))
    image = torch.tensor([0.9, 0.3, 0.0]).reshape(1, 3, 1, 1).expand(1, 3, 8, 8)
    torch.testing.assert_close(model(image).pred_score, torch.tensor([0.4]))
    torch.testing.assert_close(model(image.half()).pred_score, torch.tensor([0.4]), rtol=1e-3, atol=0)


@pytest.mark.parametrize("name", STATISTICS)
def test_one_picture_is_enough_and_its_own_score_is_zero(name: str) -> None:
    model = ImageStatisticModel(name)
    images = grey(4)[:, None]
    model.fit(model.values(images[:1]))
    scores = model(images).pred_score
    assert scores[0] == 0
    assert (scores[1:] > 0).all()


def test_an_earlier_fit_is_forgotten(mvtec_root: Path, tmp_path: Path) -> None:
    model = ImageStatistic(image_size=64, visualizer=False)
    fit(model, mvtec_root, tmp_path, category="cloth")
    engine = fit(model, mvtec_root, tmp_path, k_shot=3)
    support = torch.stack([item.image for item in engine.trainer.datamodule.train_data])
    torch.testing.assert_close(model.model.mean, support.mean())
    assert model.configure_optimizers() is None


def test_threshold_without_validation_is_the_highest_held_out_score(mvtec_root: Path, tmp_path: Path) -> None:
    model = ImageStatistic(image_size=64, visualizer=False)
    engine = Engine(accelerator="cpu", default_root_dir=tmp_path, enable_progress_bar=False)
    source = MVTecAD(mvtec_root, "bolt", val_split_mode="none", num_workers=0)
    engine.fit(model, datamodule=FewShot(source, k_shot=2))
    values = torch.stack([item.image.mean() for item in engine.trainer.datamodule.train_data])
    torch.testing.assert_close(model.post_processor.image_threshold, (values[0] - values[1]).abs())
    assert model.post_processor.pixel_min.isnan()  # there is no anomaly map


@pytest.mark.parametrize("stage", ["test", "predict", "validate"])
def test_scoring_before_training_is_refused(mvtec_root: Path, tmp_path: Path, stage: str) -> None:
    engine = Engine(accelerator="cpu", default_root_dir=tmp_path, enable_progress_bar=False)
    datamodule = MVTecAD(mvtec_root, "bolt", num_workers=0)
    with pytest.raises(NotFittedError, match="ImageStatistic"):
        getattr(engine, stage)(ImageStatistic(image_size=64), datamodule=datamodule)


def test_a_fit_restores_the_mode_of_each_part(mvtec_root: Path, tmp_path: Path) -> None:
    model = ImageStatistic(image_size=64, visualizer=False)
    model.model.frozen = nn.Sequential(nn.Dropout()).eval()
    model.model.other = nn.Dropout()
    modes = []

    def record(_: ImageStatistic) -> None:
        modes.append({name: module.training for name, module in model.model.named_modules()})

    fit_once = ImageStatistic.fit
    model.fit = lambda: (record(model), fit_once(model))[1]
    model.on_train_end = lambda: (ImageStatistic.on_train_end(model), record(model))
    fit(model, mvtec_root, tmp_path)
    assert modes[0] == {"": False, "frozen": False, "frozen.0": False, "other": False}
    assert modes[1] == {"": True, "frozen": False, "frozen.0": False, "other": True}


def test_arguments_that_are_wrong() -> None:
    with pytest.raises(ValueError, match=r"must be one of \('border', 'mean', 'std'\), got 'size'"):
        ImageStatistic("size")
    with pytest.raises(ValueError, match=r"`image_size` must be at least 16, got \(64, 8\)"):
        ImageStatistic(image_size=(64, 8))
