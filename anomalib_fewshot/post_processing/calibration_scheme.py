# Copyright (C) 2026 anomalib-fewshot contributors
# SPDX-License-Identifier: Apache-2.0

"""Conformal calibration: the false-alarm rate that k normal images can guarantee.

A new image is compared with each of k normal images. It is a defect if it ranks above all but m - 1 of them. Its
p-value is ``(1 + number of normal images that it does not exceed) / (k + 1)``. The guarantee depends on how the normal
images were scored, the calibration scheme.
"""

from enum import Enum
from math import ceil, floor

import numpy as np
from scipy.stats import beta

from anomalib_fewshot.errors import ArgumentError

DEFAULT_RATE = 0.05  # false-alarm rate with many normal images
REVIEW_RANKS = 2  # the threshold of "review" has this many times the rank of the threshold of "defect"


class CalibrationScheme(str, Enum):
    """How a new image is compared with normal ones.

    A guarantee requires exchangeable images: the same production line, the same light, no drift. It bounds the mean
    false-alarm rate over support sets. The rate of a single support set may be higher or lower.
    """

    JACKKNIFE_PLUS = "jackknife+"
    """The same fit, which saw neither image, scores both: a false-alarm rate of at most ``(2m - 1) / (k + 1)``
    (theorem 1 of https://arxiv.org/abs/1905.02928), which is ``1 / (k + 1)`` for m = 1."""

    CV_PLUS = "cv+"
    """Jackknife+ with folds of several images: a rate near ``m / (k + 1)``, with a weaker bound."""

    SPLIT = "split"
    """The normal images were not used in training: a rate of at most ``m / (k + 1)``, and a confidence bound for the
    single threshold, see :func:`rate_bound`."""

    LEAVE_ONE_OUT = "leave-one-out"
    """Each normal image is scored by a fit without it, and the new image by the fit to all images: no guarantee."""

    SELF_VIEWS = "self-views"
    """Augmented views of a single normal image are scored: no guarantee, and no image is called a defect."""

    TRAINING = "training"
    """The normal images were used in training: no guarantee. Many new normal images score higher."""

    def guaranteed_fpr(self, rank: int, count: int, num_folds: int | None = None) -> float | None:
        """Return the guaranteed mean false-alarm rate, or ``None`` if there is no guarantee.

        Args:
            rank (int): Rank m: a defect ranks above all but m - 1 normal images.
            count (int): Number k of normal images.
            num_folds (int | None): Number of folds, which ``CV_PLUS`` needs. Defaults to ``None``.

        Raises:
            ArgumentError: If ``CV_PLUS`` gets no number of folds.

        Example:
            >>> [CalibrationScheme.JACKKNIFE_PLUS.guaranteed_fpr(rank, 4) for rank in (1, 2)]
            [0.2, 0.6]
            >>> CalibrationScheme.SPLIT.guaranteed_fpr(2, 4)
            0.4
        """
        if self is CalibrationScheme.SPLIT:
            return rank / (count + 1)
        if self is CalibrationScheme.JACKKNIFE_PLUS:
            return min(1.0, (2 * rank - 1) / (count + 1))
        if self is CalibrationScheme.CV_PLUS:  # Vovk's bound for K folds, see arXiv 2503.01495
            if num_folds is None:
                msg = "`num_folds` must be the number of folds, got None. Give that of the calibration."
                raise ArgumentError(msg)
            rate = rank / (count + 1)
            return min(1.0, 2 * rate + 2 * (1 - rate) * (num_folds - 1) / (count + num_folds))
        return None

    def rank(self, rate: float | None, count: int) -> int:
        """Return the rank m for a false-alarm rate.

        Args:
            rate (float | None): Requested rate. ``None``: 5 %, or the lowest possible rate if that is higher. A lower
                rate would miss more defects.
            count (int): Number k of normal images.

        Raises:
            ValueError: If k images cannot guarantee the rate.

        Example:
            >>> CalibrationScheme.JACKKNIFE_PLUS.rank(0.2, 4), CalibrationScheme.JACKKNIFE_PLUS.rank(0.1, 32)
            (1, 2)
            >>> [CalibrationScheme.JACKKNIFE_PLUS.rank(None, count) for count in (4, 32, 59, 128)]
            [1, 1, 2, 3]
            >>> CalibrationScheme.SPLIT.rank(0.1, 32)
            3
        """
        if rate is None:
            rate = max(DEFAULT_RATE, 1 / (count + 1))
        if rate * (count + 1) < 1 - 1e-9:
            msg = (
                f"`false_alarm_rate` must be at least {1 / (count + 1):.3g} with {count} normal images, got "
                f"{rate:.3g}. Provide {needed(rate)} images, or set `false_alarm_rate` to {1 / (count + 1):.3g}."
            )
            raise ValueError(msg)
        allowed = rate * (count + 1) + 1e-9
        return max(1, floor(allowed if self is CalibrationScheme.SPLIT else (allowed + 1) / 2))

    def review_rank(self, rank: int, count: int, num_folds: int | None = None) -> int:
        """Return the rank for "review": the highest rank up to twice that of "defect" with a guaranteed rate below 1.

        Args:
            rank (int): Rank m for "defect".
            count (int): Number k of normal images.
            num_folds (int | None): Number of folds, which ``CV_PLUS`` needs. Defaults to ``None``.

        Example:
            >>> [CalibrationScheme.JACKKNIFE_PLUS.review_rank(1, count) for count in (4, 2)]
            [2, 1]
        """
        ranks = range(REVIEW_RANKS * rank, rank, -1)
        return next((m for m in ranks if (self.guaranteed_fpr(m, count, num_folds) or 0) < 1), rank)

    def num_distinct_ranks(self, rate: float | None, count: int, num_folds: int | None = None) -> int:
        """Return how many of the highest ranks affect a verdict: all down to the threshold of "review".

        Args:
            rate (float | None): Requested false-alarm rate. A rate that k images cannot guarantee counts as ``None``.
            count (int): Number k of normal images.
            num_folds (int | None): Number of folds, which ``CV_PLUS`` needs. Defaults to ``None``.
        """
        possible = rate is None or needed(rate) <= count
        return self.review_rank(self.rank(rate if possible else None, count), count, num_folds)


