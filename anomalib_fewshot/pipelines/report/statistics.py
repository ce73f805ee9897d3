# Copyright (C) 2026 anomalib-fewshot contributors
# SPDX-License-Identifier: Apache-2.0

"""Statistics of a few-shot benchmark: macro means, paired differences and their intervals, from one row a run.

Methods are compared on identical supports, and categories count equally however many runs or images they have. The
intervals say how much the choice of supports matters, for these categories and these test images. They do not say what
another data set would give.
"""

from collections.abc import Mapping, Sequence
from math import inf
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

from anomalib_fewshot.pipelines.plan.job import as_number

RUN = ["method", "dataset", "category", "k_shot", "seed"]  # columns that name a run
CELL = ["category", "seed"]  # columns to average over within a dataset and k
TOLERANCE = 1e-9  # widths of intervals below it are rounding errors


def macro_interval(
    samples: Sequence[np.ndarray],
    *,
    confidence: float = 0.95,
    n_resamples: int = 5000,
    seed: int = 0,
) -> tuple[float, float]:
    r"""Return an interval of a macro mean, the mean over categories of their means over seeds.

    A bootstrap that resamples seeds within each category, independently, because the supports of two categories are
    drawn independently; the categories are fixed. The percentile interval of so few seeds is too narrow: it takes the
    variance with :math:`n` in place of :math:`n - 1`, and normal quantiles in place of Student's. So each category's
    resampled deviation is multiplied by :math:`\sqrt{n / (n - 1)}`, and the interval is widened about the mean by the
    ratio of the quantiles, with the degrees of freedom of Welch and Satterthwaite.

    Coverage of 95 % intervals in 4000 simulations of Gaussian values, with one standard deviation for all categories or
    with one category ten times as variable as the others:

    ===================================  ==========  =======================  ============
    Values                               Percentile  :math:`\sqrt{n/(n-1)}`   This interval
    ===================================  ==========  =======================  ============
    5 categories, 5 seeds                0.90        0.93                     0.95
    the same, one category dominates     0.84        0.87                     0.94
    1 category, 5 seeds                  0.84        0.87                     0.95
    1 category, 2 seeds                  0.51        0.61                     0.93
    ===================================  ==========  =======================  ============

    Args:
        samples (Sequence[np.ndarray]): The values of each category, shape ``(seeds,)``; their numbers may differ.
        confidence (float): Level of the interval.
        n_resamples (int): Number of resamples.
        seed (int): Seed of the resampling.

    Returns:
        tuple[float, float]: Lower and upper end; NaN if there is no category, or one with fewer than two seeds.

    Example:
        >>> low, high = macro_interval([np.array([0.90, 0.92, 0.94]), np.array([0.70, 0.70, 0.70])])
        >>> print(f"{low:.2f} to {high:.2f}")
        0.78 to 0.84
    """
    if not samples or min(map(len, samples)) < 2:
        return np.nan, np.nan
    sizes = np.array([len(sample) for sample in samples])
    means = np.array([sample.mean() for sample in samples])
    variances = np.array([sample.var(ddof=1) for sample in samples]) / sizes  # of each category's mean
    if not variances.any():
        return means.mean(), means.mean()
    widths = np.sqrt(sizes / (sizes - 1))

    def macro_mean(*resamples: np.ndarray, axis: int = -1) -> np.ndarray:
        parts = zip(resamples, means, widths, strict=True)
        return np.mean([mean + width * (values.mean(axis) - mean) for values, mean, width in parts], axis=0)

    ends = stats.bootstrap(
        samples,
        macro_mean,
        confidence_level=confidence,
        n_resamples=n_resamples,
        method="percentile",
        rng=np.random.default_rng(seed),
    ).confidence_interval
    freedom = variances.sum() ** 2 / (variances**2 / (sizes - 1)).sum()
    quantile = (1 + confidence) / 2
    ratio = stats.t.ppf(quantile, freedom) / stats.norm.ppf(quantile)
    center = means.mean()
    return center + ratio * (ends.low - center), center + ratio * (ends.high - center)


