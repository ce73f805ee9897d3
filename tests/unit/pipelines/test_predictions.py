# Copyright (C) 2026 anomalib-fewshot contributors
# SPDX-License-Identifier: Apache-2.0

"""Figures of raw scores against scikit-learn, and the examples of a run."""

import io
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.metrics import average_precision_score, f1_score, precision_recall_curve, roc_auc_score

from anomalib_fewshot import FewShot, ImageStatistic, MVTecFolder
from anomalib_fewshot.pipelines.run.examples import make_common_examples, make_examples
from anomalib_fewshot.pipelines.run.predictions import Predictions, Recorder, compute_metrics
from anomalib_fewshot.pipelines.run.resources import TimedEngine


@pytest.fixture
def predictions() -> Predictions:
    """Return 24 images with scores far above 1, as distances are."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(24) % 2 == 1
    masks = torch.zeros(24, 16, 16, dtype=torch.bool)
    masks[labels, 4:9, 4:9] = True
    maps = 500 + 20 * torch.randn(24, 16, 16, generator=generator) + 30 * masks
    scores = 1000 + torch.randn(24, generator=generator) + labels
    return Predictions([str(number) for number in range(24)], scores, labels, maps, masks)


def test_figures_are_those_of_scikit_learn(predictions: Predictions) -> None:
    figures = compute_metrics(predictions, threshold=1000.5)
    labels, scores = predictions.labels.numpy(), predictions.scores.numpy()
    assert figures["image_AUROC"] == pytest.approx(roc_auc_score(labels, scores))
    assert figures["image_AUPR"] == pytest.approx(average_precision_score(labels, scores), abs=0.02)  # trapezoids
    assert figures["image_F1Score"] == pytest.approx(f1_score(labels, scores > 1000.5))
    pixels = roc_auc_score(predictions.masks.flatten(), predictions.maps.flatten())
    assert figures["pixel_AUROC"] == pytest.approx(pixels)
    assert 0 < figures["pixel_AUPRO"] < 1
    pixel_labels, pixel_scores = predictions.masks.flatten().numpy(), predictions.maps.flatten().numpy()
    assert figures["pixel_AP"] == pytest.approx(average_precision_score(pixel_labels, pixel_scores), abs=1e-6)
    assert figures["image_F1Max"] == pytest.approx(max(f1_score(labels, scores >= score) for score in scores))
    precision, recall, _ = precision_recall_curve(pixel_labels, pixel_scores)
    assert figures["pixel_F1Max"] == pytest.approx((2 * precision * recall / (precision + recall)).max(), abs=1e-6)
    assert np.isnan(figures["pixel_AUPIMO"])  # 3,072 normal pixels do not resolve a false positive rate of 1e-5


def test_aupimo_of_maps_with_enough_pixels() -> None:
    labels = torch.tensor([False] * 4 + [True] * 2)
    masks = torch.zeros(6, 256, 256, dtype=torch.bool)
    masks[labels, 100:120, 100:120] = True
    maps = torch.rand(6, 256, 256, generator=torch.Generator().manual_seed(0)) + 2 * masks
    found = Predictions(list("abcdef"), labels.float(), labels, maps, masks)
    assert 0.9 < compute_metrics(found, float("nan"))["pixel_AUPIMO"] <= 1  # the bounds are between two pixels


@pytest.mark.parametrize(("scale", "shift"), [(1e-3, 0.0), (1.0, -1000.0), (50.0, 1e6)])
def test_figures_do_not_depend_on_the_scale(predictions: Predictions, scale: float, shift: float) -> None:
    scores, maps = predictions.scores.double(), predictions.maps.double()
    moved = replace(predictions, scores=scores * scale + shift, maps=maps * scale + shift)
    expected = compute_metrics(replace(predictions, scores=scores, maps=maps), 1000.5)
    assert compute_metrics(moved, 1000.5 * scale + shift) == pytest.approx(expected, nan_ok=True)


def test_equal_scores_know_nothing(predictions: Predictions) -> None:
    same = replace(predictions, scores=torch.full((24,), 3.0), maps=torch.zeros(24, 16, 16))
    figures = compute_metrics(same, float("nan"))
    assert (figures["image_AUROC"], figures["pixel_AUROC"]) == (0.5, 0.5)
    assert np.isnan(figures["image_F1Score"])  # there is no threshold


@pytest.mark.parametrize("missing", [{"maps": None}, {"masks": None}])
def test_without_maps_or_masks_there_is_no_pixel_level(predictions: Predictions, missing: dict[str, None]) -> None:
    figures = compute_metrics(replace(predictions, **missing), 1000.5)
    assert np.isnan([figures["pixel_AUROC"], figures["pixel_AUPRO"]]).all()
    assert 0.5 < figures["image_AUROC"] < 1


def test_maps_that_are_not_numbers(predictions: Predictions) -> None:
    predictions.maps[0, 0, 0] = float("inf")
    with pytest.raises(ValueError, match="The anomaly maps of the test images contain values that are not finite"):
        compute_metrics(predictions, 1000.5)


def test_scores_that_are_not_numbers(predictions: Predictions) -> None:
    predictions.scores[:2] = torch.tensor([float("nan"), float("inf")])
    with pytest.raises(ValueError, match="The scores of 2 of 24 test images are not finite"):
        compute_metrics(predictions, 0.0)


def test_test_images_of_one_kind(predictions: Predictions) -> None:
    with pytest.raises(ValueError, match="normal and anomalous images, got 24 normal and 0 anomalous"):
        compute_metrics(replace(predictions, labels=torch.zeros(24, dtype=torch.bool)), 0.0)


def test_examples_are_the_best_and_the_worst(predictions: Predictions) -> None:
    class Dataset:
        asked: list[int] = []  # noqa: RUF012

        def __getitem__(self, index: int) -> "Dataset":
            self.asked.append(index)
            self.image = torch.rand(3, 16, 16)
            return self

    pictures = make_examples(Dataset(), predictions)  # type: ignore[arg-type]
    assert list(pictures) == ["hit", "miss", "false_alarm"]
    scores, labels = predictions.scores, predictions.labels
    worst = [scores[labels].max(), scores[labels].min(), scores[~labels].max()]
    assert [scores[index] for index in Dataset.asked] == worst
    assert all(picture.startswith(b"\xff\xd8") for picture in pictures.values())
    assert make_examples(Dataset(), replace(predictions, maps=None)) == {}  # type: ignore[arg-type]


def test_recorded_scores_are_those_of_a_model_that_does_not_normalize(mvtec_root: Path, tmp_path: Path) -> None:
    """Callbacks of the engine are called before the post-processor's, or the scores were clipped."""
    datamodule = FewShot(MVTecFolder(mvtec_root, "bolt", num_workers=0), k_shot=2)
    model = ImageStatistic("std", image_size=64)
    before, raw = Recorder(), Recorder()
    engine = TimedEngine(tmp_path, "cpu", [before])
    engine.fit(model, datamodule=datamodule)
    engine.test(model, datamodule=datamodule, verbose=False)
    model.post_processor.enable_normalization = False
    TimedEngine(tmp_path, "cpu", [raw]).test(model, datamodule=datamodule, verbose=False)
    assert 0 < before.predictions().scores.max() < 0.1  # the highest normalized score would be near 1
    torch.testing.assert_close(before.predictions().scores, raw.predictions().scores, rtol=0, atol=0)
    assert len(before.predictions(before.predictions().paths[:8]).paths) == 8


def test_common_examples_do_not_depend_on_scores_and_units(predictions: Predictions) -> None:
    class Dataset:
        def __getitem__(self, index: int) -> SimpleNamespace:
            return SimpleNamespace(image=torch.full((3, 40, 20), index / 24))

    assert predictions.maps is not None
    files = make_common_examples(Dataset(), predictions)  # type: ignore[arg-type]
    kinds = [name.split("-")[1] for name in files]
    assert kinds == ["1", "1", "2", "2", "normal", "normal"]
    assert Image.open(io.BytesIO(files[next(iter(files))])).size == (96, 192)
    other = replace(predictions, scores=-predictions.scores, maps=3 * predictions.maps - 1)
    assert make_common_examples(Dataset(), other) == files  # type: ignore[arg-type]
    other = replace(predictions, maps=torch.zeros_like(predictions.maps))
    assert list(make_common_examples(Dataset(), other)) == list(files)  # type: ignore[arg-type]
    assert make_common_examples(Dataset(), replace(predictions, maps=None)) == {}  # type: ignore[arg-type]
