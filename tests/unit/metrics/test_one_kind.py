# Copyright (C) 2026 anomalib-fewshot contributors
# SPDX-License-Identifier: Apache-2.0

"""Metrics that need normal and anomalous images are left out where there is one kind alone."""

from types import SimpleNamespace

import pytest
import torch
from anomalib.data import ImageBatch
from anomalib.metrics import AUPR, AUROC, AnomalibMetric, F1Max, F1Score, MinMax

from anomalib_fewshot import CategoryEvaluator
from anomalib_fewshot.metrics import by_category, is_defined, is_one_kind

IMAGES, PIXELS = ["pred_score", "gt_label"], ["anomaly_map", "gt_mask"]


@pytest.mark.parametrize(("labels", "expected"), [([], False), ([0], True), ([1, 1], True), ([1, 0, 1], False)])
def test_kinds(labels: list[int], *, expected: bool) -> None:
    assert is_one_kind(labels) is expected


@pytest.mark.parametrize("metric", [AUROC, AUPR, F1Max, F1Score])
def test_images_need_both_kinds_and_pixels_an_anomalous_image(metric: type[AnomalibMetric]) -> None:
    for fields, defined in ((IMAGES, [False, False, True]), (PIXELS, [False, True, True])):
        assert [is_defined(metric(fields=fields), labels) for labels in ([0, 0], [1, 1], [0, 1])] == defined
        assert is_defined(metric(fields=fields), [])  # the labels are not known


def test_other_metrics_are_always_defined() -> None:
    assert is_defined(MinMax(fields=["pred_score"]), [0])


def test_why_they_are_left_out() -> None:
    """anomalib's AUROC of anomalous images alone is 0, of whatever scores."""
    auroc = AUROC(fields=IMAGES)
    auroc.update(ImageBatch(image=torch.zeros(2, 3, 1, 1), pred_score=torch.rand(2), gt_label=torch.ones(2).bool()))
    assert auroc.compute() == 0


def data(labels: dict[str, int]) -> SimpleNamespace:
    samples = SimpleNamespace(image_path=list(labels), label_index=list(labels.values()))
    return SimpleNamespace(samples=samples)


def names(evaluator: CategoryEvaluator) -> list[str]:
    return [metric.name for metric in evaluator.test_metrics]


@pytest.mark.parametrize(
    ("labels", "left", "text"),
    [
        ({"0": 0, "1": 1}, ["image_AUROC", "image_F1Score", "pixel_AUROC", "pixel_F1Score"], ""),
        (
            {"0": 1, "1": 1},
            ["pixel_AUROC", "pixel_F1Score"],
            "Not measured: image_AUROC, image_F1Score. All 2 test images",
        ),
        (
            {"0": 0},
            [],
            "Not measured: image_AUROC, image_F1Score, pixel_AUROC, pixel_F1Score. All 1 test images are normal.",
        ),
    ],
)
def test_evaluator(labels: dict[str, int], left: list[str], text: str, caplog: pytest.LogCaptureFixture) -> None:
    evaluator = CategoryEvaluator()
    trainer = SimpleNamespace(datamodule=SimpleNamespace(test_data=data(labels)), num_devices=1)
    for stage in ("fit", "test"):
        evaluator.setup(trainer, None, stage)  # type: ignore[arg-type]
        assert names(evaluator) == left
        evaluator.teardown(trainer, None, stage)  # type: ignore[arg-type]
        assert names(evaluator) == ["image_AUROC", "image_F1Score", "pixel_AUROC", "pixel_F1Score"]
    assert text in caplog.text
    assert len(caplog.messages) == bool(text)


def test_category_of_one_kind_is_not_in_the_mean(caplog: pytest.LogCaptureFixture) -> None:
    labels = {"a/0": 0, "a/1": 1, "b/0": 1}
    categories = {path: path[0] for path in labels}
    metrics = [AUROC(fields=IMAGES, prefix="x_")]
    evaluator = CategoryEvaluator(test_metrics=metrics)
    test_data = SimpleNamespace(datasets=[data({"a/0": 0, "a/1": 1}), data({"b/0": 1})])
    datamodule = SimpleNamespace(category_by_path=categories, test_data=test_data)
    evaluator.setup(SimpleNamespace(datamodule=datamodule, num_devices=1), None, "test")  # type: ignore[arg-type]
    assert names(evaluator) == ["x_AUROC", "a/x_AUROC"]
    assert caplog.messages == ["Not measured: x_AUROC. All 1 test images of b are anomalous."]
    batch = ImageBatch(
        image=torch.zeros(2, 3, 1, 1),
        image_path=["a/0", "a/1"],
        pred_score=torch.tensor([0.1, 0.9]),
        gt_label=torch.tensor([False, True]),
    )
    for metric in evaluator.test_metrics:
        metric.update(batch)
    assert [metric.compute() for metric in evaluator.test_metrics] == [1, 1]
    assert len(by_category(metrics, categories, {"a": [0], "b": [1]})) == 0