def needed(rate: float) -> int:
    """Return the number of normal images that a false-alarm rate requires.

    Example:
        >>> needed(0.05), needed(0.2)
        (19, 4)
    """
    return ceil(1 / rate - 1 - 1e-9)


def rate_bound(rank: int, count: int, confidence: float = 0.95) -> float:
    """Return an upper confidence bound for the false-alarm rate of a split-calibrated threshold.

    Args:
        rank (int): Rank m of the threshold among the scores: the m-th highest.
        count (int): Number of calibration images.
        confidence (float): Probability that the bound holds. Defaults to ``0.95``.

    Example:
        >>> [round(rate_bound(1, count), 2) for count in (4, 29, 59)]
        [0.53, 0.1, 0.05]
    """
    return float(beta.ppf(confidence, rank, count - rank + 1))


def p_values(scores: np.ndarray, calibration_scores: np.ndarray) -> np.ndarray:
    """Return the rank p-value of each score. NaN where the score is NaN.

    Args:
        scores (np.ndarray): Scores, shape ``(B,)``.
        calibration_scores (np.ndarray): Score that a new image must exceed to rank above each normal image,
            shape ``(k,)``.

    Example:
        >>> p_values(np.array([0.5, 3.0, 9.0]), np.array([1.0, 2.0, 3.0, 4.0])).round(1)
        array([1. , 0.6, 0.2])
    """
    values = (1 + (calibration_scores[None] >= scores[:, None]).sum(1)) / (len(calibration_scores) + 1)
    return np.where(np.isnan(scores), np.nan, values)