def summarize(
    rows: pd.DataFrame,
    metric: str,
    *,
    planned: pd.DataFrame | None = None,
    confidence: float = 0.95,
    n_resamples: int = 5000,
    seed: int = 0,
) -> pd.DataFrame:
    """Summarize a metric by dataset, k and method.

    The categories are those where any method has a value for that dataset and k; so a pixel metric is over the
    categories with masks. A method that lacks one of them has no mean, because a mean over fewer categories is another
    quantity. A method that lacks seeds has one, over the seeds that it has, and the missing runs are counted. With all
    images as support, a method whose values do not depend on the seed has no interval.

    Args:
        rows (pd.DataFrame): One row a run, with the columns ``method``, ``dataset``, ``category``, ``k_shot``,
            ``seed``, ``status`` and the metric.
        metric (str): Name of the metric's column; values in ``[0, 1]``.
        planned (pd.DataFrame | None): The runs that were to be made, with the first five of these columns: others are
            not missing. Defaults to ``None``: those that any method has.
        confidence (float): Level of the interval.
        n_resamples (int): Number of resamples of the interval.
        seed (int): Seed of the resampling.

    Returns:
        pd.DataFrame: One row each, with ``dataset``, ``k_shot`` and ``method``; ``mean``, the macro mean, and its
        interval ``low`` to ``high``, within ``[0, 1]``; ``seed_std``, the deviation over seeds of the macro mean;
        ``category_std``, that over categories of their means; ``worst_category`` and its mean ``worst``;
        ``categories``, ``runs`` and ``missing``, the numbers of categories and of runs with a value, and of runs
        without one that another method or category has. What cannot be said is NaN: the interval and ``seed_std`` of a
        single seed, all but the numbers without a mean.

    Raises:
        ValueError: If a column is missing, a run is there twice or a value is out of range.
    """
    check_rows(rows, metric)
    records = []
    for (dataset, k_shot), block in rows.groupby(["dataset", "k_shot"]):
        expected, categories = _expected(block, metric)
        measured = _measured(block, metric)
        for method in sorted(rows.loc[rows["dataset"] == dataset, "method"].unique()):
            values = measured[measured["method"] == method].set_index(CELL)[metric]
            record = {"dataset": dataset, "k_shot": k_shot, "method": method}
            record |= _macro(values, categories, confidence=confidence, n_resamples=n_resamples, seed=seed)
            record |= _bounds(record, minimum=0)
            record["missing"] = len(_planned(expected, planned, dataset, k_shot, method).difference(values.index))
            records.append(record)
    return pd.DataFrame(records).rename(columns={"std": "category_std"})


def paired_differences(
    rows: pd.DataFrame,
    baseline: str,
    metric: str,
    *,
    planned: pd.DataFrame | None = None,
    tie: float = 0.005,
    confidence: float = 0.95,
    n_resamples: int = 5000,
    seed: int = 0,
) -> pd.DataFrame:
    """Compare every method with a baseline, on the same category, seed and support.

    Where the baseline has no run, as in a sweep that was ended early, there are no pairs. A pair whose two runs had
    other support images (or do not name them) is left out and counted: a table that is put together from several sweeps
    should not lose its report for a few of them. As in :func:`summarize`, there is no mean difference where a category
    has no pair that has values of other methods.

    Args:
        rows (pd.DataFrame): As for :func:`summarize`, with the column ``support``, a hash of the support images.
        baseline (str): Name of the method to compare with.
        metric (str): Name of the metric's column; values in ``[0, 1]``.
        planned (pd.DataFrame | None): The runs that were to be made, as for :func:`summarize`. Defaults to
            ``None``.
        tie (float): A pair is a tie if its values differ by no more than this.
        confidence (float): Level of the interval.
        n_resamples (int): Number of resamples of the interval.
        seed (int): Seed of the resampling.

    Returns:
        pd.DataFrame: One row a dataset, k and other method, with ``mean``, the macro mean of method minus baseline, its
        interval ``low`` to ``high``, ``seed_std``, ``category_std``, ``worst_category``, ``worst``, ``categories`` and
        ``runs``, the number of pairs, as for :func:`summarize`, but of differences; ``wins``, ``ties`` and ``losses``
        of the method, which add up to ``runs``; ``missing``, the number of cells without a pair; and ``other_support``,
        how many of these are missing because the supports differ.

    Raises:
        ValueError: If a column is missing, a run is there twice or a value is out of range.
    """
    check_rows(rows, metric, "support")
    records = []
    for (dataset, k_shot), block in rows.groupby(["dataset", "k_shot"]):
        expected, categories = _expected(block, metric)
        measured = _measured(block, metric)[["method", *CELL, metric, "support"]]
        base = measured[measured["method"] == baseline]
        for method in sorted(set(rows.loc[rows["dataset"] == dataset, "method"]) - {baseline}):
            pairs = measured[measured["method"] == method].merge(base, on=CELL, suffixes=("", "_base"))
            same = pairs["support"] == pairs["support_base"]
            values = pairs[same].set_index(CELL).eval(f"`{metric}` - `{metric}_base`")
            rounded = values.round(9)  # 0.905 - 0.9 is a little more than 0.005
            record = {"dataset": dataset, "k_shot": k_shot, "method": method}
            record |= _macro(values, categories, confidence=confidence, n_resamples=n_resamples, seed=seed)
            record |= _bounds(record, minimum=-1)
            record |= {
                "wins": int((rounded > tie).sum()),
                "ties": int((rounded.abs() <= tie).sum()),
                "losses": int((rounded < -tie).sum()),
                "missing": len(
                    _planned(expected, planned, dataset, k_shot, method, baseline).difference(values.index),
                ),
                "other_support": int((~same).sum()),
            }
            records.append(record)
    columns = ["dataset", "k_shot", "method", *_macro(pd.Series(dtype=float), set())]
    columns += ["wins", "ties", "losses", "missing", "other_support"]
    return pd.DataFrame(records, columns=columns).rename(columns={"std": "category_std"})


