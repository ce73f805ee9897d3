# Copyright (C) 2026 anomalib-fewshot contributors
# SPDX-License-Identifier: Apache-2.0

"""Whether new pictures are still like the good ones, and how sure that is."""

from collections.abc import Sequence
from math import isnan

from scipy.stats import betabinom, kendalltau

RARE = 0.01  # p-value below which a drift is spoken of
MIN_PICTURES = 8  # below which nothing can be said


def level_p_value(num_above: int, num_new: int, num_good: int) -> float:
    """Return how often so many new pictures beat the median of held-out good pictures, or more, by chance.

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


def describe_drift(scores: Sequence[float], levels: Sequence[float]) -> str:
    """Say in words whether new pictures drift, of those in the order they were taken.

    Args:
        scores (Sequence[float]): Scores of new pictures, in order.
        levels (Sequence[float]): Scores of held-out good pictures, ascending.
    """
    if len(scores) < MIN_PICTURES or len(levels) < 2:
        return ""
    median = levels[(len(levels) + 1) // 2 - 1]
    above = sum(score > median for score in scores)
    chance = level_p_value(above, len(scores), len(levels))
    text = f"{above} of {len(scores)} new pictures are above the median of the held-out good ones"
    if chance < RARE:
        text += (
            f", which chance does in {_percent(chance)} of cases. The pictures have changed (light, camera, tool) or "
            f"many are defects: {len(levels)} good pictures are no longer enough. Add good ones from now."
        )
    else:
        text += ", which chance may do."
    trend = kendalltau(range(len(scores)), scores)
    if not isnan(trend.pvalue) and trend.pvalue < RARE:
        direction = "higher" if trend.statistic > 0 else "lower"
        text += f" By name, later pictures have {direction} scores (Kendall's test, p = {trend.pvalue:.1g})"
        text += ": a drift, or defects of one time."
    return text


def _percent(share: float) -> str:
    return f"{share:.1%}" if share >= 0.001 else "less than 0.1 %"
