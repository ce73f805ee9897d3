# Copyright (C) 2026 anomalib-fewshot contributors
# SPDX-License-Identifier: Apache-2.0

"""Drift: whether new pictures still score like the good ones, by two tests with a known false-alarm rate."""

from collections.abc import Sequence
from dataclasses import dataclass

from scipy.stats import betabinom, kendalltau

LEVEL_LIMIT = 0.05  # p-value; four good pictures reach it from 12 new ones on, and .01 only from 32 on
TREND_LIMIT = 0.01  # p-value
MIN_PICTURES = 8  # new ones, below which nothing is tested


@dataclass(frozen=True)
class Drift:
    """Result of the two tests.

    Where no picture has changed, the level test reports a change in at most 5 % of cases and the trend test in about
    1 %. Simulated with normally distributed scores, at least one of them did in 0.5 % (k = 4, 8 new pictures) to 5 %
    (k = 8, 50 new pictures) of 2000 cases.

    Args:
        num_above (int): New pictures that score above the median of the held-out good pictures.
        num_new (int): Number of new pictures.
        num_good (int): Number k of good pictures.
        trend (float): Kendall's tau of the scores of new pictures and their order, NaN if all scores are equal.
        trend_p_value (float): Its p-value, NaN if all scores are equal.
    """

    num_above: int
    num_new: int
    num_good: int
    trend: float
    trend_p_value: float

    @property
    def p_value(self) -> float:
        """The p-value of the level test."""
        return level_p_value(self.num_above, self.num_new, self.num_good)

    @property
    def has_changed_level(self) -> bool:
        """Whether so many new pictures above the median are a change."""
        return self.p_value <= LEVEL_LIMIT

    @property
    def has_trend(self) -> bool:
        """Whether the scores rise or fall in the order of the pictures."""
        return self.trend_p_value <= TREND_LIMIT


def level_p_value(num_above: int, num_new: int, num_good: int) -> float:
    """Return the probability that at least so many new pictures exceed the median good picture by chance.

    Of k exchangeable good pictures, the share of new ones above the j-th lowest is Beta(k - j + 1, j): a binomial test
    would take the median of a few pictures for that of all.

    Args:
        num_above (int): New pictures above the median, the lower one of an even number.
        num_new (int): Number of new pictures.
        num_good (int): Number k of good pictures.

    Example:
        >>> round(level_p_value(50, 50, 4), 4), round(level_p_value(25, 50, 4), 2)
        (0.0042, 0.69)
    """
    rank = (num_good + 1) // 2
    return float(betabinom.sf(num_above - 1, num_new, num_good - rank + 1, rank))


def num_needed(num_good: int) -> int:
    """Return the smallest number of new pictures with which the level test can report a change.

    Example:
        >>> num_needed(4), num_needed(2)
        (12, 39)
    """
    number = MIN_PICTURES
    while level_p_value(number, number, num_good) > LEVEL_LIMIT:
        number += 1
    return number


def measure_drift(scores: Sequence[float], calibration_scores: Sequence[float]) -> Drift | None:
    """Test whether new pictures have changed.

    Args:
        scores (Sequence[float]): Scores of new pictures, in order.
        calibration_scores (Sequence[float]): Scores of held-out good pictures, ascending.

    Returns:
        Drift | None: The result, or ``None`` with fewer than eight new pictures or two good ones.
    """
    if len(scores) < MIN_PICTURES or len(calibration_scores) < 2:
        return None
    median = calibration_scores[(len(calibration_scores) + 1) // 2 - 1]
    num_above = sum(score > median for score in scores)
    trend = kendalltau(range(len(scores)), scores)
    return Drift(num_above, len(scores), len(calibration_scores), float(trend.statistic), float(trend.pvalue))


def describe_drift(scores: Sequence[float], calibration_scores: Sequence[float]) -> str:
    """Return the drift report as text, empty with too few pictures for any test.

    Args:
        scores (Sequence[float]): Scores of new pictures, in order.
        calibration_scores (Sequence[float]): Scores of held-out good pictures, ascending.
    """
    drift = measure_drift(scores, calibration_scores)
    if drift is None:
        return ""
    count = f"{drift.num_above} of {drift.num_new} new pictures score above the median good picture"
    needed = num_needed(drift.num_good)
    if drift.has_changed_level:
        text = (
            f"The pictures have changed: {count}, which chance does in {_percent(drift.p_value)} of cases. Light, "
            "camera or tool are different now, or many pictures are defects. Add good pictures that were taken now."
        )
    elif drift.num_new < needed:
        text = f"{count}. With {drift.num_good} good pictures, a change can be detected from {needed} new pictures on."
    else:
        text = f"No change detected: {count}, which is within chance."
    if drift.has_trend:
        direction = "rise" if drift.trend > 0 else "fall"
        text += (
            f" Scores {direction} in the order of file names (Kendall's test, p = {drift.trend_p_value:.1g}): a "
            "gradual change, or defects that came together."
        )
    return text


def _percent(share: float) -> str:
    return f"{share:.1%}" if share >= 0.001 else "less than 0.1 %"
