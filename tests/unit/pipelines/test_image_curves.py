# Copyright (C) 2026 anomalib-fewshot contributors
# SPDX-License-Identifier: Apache-2.0

"""ROC and precision-recall curves, and intervals over test images."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from report_sweep import METHODS, report, sweep
from sklearn.metrics import precision_recall_curve, roc_auc_score, roc_curve

from anomalib_fewshot.pipelines.plan.job import Job
from anomalib_fewshot.pipelines.report.image_curves import (
    GRID,
    image_statistics,
    interval_over_images,
    precision_curve,
    recall_curve,
)
from anomalib_fewshot.pipelines.results.image_scores import ImageScore
from anomalib_fewshot.pipelines.results.outcome import Outcome
from anomalib_fewshot.pipelines.results.store import Store


def draw(number: int, seed: int, *, shift: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    """Return labels and scores with ties."""
    generator = np.random.default_rng(seed)
    labels = np.arange(number) % 2
    return labels, generator.normal(shift * labels, 1).round(1)


def to_images(labels: np.ndarray, scores: np.ndarray) -> list[ImageScore]:
    pairs = zip(labels.tolist(), scores.tolist(), strict=True)
    return [ImageScore("nut", f"{number}.png", label, score) for number, (label, score) in enumerate(pairs)]


@pytest.mark.parametrize("seed", range(5))
def test_curves_equal_scikit_learn(seed: int) -> None:
    labels, scores = draw(60, seed)
    rates, recalls, _ = roc_curve(labels, scores, drop_intermediate=False)
    found = recall_curve(labels, scores)
    for rate, recall in zip(rates, recalls, strict=True):
        at_rate = recalls[rates == rate].max()
        if np.isclose(GRID, rate).any() and recall == at_rate:
            assert found[np.isclose(GRID, rate)] == pytest.approx(at_rate)
    assert np.trapezoid(found, GRID) == pytest.approx(roc_auc_score(labels, scores), abs=0.005)
    precisions, recalls, _ = precision_recall_curve(labels, scores)
    expected = [precisions[:-1][recalls[:-1] >= recall - 1e-9].max() for recall in GRID]
    assert precision_curve(labels, scores) == pytest.approx(expected)


def test_curves_of_perfect_and_constant_scores() -> None:
    labels = np.array([0, 0, 1, 1])
    assert recall_curve(labels, labels * 1.0) == pytest.approx(np.ones(101))
    assert recall_curve(labels, np.zeros(4)) == pytest.approx(GRID, abs=1e-6)  # the diagonal: no score separates
    assert precision_curve(labels, labels * 1.0) == pytest.approx(np.ones(101))
    assert precision_curve(labels, np.zeros(4)) == pytest.approx(np.full(101, 0.5))
    shuffled = np.array([2, 0, 3, 1])
    labels, scores = np.array([0, 1, 1, 0]), np.array([0.3, 0.3, 0.1, 0.2])
    assert (recall_curve(labels, scores) == recall_curve(labels[shuffled], scores[shuffled])).all()


def test_interval_over_images() -> None:
    """It is as wide as the standard error of the AUROC, shrinks with more images, and holds the AUROC."""
    widths = []
    for repeats in (1, 4):
        labels, scores = (np.tile(values, repeats) for values in draw(40, 0))
        low, high = interval_over_images({"nut": [to_images(labels, scores)]})
        assert low < roc_auc_score(labels, scores) < high
        widths.append(high - low)
    assert widths[0] / widths[1] == pytest.approx(2, rel=0.1)
    labels, scores = draw(160, 0)
    low, high = interval_over_images({"nut": [to_images(labels, scores)]})
    others = [roc_auc_score(*draw(160, seed)) for seed in range(400)]
    assert high - low == pytest.approx(2 * 1.96 * np.std(others), rel=0.25)
    one = interval_over_images({"nut": [to_images(labels, scores)]})
    assert interval_over_images({"nut": [to_images(labels, scores)] * 3}) == pytest.approx(one)  # the same test images
    low, high = interval_over_images({"nut": [to_images(labels, labels * 1.0)]})
    assert (low, high) == (1, 1)
    other = to_images(*draw(40, 1))
    assert np.isnan(interval_over_images({"nut": [to_images(labels, scores), other]})).all()


def store_scores(folder: Path, rows: pd.DataFrame) -> None:
    """Write a run file for each row. CoftAD separates better than Padim."""
    store = Store(folder)
    for number, row in enumerate(rows.itertuples()):
        labels, scores = draw(30, number, shift=3 if row.method == "CoftAD" else 1)
        pairs = zip(labels.tolist(), scores.tolist(), strict=True)
        images = {f"{row.category}/{i}.png": [bool(label), score] for i, (label, score) in enumerate(pairs)}
        job = Job(row.method, row.dataset, row.category, row.k_shot, row.seed, {}, {}, {})
        store.save(job, Outcome([], scores=images))
        (folder / "runs" / f"{job.key}.json").rename(folder / "runs" / f"{row.key}.json")


def test_report_shows_curves_and_intervals(tmp_path: Path) -> None:
    """A method without the scores of a category is left out."""
    methods = {name: METHODS[name] for name in ("CoftAD", "Padim", "Patchcore")}
    rows = sweep(methods=methods, categories=("nut", "bolt"), masked=(), shots=(1, 4), seeds=2)
    stored = rows[(rows["method"] != "Patchcore") | (rows["category"] == "nut")]
    store_scores(tmp_path, stored)
    found = image_statistics(Store(tmp_path), rows)
    assert set(found.intervals["method"]) == {"CoftAD", "Padim"}
    assert found.k_shot == 4
    curves = {curve.method: curve for curve in found.curves}
    assert curves["CoftAD"].recall.mean() > curves["Padim"].recall.mean()
    assert curves["CoftAD"].recall[-1] == curves["Padim"].recall[-1] == 1
    html, markdown = report(tmp_path, rows, "Padim")
    assert 'aria-label="recall over false-alarm rate for CoftAD, Padim."' in html
    assert 'aria-label="precision over recall for CoftAD, Padim."' in html
    assert "At k = 4: ROC curve" in html
    table = markdown.split("image AUROC: 95 % interval over test images")[1].split("###")[0]
    assert "| Patchcore | \N{EN DASH} | \N{EN DASH} |" in table
    assert table.count("[0.") == 4
    names = {path.name for path in (tmp_path / "figures").iterdir()}
    assert {"RealMini-roc.png", "RealMini-precision_recall.svg"} <= names
    scores = pd.read_csv(tmp_path / "scores.csv")
    assert len(scores) == 30 * len(stored)
