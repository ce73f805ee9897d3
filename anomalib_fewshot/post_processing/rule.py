# Copyright (C) 2026 anomalib-fewshot contributors
# SPDX-License-Identifier: Apache-2.0

"""What k normal images can promise about false alarms.

A new image is compared with each of k normal ones. It is called a defect if it beats all but m - 1 of them, and its
p-value is ``(1 + number that it does not beat) / (k + 1)``. How it is compared decides what can be promised.
"""

from enum import Enum
from math import ceil, floor

import numpy as np
from scipy.stats import beta

from anomalib_fewshot.errors import ArgumentError

LOOK_RANKS = 2  # the line of "look" is that of a defect at this many times the rank m


class Rule(str, Enum):
    """How a new image is compared with normal ones.

    A promise is about exchangeable images, which come from one line, one light and no drift, and about the mean over
    supports: some supports have more false alarms, others fewer.
    """

    HELD_OUT = "held-out"
    """The new image and a held-out one are scored by the same fit, without both: at most ``(2m - 1) / (k + 1)`` false
    alarms (jackknife+, theorem 1 of https://arxiv.org/abs/1905.02928, and for m = 1 ``1 / (k + 1)``)."""

    FOLDS = "folds"
    """The same with a fold of several images held out at a time (CV+): near ``m / (k + 1)``, with a weaker bound."""

    APART = "apart"
    """The normal images were kept apart from the training: ``m / (k + 1)``, and a bound for this very threshold."""

    ONE_FIT = "one fit"
    """The new image is scored by a fit to all, a held-out one by a fit without it: nothing is promised."""

    VIEWS = "views"
    """There is a single image, whose views are scored: nothing is promised, and nothing is called a defect."""

    SEEN = "seen"
    """The normal images were trained on: nothing is promised, and many new images are above them."""

    def promised_rate(self, rank: int, count: int, num_folds: int | None = None) -> float | None:
        """Return the highest mean rate of false alarms, ``None`` if there is no promise.

        Args:
            rank (int): The m of the rule: a defect beats all but m - 1 images.
            count (int): Number k of normal images.
            num_folds (int | None): Number of folds, which ``FOLDS`` needs. Defaults to ``None``.

        Raises:
            ArgumentError: If ``FOLDS`` gets no number of folds.

        Example:
            >>> Rule.HELD_OUT.promised_rate(1, 4), Rule.HELD_OUT.promised_rate(2, 4), Rule.APART.promised_rate(2, 4)
            (0.2, 0.6, 0.4)
        """
        if self is Rule.APART:
            return rank / (count + 1)
        if self is Rule.HELD_OUT:
            return min(1.0, (2 * rank - 1) / (count + 1))
        if self is Rule.FOLDS:  # Vovk's rule with K folds, see arXiv 2503.01495
            if num_folds is None:
                msg = "`num_folds` must be the number of folds, got None. Give that of the calibration."
                raise ArgumentError(msg)
            rate = rank / (count + 1)
            return min(1.0, 2 * rate + 2 * (1 - rate) * (num_folds - 1) / (count + num_folds))
        return None

    def rank(self, rate: float | None, count: int) -> int:
        """Return the rank m of a rate of false alarms.

        Args:
            rate (float | None): Wanted rate. ``None`` is the lowest that there is: m = 1.
            count (int): Number k of normal images.

        Raises:
            ValueError: If k images cannot have so low a rate.

        Example:
            >>> Rule.HELD_OUT.rank(0.2, 4), Rule.HELD_OUT.rank(0.1, 32), Rule.APART.rank(0.1, 32)
            (1, 2, 3)
        """
        if rate is None:
            return 1
        if rate * (count + 1) < 1 - 1e-9:
            msg = (
                f"`false_alarm_rate` must be at least {1 / (count + 1):.3g} with {count} normal images, got "
                f"{rate:.3g}. Give {needed(rate)} images, or ask for {1 / (count + 1):.3g}."
            )
            raise ValueError(msg)
        allowed = rate * (count + 1) + 1e-9
        return max(1, floor(allowed if self is Rule.APART else (allowed + 1) / 2))

    def look_rank(self, rank: int, count: int, num_folds: int | None = None) -> int:
        """Return the rank of the line of "look": twice that of a defect, or the highest that can promise anything.

        Args:
            rank (int): Rank m of a defect.
            count (int): Number k of normal images.
            num_folds (int | None): Number of folds, which ``FOLDS`` needs. Defaults to ``None``.

        Example:
            >>> Rule.HELD_OUT.look_rank(1, 4), Rule.HELD_OUT.look_rank(1, 2), Rule.ONE_FIT.look_rank(1, 2)
            (2, 1, 2)
        """
        ranks = range(LOOK_RANKS * rank, rank, -1)
        return next((m for m in ranks if (self.promised_rate(m, count, num_folds) or 0) < 1), rank)


def needed(rate: float) -> int:
    """Return the number of normal images that a rate of false alarms takes.

    Example:
        >>> needed(0.05), needed(0.2)
        (19, 4)
    """
    return ceil(1 / rate - 1 - 1e-9)


def rate_bound(rank: int, count: int, confidence: float = 0.95) -> float:
    """Return the rate that the false alarms of a threshold from images that were kept apart do not exceed.

    Args:
        rank (int): Rank m of the threshold among the scores: the m-th highest.
        count (int): Number of images kept apart.
        confidence (float): Probability that the bound holds. Defaults to ``0.95``.

    Example:
        >>> [round(rate_bound(1, count), 2) for count in (4, 29, 59)]
        [0.53, 0.1, 0.05]
    """
    return float(beta.ppf(confidence, rank, count - rank + 1))


def p_values(scores: np.ndarray, levels: np.ndarray) -> np.ndarray:
    """Return the rank p-value of each score. NaN where the score is NaN.

    Args:
        scores (np.ndarray): Scores, shape ``(B,)``.
        levels (np.ndarray): Scores that a new image has to be above to beat each normal one, shape ``(k,)``.

    Example:
        >>> p_values(np.array([0.5, 3.0, 9.0]), np.array([1.0, 2.0, 3.0, 4.0])).round(1)
        array([1. , 0.6, 0.2])
    """
    values = (1 + (levels[None] >= scores[:, None]).sum(1)) / (len(levels) + 1)
    return np.where(np.isnan(scores), np.nan, values)
