# Copyright (C) 2026 anomalib-fewshot contributors
# SPDX-License-Identifier: Apache-2.0

"""Statistics of the scores of single test images: mean ROC and precision-recall curves, intervals over test images."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from sklearn.metrics import precision_recall_curve, roc_curve

from anomalib_fewshot.pipelines.results.image_scores import ImageScore
from anomalib_fewshot.pipelines.results.store import Store

GRID = np.linspace(0, 1, 101)  # false-alarm rates of ROC curves and recalls of precision-recall curves
Runs = Mapping[str, Sequence[Sequence[ImageScore]]]  # by category: the images of each run


@dataclass(frozen=True)
class ImageCurves:
    """Mean curves of a method over ``GRID``: recall by false-alarm rate, precision by recall, each of shape (101,)."""

    method: str
    recall: np.ndarray
    precision: np.ndarray


@dataclass(frozen=True)
class ImageStatistics:
    """Statistics of the test images of a dataset.

    Args:
        intervals (pd.DataFrame): Interval of the image AUROC over test images, with the columns ``method``,
            ``k_shot``, ``low`` and ``high``.
        k_shot (float): The largest k, for which there are curves.
        curves (list[ImageCurves]): Curves of each method at this k.
    """

    intervals: pd.DataFrame
    k_shot: float
    curves: list[ImageCurves]


def image_statistics(store: Store, rows: pd.DataFrame) -> ImageStatistics:
    """Return the statistics of test images from the stored runs. They are empty for runs without files.

    A method without scores in some category has no interval and no curves at this k, because means over different
    categories are not comparable.

    Args:
        store (Store): Results folder with the runs.
        rows (pd.DataFrame): The runs of one dataset, with the same unlabeled images and a numeric ``k_shot``.
    """
    done = rows[rows["status"] == "ok"]
    records = []
    curves = []
    largest = float(done["k_shot"].max()) if len(done) else np.nan
    for k, of_k in done.groupby("k_shot"):
        categories = set(of_k["category"])
        for method, runs in of_k.groupby("method"):
            by_category = _read(store, runs)
            if set(by_category) != categories:
                continue
            low, high = interval_over_images(by_category)
            records.append({"method": method, "k_shot": k, "low": low, "high": high})
            if k == largest:
                curves.append(_mean_curves(str(method), by_category))
    return ImageStatistics(pd.DataFrame(records, columns=["method", "k_shot", "low", "high"]), largest, curves)


def _read(store: Store, runs: pd.DataFrame) -> dict[str, list[list[ImageScore]]]:
    """Return the images of each run by category, without categories that lack normal or anomalous images."""
    by_category: dict[str, list[list[ImageScore]]] = {}
    for key, rows in runs.groupby("key"):
        images = store.image_scores(str(key), list(rows["category"]))
        for category in rows["category"]:
            own = [image for image in images if image.category == category]
            if len({image.label for image in own}) > 1:
                by_category.setdefault(category, []).append(own)
    return by_category


def _mean_curves(method: str, by_category: Runs) -> ImageCurves:
    """Return the curves of a method: the mean over the runs of each category, then over categories."""
    recalls, precisions = [], []
    for runs in by_category.values():
        pairs = [_to_arrays(images) for images in runs]
        recalls.append(np.mean([recall_curve(labels, scores) for labels, scores in pairs], axis=0))
        precisions.append(np.mean([precision_curve(labels, scores) for labels, scores in pairs], axis=0))
    return ImageCurves(method, np.mean(recalls, axis=0), np.mean(precisions, axis=0))


def _to_arrays(images: Sequence[ImageScore]) -> tuple[np.ndarray, np.ndarray]:
    """Return labels and scores, each of shape ``(N,)``."""
    return np.array([image.label for image in images]), np.array([image.score for image in images])


def recall_curve(labels: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """Return the ROC curve: the recall at each false-alarm rate of ``GRID``, linear between thresholds.

    Args:
        labels (np.ndarray): 1 for anomalous and 0 for normal images, both present, shape ``(N,)``.
        scores (np.ndarray): Scores of the images, shape ``(N,)``. Higher is more anomalous.

    Returns:
        np.ndarray: Recalls, shape ``(101,)``.

    Example:
        >>> recall_curve(np.array([0, 1, 1]), np.array([0.2, 0.1, 0.3]))[[0, 50, 100]].round(2)
        array([0.5, 0.5, 1. ])
    """
    rates, recalls, _ = roc_curve(labels, scores)
    return np.interp(GRID + 1e-9, rates, recalls)  # at the rate of several thresholds, the highest recall


def precision_curve(labels: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """Return the precision-recall curve: the highest precision with at least each recall of ``GRID``.

    Arguments and result are as for :func:`recall_curve`.

    Example:
        >>> precision_curve(np.array([0, 1, 1]), np.array([0.2, 0.1, 0.3]))[[0, 50, 100]].round(2)
        array([1.  , 1.  , 0.67])
    """
    precisions, recalls, _ = precision_recall_curve(labels, scores)  # from the lowest threshold up
    highest = np.maximum.accumulate(precisions[:-1])  # with at least the recall of each threshold
    last = np.searchsorted(-recalls[:-1], 1e-9 - GRID, side="right") - 1
    return highest[last]


def interval_over_images(
    by_category: Runs,
    *,
    confidence: float = 0.95,
    n_resamples: int = 2000,
    seed: int = 0,
) -> tuple[float, float]:
    """Return a percentile bootstrap interval of the macro mean of the image AUROC over test images.

    Each resample draws normal and anomalous test images of each category with replacement. The runs of a category share
    the drawn images, because they have the same test images. The support sets are fixed.

    Args:
        by_category (Runs): By category, the test images of each run.
        confidence (float): Confidence level.
        n_resamples (int): Number of resamples.
        seed (int): Seed of the resampling.

    Returns:
        tuple[float, float]: Lower and upper limit. NaN if the runs of a category have different test images.
    """
    generator = np.random.default_rng(seed)
    means = np.zeros(n_resamples)
    for category in sorted(by_category):
        runs = by_category[category]
        if len({frozenset(image.path for image in images) for images in runs}) > 1:
            return np.nan, np.nan
        wins = np.mean([_wins(images) for images in runs], axis=0)  # (anomalous, normal)
        anomalous, normal = wins.shape
        anomalous_counts = generator.multinomial(anomalous, np.full(anomalous, 1 / anomalous), size=n_resamples)
        normal_counts = generator.multinomial(normal, np.full(normal, 1 / normal), size=n_resamples)
        means += ((anomalous_counts @ wins) * normal_counts).sum(axis=1) / (anomalous * normal)
    low, high = np.quantile(means / len(by_category), [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high)


def _wins(images: Sequence[ImageScore]) -> np.ndarray:
    """Return which anomalous images score above which normal images, 0.5 for ties. The mean is the AUROC.

    The shape is ``(anomalous, normal)``, both sorted by path.
    """
    images = sorted(images, key=lambda image: image.path)
    anomalous = np.array([image.score for image in images if image.label == 1])[:, np.newaxis]
    normal = np.array([image.score for image in images if image.label == 0])[np.newaxis, :]
    return (anomalous > normal) + 0.5 * (anomalous == normal)