def by_category(rows: pd.DataFrame, metric: str) -> pd.DataFrame:
    """Return mean and standard deviation over seeds of a metric in every category.

    Args:
        rows (pd.DataFrame): As for :func:`summarize`.
        metric (str): Name of the metric's column; values in ``[0, 1]``.

    Returns:
        pd.DataFrame: One row a dataset, k, method and category with a value, with ``mean``, ``std`` (NaN for a single
        seed) and ``runs``.

    Raises:
        ValueError: If a column is missing, a run is there twice or a value is out of range.
    """
    check_rows(rows, metric)
    groups = _measured(rows, metric).groupby(["dataset", "k_shot", "method", "category"])[metric]
    return groups.agg(mean="mean", std="std", runs="size").reset_index()


def check_rows(rows: pd.DataFrame, metric: str, *columns: str) -> None:
    """Raise a ValueError if a column is missing, a run is there twice or a value of the metric is out of range."""
    missing = [column for column in [*RUN, "status", metric, *columns] if column not in rows]
    if missing:
        msg = f"`rows` must have the columns of a sweep, got none of the name {', '.join(missing)}."
        raise ValueError(msg)
    done = _measured(rows, metric)
    twice = done[done.duplicated(RUN)]
    if len(twice):
        run = ", ".join(f"{name} {twice.iloc[0][name]}" for name in RUN)
        msg = f"`rows` must have a run once, got {len(twice)} again, such as {run}. Keep one setting a method name."
        raise ValueError(msg)
    outside = done[~done[metric].between(0, 1)]
    if len(outside):
        msg = f"`{metric}` must be in [0, 1], got {outside[metric].iloc[0]} and {len(outside) - 1} others."
        raise ValueError(msg)


def _measured(rows: pd.DataFrame, metric: str) -> pd.DataFrame:
    """Return the rows with a value."""
    return rows[(rows["status"] == "ok") & rows[metric].notna()]


def _expected(block: pd.DataFrame, metric: str) -> tuple[pd.Index, set[str]]:
    """Return the (category, seed) of which a value is expected, and the categories that a macro mean must have.

    A category where every run failed counts as expected, since it may have masks or not, but no mean waits for it.
    """
    categories = set(_measured(block, metric)["category"])
    lost = set(block["category"]) - set(block.loc[block["status"] == "ok", "category"])
    cells = block[block["category"].isin(categories | lost)]
    return pd.MultiIndex.from_frame(cells[CELL].drop_duplicates()), categories


def _planned(
    cells: pd.Index,
    planned: pd.DataFrame | None,
    dataset: str,
    k_shot: float | str,
    *methods: str,
) -> pd.Index:
    """Return the (category, seed) that were to be run by all of the methods."""
    if planned is None:
        return cells
    here = planned[(planned["dataset"] == dataset) & (planned["k_shot"] == k_shot)]
    for method in methods:
        cells = cells.intersection(pd.MultiIndex.from_frame(here.loc[here["method"] == method, CELL]))
    return cells


def _bounds(record: Mapping[str, Any], *, minimum: float) -> dict[str, float]:
    """Return the interval within its range. All images leave no choice of a support, and equal values no interval."""
    low, high = np.clip((record["low"], record["high"]), minimum, 1)
    is_point = as_number(record["k_shot"]) == inf and high - low < TOLERANCE
    return {"low": np.nan, "high": np.nan} if is_point else {"low": low, "high": high}


def _macro(values: pd.Series, categories: set[str], **interval: float) -> dict:
    """Return the macro mean over categories, and deviations, of values that are indexed by category and seed."""
    counts = {"categories": 0, "runs": len(values)}
    nothing = dict.fromkeys(("mean", "low", "high", "seed_std", "std"), np.nan)
    if values.empty:
        return nothing | {"worst_category": "", "worst": np.nan} | counts
    values = values.sort_index()
    means = values.groupby("category").mean()
    worst = {"worst_category": means.idxmin(), "worst": means.min()}
    counts["categories"] = len(means)
    if set(means.index) != categories:
        return nothing | worst | counts
    samples = [sample.to_numpy() for _, sample in values.groupby("category")]
    low, high = macro_interval(samples, **interval)  # type: ignore[arg-type]
    by_seed = values.unstack("category").dropna().mean(axis=1)  # noqa: PD010  the seeds that all categories have
    deviations = {"seed_std": by_seed.std(), "std": means.std()}
    return {"mean": means.mean(), "low": low, "high": high} | deviations | worst | counts
