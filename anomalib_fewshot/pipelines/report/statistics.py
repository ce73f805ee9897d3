# Copyright (C) 2026 anomalib-fewshot contributors
# SPDX-License-Identifier: Apache-2.0

"""Statistics of a few-shot benchmark: macro means, paired differences and their intervals.

Methods are compared on identical support sets. All categories have equal weight, regardless of their numbers of runs
and images. The intervals show the effect of the choice of support sets, for these categories and test images. They do
not generalize to other datasets.
"""

from collections.abc import Mapping, Sequence
from math import inf
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

from anomalib_fewshot.pipelines.plan.job import as_number
from anomalib_fewshot.pipelines.results.row import add_pool_columns

GROUP = ["dataset", "k_shot", "unlabeled", "contamination"]  # columns that are equal in every comparison of methods
CELL = ["category", "seed"]  # columns to average over within a group
RUN = ["method", "dataset", "category", "k_shot", "seed", "unlabeled", "contamination"]  # columns that identify a run
VERDICT_METRICS = ("image_F1Score", "false_alarms", "recall", "guaranteed_fpr")  # they depend on a threshold
TOLERANCE = 1e-9  # narrower intervals are rounding errors


def macro_interval(
    samples: Sequence[np.ndarray],
    *,
    confidence: float = 0.95,
    n_resamples: int = 5000,
    seed: int = 0,
) -> tuple[float, float]:
    r"""Return a confidence interval of a macro mean, the mean over categories of the means over seeds.

    The bootstrap resamples the seeds within each category. It does so independently per category, because support sets
    of different categories are drawn independently. The categories are fixed.

    With few seeds, a percentile interval is too narrow for two reasons. It divides the variance by :math:`n` instead of
    :math:`n - 1`, and it uses normal quantiles instead of Student's t. Therefore the resampled deviation of each
    category is multiplied by :math:`\sqrt{n / (n - 1)}`, and the interval is scaled around the mean by the ratio of the
    quantiles, with Welch-Satterthwaite degrees of freedom.

    Coverage of 95 % intervals in 4000 simulations with Gaussian values. The standard deviation is equal in all
    categories, or ten times as large in one category:

    ===================================  ==========  =======================  ============
    Values                               Percentile  :math:`\sqrt{n/(n-1)}`   This interval
    ===================================  ==========  =======================  ============
    5 categories, 5 seeds                0.90        0.93                     0.95
    5 categories, one dominates          0.84        0.87                     0.94
    1 category, 5 seeds                  0.84        0.87                     0.95
    1 category, 2 seeds                  0.51        0.61                     0.93
    ===================================  ==========  =======================  ============

    Args:
        samples (Sequence[np.ndarray]): Values of each category, shape ``(seeds,)``. The number of seeds may differ.
        confidence (float): Confidence level.
        n_resamples (int): Number of bootstrap resamples.
        seed (int): Seed of the resampling.

    Returns:
        tuple[float, float]: Lower and upper limit. NaN without categories, or if a category has fewer than two seeds.

    Example:
        >>> low, high = macro_interval([np.array([0.90, 0.92, 0.94]), np.array([0.70, 0.70, 0.70])])
        >>> print(f"{low:.2f} to {high:.2f}")
        0.78 to 0.84
    """
    if not samples or min(map(len, samples)) < 2:
        return np.nan, np.nan
    sizes = np.array([len(sample) for sample in samples])
    means = np.array([sample.mean() for sample in samples])
    variances = np.array([sample.var(ddof=1) for sample in samples]) / sizes  # of the mean of each category
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
    """Summarize a metric by dataset, k, unlabeled images and method.

    The macro mean uses all categories in which any method has a value. For example, a pixel metric uses the categories
    with masks. A method with a missing category has no mean, because means over different categories are not
    comparable. A method with missing seeds has a mean over its available seeds, and the missing runs are counted. With
    k = all, a method whose values do not depend on the seed has no interval.

    Args:
        rows (pd.DataFrame): One row per run, with the columns ``method``, ``dataset``, ``category``, ``k_shot``,
            ``seed``, ``status`` and the metric. Without ``unlabeled`` and ``contamination``, both are 0.
        metric (str): Column of the metric, with values in ``[0, 1]``.
        planned (pd.DataFrame | None): Planned runs, with the first five of these columns. Only planned runs can be
            missing. Defaults to ``None``: each run that any method has is expected of all methods.
        confidence (float): Confidence level.
        n_resamples (int): Number of bootstrap resamples.
        seed (int): Seed of the resampling.

    Returns:
        pd.DataFrame: One row per ``dataset``, ``k_shot``, ``unlabeled``, ``contamination`` and ``method`` with these
        columns:

        - ``mean``, ``low``, ``high``: the macro mean and its interval, within ``[0, 1]``.
        - ``seed_std``: standard deviation of the macro mean over seeds.
        - ``category_std``: standard deviation of the category means.
        - ``worst_category``, ``worst``: the category with the lowest mean, and this mean.
        - ``categories``, ``runs``, ``missing``: numbers of categories, of runs with a value, and of missing runs.

        The interval and ``seed_std`` are NaN for a single seed. Without a mean, all statistics are NaN.

    Raises:
        ValueError: If a column is missing, a run is duplicated or a value is out of range.
    """
    check_rows(rows, metric)
    rows = add_pool_columns(rows)
    records = []
    for group, block in rows.groupby(GROUP):
        expected, categories = _expected(block, metric)
        measured = _measured(block, metric)
        for method in sorted(_methods(rows, group)):
            values = measured[measured["method"] == method].set_index(CELL)[metric]
            record = dict(zip(GROUP, group, strict=True)) | {"method": method}
            record |= _macro(values, categories, confidence=confidence, n_resamples=n_resamples, seed=seed)
            record |= _bounds(record, minimum=0)
            record["missing"] = len(_planned(expected, planned, group, method).difference(values.index))
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
    """Compare each method with a baseline on the same category, seed, support set and unlabeled images.

    Pairs with different or unknown support sets are excluded and counted, so that a table merged from several
    benchmarks can still be reported. As in :func:`summarize`, a method with a missing category has no mean difference.

    The intervals of all pairs of methods in a group hold together with the given confidence (Bonferroni): with m
    methods, each interval has the confidence ``1 - (1 - confidence) / (m (m - 1) / 2)``. They therefore also hold for
    pairs that are selected by their results, such as the best and the second-best method.

    Args:
        rows (pd.DataFrame): As for :func:`summarize`, with the additional column ``support``, a hash of the support
            set.
        baseline (str): Method to compare the other methods with. Without its runs there are no pairs.
        metric (str): Column of the metric, with values in ``[0, 1]``.
        planned (pd.DataFrame | None): Planned runs, as for :func:`summarize`. Defaults to ``None``.
        tie (float): Maximum absolute difference of a tie.
        confidence (float): Confidence level of all intervals in a group together.
        n_resamples (int): Number of bootstrap resamples.
        seed (int): Seed of the resampling.

    Returns:
        pd.DataFrame: One row per dataset, k, unlabeled images and method other than the baseline. The columns of
        :func:`summarize` describe the differences of method minus baseline, and ``runs`` is the number of pairs.
        Further columns:

        - ``wins``, ``ties``, ``losses``: numbers of pairs, which add up to ``runs``.
        - ``missing``: number of (category, seed) without a pair.
        - ``other_support``: how many of these are missing because the support sets differ.

    Raises:
        ValueError: If a column is missing, a run is duplicated or a value is out of range.
    """
    check_rows(rows, metric, "support")
    rows = add_pool_columns(rows)
    records = []
    for group, block in rows.groupby(GROUP):
        expected, categories = _expected(block, metric)
        measured = _measured(block, metric)[["method", *CELL, metric, "support"]]
        pair_confidence = confidence_of_pairs(measured["method"].nunique(), confidence)
        base = measured[measured["method"] == baseline]
        for method in sorted(_methods(rows, group) - {baseline}):
            pairs = measured[measured["method"] == method].merge(base, on=CELL, suffixes=("", "_base"))
            same = pairs["support"] == pairs["support_base"]
            values = pairs[same].set_index(CELL).eval(f"`{metric}` - `{metric}_base`")
            rounded = values.round(9)  # in floating point, 0.905 - 0.9 exceeds 0.005
            record = dict(zip(GROUP, group, strict=True)) | {"method": method}
            record |= _macro(values, categories, confidence=pair_confidence, n_resamples=n_resamples, seed=seed)
            record |= _bounds(record, minimum=-1)
            record |= {
                "wins": int((rounded > tie).sum()),
                "ties": int((rounded.abs() <= tie).sum()),
                "losses": int((rounded < -tie).sum()),
                "missing": len(_planned(expected, planned, group, method, baseline).difference(values.index)),
                "other_support": int((~same).sum()),
            }
            records.append(record)
    columns = [*GROUP, "method", *_macro(pd.Series(dtype=float), set())]
    columns += ["wins", "ties", "losses", "missing", "other_support"]
    return pd.DataFrame(records, columns=columns).rename(columns={"std": "category_std"})


