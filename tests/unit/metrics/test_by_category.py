# Copyright (C) 2026 anomalib-fewshot contributors
# SPDX-License-Identifier: Apache-2.0

"""Figures of each category and their mean, never of pooled scores."""

import pytest
import torch
from anomalib.data import ImageBatch
from anomalib.metrics import AUROC, Evaluator

from anomalib_fewshot.metrics import by_category

CATEGORIES = {"a/0": "a", "a/1": "a", "b/0": "b", "b/1": "b"}


def batch(category: str, scores: list[float], masks: torch.Tensor | None = None) -> ImageBatch:
    return ImageBatch(
        image=torch.zeros(2, 3, 4, 4),
        image_path=[f"{category}/0", f"{category}/1"],
        gt_label=torch.tensor([False, True]),
        pred_score=torch.tensor(scores),
        anomaly_map=torch.arange(32.0).view(2, 1, 4, 4) / 32,
        gt_mask=masks,
    )


def figures(*batches: ImageBatch, strict: bool = True) -> dict[str, float | None]:
    fields = ["pred_score", "gt_label"] if strict else ["anomaly_map", "gt_mask"]
    metrics = by_category([AUROC(fields=fields, prefix="x_", strict=strict)], CATEGORIES)
    for metric in Evaluator(test_metrics=list(metrics)).test_metrics:
        for part in batches:
            metric.update(part)
    return {metric.name: None if (value := metric.compute()) is None else float(value) for metric in metrics}


def test_scores_of_categories_are_not_pooled() -> None:
    first, second = batch("a", [0.1, 0.2]), batch("b", [0.8, 0.9])
    assert figures(first, second) == {"a/x_AUROC": 1.0, "b/x_AUROC": 1.0, "x_AUROC": 1.0}
    pooled = AUROC(fields=["pred_score", "gt_label"])
    pooled.update(first)
    pooled.update(second)
    assert pooled.compute() == pytest.approx(0.75)


def test_mean_over_categories() -> None:
    values = figures(batch("a", [0.1, 0.2]), batch("b", [0.9, 0.8]))
    assert values == {"a/x_AUROC": 1.0, "b/x_AUROC": 0.0, "x_AUROC": 0.5}


def test_mean_excludes_categories_without_masks() -> None:
    masks = torch.zeros(2, 4, 4, dtype=torch.bool)
    masks[1] = True
    values = figures(batch("a", [0.1, 0.2], masks), batch("b", [0.9, 0.8]), strict=False)
    assert values == {"a/x_AUROC": 1.0, "b/x_AUROC": None, "x_AUROC": 1.0}
    assert set(figures(batch("a", [0.1, 0.2]), strict=False).values()) == {None}


def test_reset() -> None:
    (mean, first, _) = by_category([AUROC(fields=["pred_score", "gt_label"])], CATEGORIES)
    first.update(batch("a", [0.9, 0.8]))
    first.reset()
    first.update(batch("a", [0.1, 0.2]))
    assert first.compute().item() == pytest.approx(1.0)
    assert mean.name == "AUROC"


def test_compute_on_cpu() -> None:
    """Scores of all pixels of all categories would else stay on the GPU."""
    metrics = Evaluator(test_metrics=list(by_category([AUROC(fields=["pred_score", "gt_label"])], CATEGORIES)))
    metrics.metrics_to_cpu(metrics.test_metrics)
    part = metrics.test_metrics[1]
    part.update(batch("a", [0.1, 0.2]))
    assert part.metric.compute_on_cpu
