# Copyright (C) 2026 anomalib-fewshot contributors
# SPDX-License-Identifier: Apache-2.0

"""Drift detection: two tests with known false-alarm rates compare new pictures with the good ones."""

from collections.abc import Sequence
from dataclasses import dataclass

from scipy.stats import betabinom, kendalltau

# Significance levels. With four good pictures, 0.05 is within reach from 12 new pictures on, and 0.01 only from 32.
LEVEL_LIMIT = 0.05
TREND_LIMIT = 0.01
MIN_IMAGES = 8  # new pictures that both tests require


@dataclass(frozen=True)
class Drift:
    """Result of the level test and the trend test.

    Without drift, the level test raises an alarm in at most 5 % of cases, and the trend test in about 1 %. In 2000
    simulations with normally distributed scores, at least one test raised an alarm in 0.5 % (k = 4, 8 new pictures) to
    5 % (k = 8, 50 new pictures) of cases.

    Args:
        num_above (int): Number of new pictures above the ``rank`` lowest scores of held-out good pictures.
        num_new (int): Number of new pictures.
        num_good (int): Number k of good pictures.
        rank (int): Number of held-out good pictures that these new pictures exceed.
        trend (float): Kendall's tau between score and order of the new pictures. NaN if all scores are equal.
        trend_p_value (float): p-value of Kendall's tau. NaN if all scores are equal.
    """

    num_above: int
    num_new: int
    num_good: int
    rank: int
    trend: float
    trend_p_value: float

    @property
    def p_value(self) -> float:
        """p-value of the level test."""
        return level_p_value(self.num_above, self.num_new, self.num_good, self.rank)

    @property
    def has_level_shift(self) -> bool:
        """Whether the level test finds more high scores than chance explains."""
        return self.p_value <= LEVEL_LIMIT

    @property
    def has_trend(self) -> bool:
        """Whether the trend test finds rising or falling scores."""
        return self.trend_p_value <= TREND_LIMIT


def level_p_value(num_above: int, num_new: int, num_good: int, rank: int) -> float:
    """Return the probability that ``num_above`` or more new pictures exceed ``rank`` good pictures by chance.

    For k exchangeable good pictures, the share of new pictures above the j-th lowest score is Beta(k - j + 1, j). A
    binomial test would ignore that the score of few pictures is uncertain.

    Args:
        num_above (int): Number of new pictures above the j-th lowest score.
        num_new (int): Number of new pictures.
        num_good (int): Number k of good pictures.
        rank (int): Rank j, from 1 to k.

    Example:
        >>> round(level_p_value(50, 50, 4, 2), 4), round(level_p_value(25, 50, 4, 2), 2)
        (0.0042, 0.69)
    """
    return float(betabinom.sf(num_above - 1, num_new, num_good - rank + 1, rank))


def min_new_images(num_good: int, rank: int) -> int:
    """Return the smallest number of new pictures for which the level test can detect drift.

    Example:
        >>> min_new_images(4, 2), min_new_images(2, 1)
        (12, 39)
    """
    number = MIN_IMAGES
    while level_p_value(number, number, num_good, rank) > LEVEL_LIMIT:
        number += 1
    return number


def measure_drift(scores: Sequence[float], calibration_scores: Sequence[float]) -> Drift | None:
    """Test whether the scores of new pictures have drifted.

    The new pictures are compared with the median of the good ones, or with the lowest score above it whose rank is
    exact: below the review threshold, several good pictures have one score.

    Args:
        scores (Sequence[float]): Scores of the new pictures, in order.
        calibration_scores (Sequence[float]): Scores of the held-out good pictures, ascending.

    Returns:
        Drift | None: The result, or ``None`` for fewer than eight new pictures or fewer than two good ones.
    """
    if len(scores) < MIN_IMAGES or len(calibration_scores) < 2:
        return None
    median = calibration_scores[(len(calibration_scores) + 1) // 2 - 1]
    rank = sum(score <= median for score in calibration_scores)
    num_above = sum(score > median for score in scores)
    trend = kendalltau(range(len(scores)), scores)
    return Drift(num_above, len(scores), len(calibration_scores), rank, float(trend.statistic), float(trend.pvalue))


def describe_drift(scores: Sequence[float], calibration_scores: Sequence[float]) -> str:
    """Return the drift report as text, or an empty string if there are too few pictures for a test.

    Args:
        scores (Sequence[float]): Scores of the new pictures, in order.
        calibration_scores (Sequence[float]): Scores of the held-out good pictures, ascending.
    """
    drift = measure_drift(scores, calibration_scores)
    if drift is None:
        return ""
    count = (
        f"{drift.num_above} of {drift.num_new} new pictures score above {drift.rank} of {drift.num_good} good pictures"
    )
    needed = min_new_images(drift.num_good, drift.rank)
    if drift.has_level_shift:
        text = (
            f"Drift detected: {count}. Without drift, this happens in {_percent(drift.p_value)} of cases. Either "
            "lighting, camera or tooling has changed, or many pictures show defects. Add recent good pictures."
        )
    elif drift.num_new < needed:
        text = f"{count}. With {drift.num_good} good pictures, detecting drift requires at least {needed} new pictures."
    else:
        text = f"No sign of drift: {count}, which is within chance."
    if drift.has_trend:
        direction = "rise" if drift.trend > 0 else "fall"
        text += (
            f" Scores {direction} in the order of file names (Kendall's tau, p = {drift.trend_p_value:.1g}). Either "
            "the process changes gradually, or the defects occurred together."
        )
    return text


def _percent(share: float) -> str:
    return f"{share:.1%}" if share >= 0.001 else "less than 0.1 %"