def confidence_of_pairs(num_methods: int, confidence: float) -> float:
    """Return the confidence level of each interval so that the intervals of all pairs of methods hold together.

    Example:
        >>> [round(confidence_of_pairs(methods, 0.95), 4) for methods in (2, 3, 4)]
        [0.95, 0.9833, 0.9917]
    """
    pairs = num_methods * (num_methods - 1) // 2
    return 1 - (1 - confidence) / max(pairs, 1)


def clear_rates_without_verdicts(rows: pd.DataFrame) -> pd.DataFrame:
    """Return a table without the metrics that depend on a threshold, in rows where the threshold gives no verdict.

    A threshold from a single normal image does not separate normal from anomalous images: there is no second normal
    image to calibrate it with.

    Args:
        rows (pd.DataFrame): One row per run, with the columns ``threshold`` and ``k_shot`` (numeric).
    """
    rows = rows.copy()
    has_no_verdict = (rows["threshold"] == "normal images") & (rows["k_shot"] == 1)
    rows.loc[has_no_verdict, list(VERDICT_METRICS)] = np.nan
    return rows


def by_category(rows: pd.DataFrame, metric: str) -> pd.DataFrame:
    """Return the mean and standard deviation of a metric over seeds, by category.

    Args:
        rows (pd.DataFrame): As for :func:`summarize`.
        metric (str): Column of the metric, with values in ``[0, 1]``.

    Returns:
        pd.DataFrame: One row per dataset, k, unlabeled images, method and category, with ``mean``, ``std`` (NaN for a
        single seed) and ``runs``.

    Raises:
        ValueError: If a column is missing, a run is duplicated or a value is out of range.
    """
    check_rows(rows, metric)
    groups = _measured(add_pool_columns(rows), metric).groupby([*GROUP, "method", "category"])[metric]
    return groups.agg(mean="mean", std="std", runs="size").reset_index()


