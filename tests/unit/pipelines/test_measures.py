# Copyright (C) 2026 anomalib-fewshot contributors
# SPDX-License-Identifier: Apache-2.0

"""Figures of raw scores, against scikit-learn, and what a run costs."""

import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from sklearn.metrics import average_precision_score, f1_score, roc_auc_score
from torch import nn

from anomalib_fewshot import PlainStatistic
from anomalib_fewshot.pipelines.examples import example_pictures
from anomalib_fewshot.pipelines.measures import PeakMemory, Predictions, accuracy, latency, weights_hash


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
    figures = accuracy(predictions, threshold=1000.5)
    labels, scores = predictions.labels.numpy(), predictions.scores.numpy()
    assert figures["image_AUROC"] == pytest.approx(roc_auc_score(labels, scores))
    assert figures["image_AUPR"] == pytest.approx(average_precision_score(labels, scores), abs=0.02)  # trapezoids
    assert figures["image_F1Score"] == pytest.approx(f1_score(labels, scores > 1000.5))
    pixels = roc_auc_score(predictions.masks.flatten(), predictions.maps.flatten())
    assert figures["pixel_AUROC"] == pytest.approx(pixels)
    assert 0 < figures["pixel_AUPRO"] < 1


@pytest.mark.parametrize(("scale", "shift"), [(1e-3, 0.0), (1.0, -1000.0), (50.0, 1e6)])
def test_figures_do_not_depend_on_the_scale(predictions: Predictions, scale: float, shift: float) -> None:
    scores, maps = predictions.scores.double(), predictions.maps.double()
    moved = replace(predictions, scores=scores * scale + shift, maps=maps * scale + shift)
    expected = accuracy(replace(predictions, scores=scores, maps=maps), 1000.5)
    assert accuracy(moved, 1000.5 * scale + shift) == pytest.approx(expected)


def test_equal_scores_know_nothing(predictions: Predictions) -> None:
    same = replace(predictions, scores=torch.full((24,), 3.0), maps=torch.zeros(24, 16, 16))
    figures = accuracy(same, float("nan"))
    assert (figures["image_AUROC"], figures["pixel_AUROC"]) == (0.5, 0.5)
    assert np.isnan(figures["image_F1Score"])  # there is no threshold


@pytest.mark.parametrize("missing", [{"maps": None}, {"masks": None}])
def test_without_maps_or_masks_there_is_no_pixel_level(predictions: Predictions, missing: dict[str, None]) -> None:
    figures = accuracy(replace(predictions, **missing), 1000.5)
    assert np.isnan([figures["pixel_AUROC"], figures["pixel_AUPRO"]]).all()
    assert 0.5 < figures["image_AUROC"] < 1


def test_maps_that_are_not_numbers(predictions: Predictions) -> None:
    predictions.maps[0, 0, 0] = float("inf")
    with pytest.raises(ValueError, match="The anomaly maps of the test images hold values that are not finite"):
        accuracy(predictions, 1000.5)


def test_scores_that_are_not_numbers(predictions: Predictions) -> None:
    predictions.scores[:2] = torch.tensor([float("nan"), float("inf")])
    with pytest.raises(ValueError, match="The scores of 2 of 24 test images are not finite"):
        accuracy(predictions, 0.0)


def test_test_images_of_one_kind(predictions: Predictions) -> None:
    with pytest.raises(ValueError, match="normal and anomalous images, got 24 normal and 0 anomalous"):
        accuracy(replace(predictions, labels=torch.zeros(24, dtype=torch.bool)), 0.0)


def test_examples_are_the_best_and_the_worst(predictions: Predictions) -> None:
    class Dataset:
        asked: list[int] = []  # noqa: RUF012

        def __getitem__(self, index: int) -> "Dataset":
            self.asked.append(index)
            self.image = torch.rand(3, 16, 16)
            return self

    pictures = example_pictures(Dataset(), predictions)  # type: ignore[arg-type]
    assert list(pictures) == ["hit", "miss", "false_alarm"]
    scores, labels = predictions.scores, predictions.labels
    worst = [scores[labels].max(), scores[labels].min(), scores[~labels].max()]
    assert [scores[index] for index in Dataset.asked] == worst
    assert all(picture.startswith(b"\xff\xd8") for picture in pictures.values())
    assert example_pictures(Dataset(), replace(predictions, maps=None)) == {}  # type: ignore[arg-type]


def test_weights_hash_follows_the_weights() -> None:
    first, same, other = nn.Linear(3, 2), nn.Linear(3, 2), nn.Linear(3, 2)
    same.load_state_dict(first.state_dict())
    assert weights_hash(first) == weights_hash(same) != weights_hash(other)
    assert len(weights_hash(first.half())) == 8


def test_latency_is_measured_and_can_be_left_out() -> None:
    model = PlainStatistic("mean", image_size=32)
    figures = latency(model, torch.rand(3, 32, 32), runs=5)
    assert 0 < figures["latency_p50_ms"] <= figures["latency_p95_ms"]
    assert np.isnan(list(latency(model, torch.rand(3, 32, 32), runs=0).values())).all()


@pytest.mark.skipif(sys.platform != "linux", reason="other systems do not let a process set its peak back")
def test_peak_memory_sees_what_is_freed_again() -> None:
    mib = 200
    with PeakMemory() as memory:
        torch.ones(mib * 2**18).sum()
    if not np.isnan(memory.host_mib):  # a container may forbid it
        assert mib * 0.95 < memory.host_mib < mib * 1.5
    with PeakMemory() as later:
        torch.ones(2**18).sum()
    assert not later.host_mib > mib / 2