def guarantee_points(summaries: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """Return recall and false alarms at each guaranteed false-alarm rate, for methods with a guarantee at several k.

    Args:
        summaries (Mapping[str, pd.DataFrame]): Output of :func:`summarize` for ``guaranteed_fpr``, ``recall`` and
            ``false_alarms`` on one dataset.

    Returns:
        pd.DataFrame: One row per method and k with ``method``, ``k_shot``, ``guaranteed_fpr``, and the mean and the
        interval of both metrics: ``recall``, ``recall_low``, ``recall_high``, ``false_alarms``, ``false_alarms_low``,
        ``false_alarms_high``. A method with a guarantee at fewer than two k has no rows.
    """
    cell = ["method", "k_shot"]
    points = summaries["guaranteed_fpr"][[*cell, "mean"]].rename(columns={"mean": "guaranteed_fpr"}).dropna()
    for metric in ("recall", "false_alarms"):
        names = {"mean": metric, "low": f"{metric}_low", "high": f"{metric}_high"}
        points = points.merge(summaries[metric][[*cell, *names]].rename(columns=names), on=cell)
    counts = points.groupby("method")["k_shot"].transform("size")
    return points[counts > 1].sort_values(["method", "k_shot"], ignore_index=True)


def check_rows(rows: pd.DataFrame, metric: str, *columns: str) -> None:
    """Raise a ValueError if a column is missing, a run is duplicated or a value of the metric is out of range."""
    optional = {"unlabeled", "contamination"}  # tables of earlier versions do not have them
    missing = [column for column in [*RUN, "status", metric, *columns] if column not in {*rows, *optional}]
    if missing:
        msg = f"`rows` must have all columns of `results.csv`, got a table without {', '.join(missing)}."
        raise ValueError(msg)
    done = _measured(add_pool_columns(rows), metric)
    duplicates = done[done.duplicated(RUN)]
    if len(duplicates):
        run = ", ".join(f"{name} {duplicates.iloc[0][name]}" for name in RUN)
        msg = (
            f"`rows` must be unique by {RUN}, got {len(duplicates)} duplicates, such as {run}. Use a different method "
            "name for each setting."
        )
        raise ValueError(msg)
    outside = done[~done[metric].between(0, 1)]
    if len(outside):
        msg = f"`{metric}` must be in [0, 1], got {outside[metric].iloc[0]} and {len(outside) - 1} more values."
        raise ValueError(msg)


def _measured(rows: pd.DataFrame, metric: str) -> pd.DataFrame:
    """Return the rows that have a value of the metric."""
    return rows[(rows["status"] == "ok") & rows[metric].notna()]


def _expected(block: pd.DataFrame, metric: str) -> tuple[pd.Index, set[str]]:
    """Return the expected (category, seed) pairs, and the categories that a macro mean must contain.

    If all runs of a category failed, its runs count as missing, but the macro mean does not need the category. Whether
    it has masks is unknown.
    """
    categories = set(_measured(block, metric)["category"])
    all_failed = set(block["category"]) - set(block.loc[block["status"] == "ok", "category"])
    cells = block[block["category"].isin(categories | all_failed)]
    return pd.MultiIndex.from_frame(cells[CELL].drop_duplicates()), categories


def _methods(rows: pd.DataFrame, group: Sequence) -> set[str]:
    """Return the methods that have runs of the dataset with the unlabeled images of a group, at any k."""
    dataset, _, unlabeled, contamination = group
    is_same = (rows["unlabeled"] == unlabeled) & (rows["contamination"] == contamination)
    return set(rows.loc[is_same & (rows["dataset"] == dataset), "method"])


def _planned(
    cells: pd.Index,
    planned: pd.DataFrame | None,
    group: Sequence,
    *methods: str,
) -> pd.Index:
    """Return the (category, seed) pairs that are planned for all of the given methods."""
    if planned is None:
        return cells
    block = add_pool_columns(planned)
    for name, value in zip(GROUP, group, strict=True):
        block = block[block[name] == value]
    for method in methods:
        cells = cells.intersection(pd.MultiIndex.from_frame(block.loc[block["method"] == method, CELL]))
    return cells


def _bounds(record: Mapping[str, Any], *, minimum: float) -> dict[str, float]:
    """Return the interval clipped to its range. It is NaN for k = all if the values do not depend on the seed."""
    low, high = np.clip((record["low"], record["high"]), minimum, 1)
    is_point = as_number(record["k_shot"]) == inf and high - low < TOLERANCE
    return {"low": np.nan, "high": np.nan} if is_point else {"low": low, "high": high}


def _macro(values: pd.Series, categories: set[str], **interval: float) -> dict:
    """Return the macro mean, interval and standard deviations of values with the index (category, seed)."""
    counts = {"categories": 0, "runs": len(values)}
    undefined = dict.fromkeys(("mean", "low", "high", "seed_std", "std"), np.nan)
    if values.empty:
        return undefined | {"worst_category": "", "worst": np.nan} | counts
    values = values.sort_index()
    means = values.groupby("category").mean()
    worst = {"worst_category": means.idxmin(), "worst": means.min()}
    counts["categories"] = len(means)
    if set(means.index) != categories:
        return undefined | worst | counts
    samples = [sample.to_numpy() for _, sample in values.groupby("category")]
    low, high = macro_interval(samples, **interval)  # type: ignore[arg-type]
    by_seed = values.unstack("category").dropna().mean(axis=1)  # noqa: PD010  only seeds that all categories have
    deviations = {"seed_std": by_seed.std(), "std": means.std()}
    return {"mean": means.mean(), "low": low, "high": high} | deviations | worst | counts
