# Copyright (C) 2026 anomalib-fewshot contributors
# SPDX-License-Identifier: Apache-2.0

"""Sentences of the report: the best method at each k with its margin and significance, and warnings."""

from collections.abc import Iterator
from dataclasses import dataclass
from math import inf

import pandas as pd

from anomalib_fewshot.pipelines.plan.job import format_pool

from .statistics import paired_differences
from .tables import format_interval, format_k, format_quantity, format_score, join

MAIN_METRIC = "image_AUROC"  # the metric that ranks the methods
NOT_SIGNIFICANT = "not significant"
ENOUGH_SEEDS = 5
GLOSSARY = [
    (
        "Macro mean",
        (
            "The mean over seeds within each category, then the mean over categories. Scores of different categories "
            "are never pooled. A method with a missing category has no macro mean, because means over different "
            "categories are not comparable."
        ),
    ),
    (
        "False alarms and recall",
        (
            "The fractions of normal and of anomalous test images above the model's threshold. With k normal images, a "
            "calibrated threshold guarantees a false-alarm rate on average over support sets. The guarantee needs no "
            "test images, but new normal images must resemble the support set. Single runs can be above or below it. "
            "A threshold from one normal image gives no verdict, so the cells at k = 1 are empty."
        ),
    ),
    (
        "k and seed",
        (
            "k is the number of normal images in the support set, and the seed selects them. All methods get the same "
            "images for the same category, k and seed. With k = all, the seed changes only the order of the images. "
            "The interval then shows the randomness of training. It is empty if the seed does not change the result."
        ),
    ),
    (
        "Unlabeled images",
        (
            "Images without labels that a method gets in addition to the support set, drawn from the other normal "
            "training images. A contamination adds anomalous test images, which are then not tested. Results with "
            "different contaminations are therefore means over slightly different test images. Memory banks of "
            "anomalib are fitted to the support set and the unlabeled images."
        ),
    ),
    (
        "95 % interval",
        (
            "A bootstrap over seeds within each category, widened for small numbers of seeds. It shows the effect of "
            "the choice of support sets for these categories and test images. It does not generalize to other "
            "datasets. Intervals end at the limits of the metric: 0 and 1 for scores, -1 and 1 for differences."
        ),
    ),
    (
        "95 % interval over test images",
        (
            "A bootstrap over the normal and the anomalous test images of each category, with fixed support sets. It "
            "shows the effect of the choice of test images. A comparison with results on other test images needs this "
            "interval in addition to that over support sets."
        ),
    ),
    (
        "ROC and precision-recall curves",
        (
            "Curves of each run, interpolated (linear for ROC, the highest precision with at least this recall), then "
            "averaged over support sets and categories. Precision depends on the share of anomalous test images."
        ),
    ),
    (
        "Paired difference, significant",
        (
            "The mean difference between two methods on the same category, seed and support set: the first method "
            "minus the second or the baseline, so + means that the first is better. It is significant if its interval "
            "excludes 0. A difference that is not significant does not prove that two methods are equal."
        ),
    ),
    (
        "Several comparisons",
        (
            "The intervals of differences are wider than for a single comparison (Bonferroni over all pairs of methods "
            "at one k), so that all of them hold together with 95 % confidence. Intervals of single means are not "
            "corrected."
        ),
    ),
    (
        "Wins, ties, losses",
        "Number of paired runs. A tie is a difference of at most 0.005.",
    ),
    (
        "± over seeds, over categories",
        "Standard deviations. The first shows the effect of the support set, the second the variation of categories.",
    ),
    (
        "Image F1",
        (
            "The F1 score at the threshold. A threshold computed from test images uses their labels, so its F1 score, "
            "false alarms and recall are optimistic and not comparable with the others."
        ),
    ),
    (
        "Verifying the rate of one fitted model",
        (
            "The guarantee is an average over support sets. To verify that one fitted model has a false-alarm rate of "
            "at most 10, 5 or 1 % with 95 % confidence, test 29, 59 or 299 held-out normal images without a false "
            "alarm."
        ),
    ),
    (
        "Cost",
        (
            "Medians over runs on the given device and number of threads. Latency is measured after a warm-up, one "
            "image at a time. Memory is the peak growth of the process during training and test."
        ),
    ),
]


@dataclass(frozen=True)
class ReportStatement:
    """The result at one k: the best method with its mean, the rest of the sentence, and notes."""

    k_shot: str
    best: str
    text: str
    notes: list[str]


def make_statements(rows: pd.DataFrame, summary: pd.DataFrame, baseline: str) -> list[ReportStatement]:
    """Return one statement per k of a dataset.

    Args:
        rows (pd.DataFrame): The runs of one dataset.
        summary (pd.DataFrame): Summary of the main metric.
        baseline (str): Name of the baseline.
    """
    statements = []
    for k, block in summary.groupby("k_shot"):
        ranked = block.sort_values(["mean", "method"], ascending=[False, True])
        statements.append(_make_statement(rows[rows["k_shot"] == k], ranked, baseline))
    return statements


def _make_statement(rows: pd.DataFrame, ranked: pd.DataFrame, baseline: str) -> ReportStatement:
    k = format_k(ranked["k_shot"].iloc[0])
    complete = ranked.dropna(subset="mean")
    partial = [str(method) for method in ranked.loc[ranked["mean"].isna() & (ranked["runs"] > 0), "method"]]
    notes = [f"No mean because a category is missing: {join(partial)}."] if partial else []
    if complete.empty:
        return ReportStatement(k, "", "No method has a mean over all categories.", notes)
    best = complete.iloc[0]
    notes.insert(0, _describe_cost(rows[(rows["method"] == best["method"]) & (rows["status"] == "ok")], best["method"]))
    name = f"{best['method']} {format_score(best['mean'])}"
    if len(complete) == 1:
        interval = f" {format_interval(best)}".rstrip()
        return ReportStatement(k, name, f"{interval}, no other method to compare with.", notes)
    runner_up, *lower_ranked = complete["method"].iloc[1:]
    from_best = paired_differences(rows, best["method"], MAIN_METRIC).set_index("method")
    if baseline in lower_ranked:
        from_baseline = _reverse(from_best.loc[baseline])
        notes.insert(0, f"Baseline: {_describe_difference(best['method'], baseline, from_baseline)}.")
    similar = [method for method in lower_ranked if _caveat(from_best.loc[method]) == NOT_SIGNIFICANT]
    if similar:
        notes.insert(0, f"Also not significantly different from {best['method']}: {join(similar)}.")
    difference = from_best.loc[runner_up]
    claim = "has the highest mean" if _caveat(difference) else "is best"
    if best["method"] == baseline:
        return ReportStatement(k, name, f" {claim}; {_describe_difference(runner_up, baseline, difference)}.", notes)
    comparison = _describe_difference(best["method"], runner_up, _reverse(difference))
    return ReportStatement(k, name, f" {claim}; {comparison}.", notes)


def _reverse(difference: pd.Series) -> pd.Series:
    """Return the difference of two methods in the other direction."""
    reverse = difference.copy()
    reverse["mean"], reverse["low"], reverse["high"] = -difference["mean"], -difference["high"], -difference["low"]
    return reverse


def _caveat(difference: pd.Series) -> str:
    """Return why a difference is not conclusive. Empty if it is significant."""
    if pd.isna(difference["mean"]):
        return "a category has no common support sets"
    if pd.isna(difference["low"]):
        is_fixed = difference["k_shot"] == inf and difference["runs"] > difference["categories"]
        return "no interval because results do not depend on the seed" if is_fixed else "no interval with a single seed"
    return NOT_SIGNIFICANT if difference["low"] <= 0 <= difference["high"] else ""


def _describe_difference(method: str, other: str, difference: pd.Series) -> str:
    """Return the difference ``method`` minus ``other`` as text, where + means that ``method`` is better."""
    pairs = f"{difference['runs']} paired {'run' if difference['runs'] == 1 else 'runs'}"
    interval = format_interval(difference, sign=True)
    if pd.isna(difference["mean"]):
        parts = [f"no difference between {method} and {other}", pairs, _caveat(difference)]
    else:
        size = f"{method} minus {other} is {format_score(difference['mean'], sign=True)}"
        parts = [size, interval, pairs, _caveat(difference)]
    return ", ".join(part for part in parts if part)


def _describe_cost(runs: pd.DataFrame, method: str) -> str:
    machines = []
    for device, threads in zip(runs["device"], runs["threads"], strict=True):
        machines.append(f"{device}, {threads:g} {'thread' if threads == 1 else 'threads'}")
    fit, latency = runs["fit_seconds"].median(), runs["latency_p50_ms"].median()
    per_image = "" if pd.isna(latency) else f" and {format_quantity(latency)} ms per image"
    return f"{method} takes {format_quantity(fit)} s to fit{per_image} ({join(machines)})."


def make_warnings(rows: pd.DataFrame, summaries: pd.DataFrame, baseline: str) -> list[str]:
    """Return the warnings of a report: failed or missing runs, and results that are not comparable.

    Args:
        rows (pd.DataFrame): All runs.
        summaries (pd.DataFrame): Summary of the main metric for all datasets.
        baseline (str): Name of the baseline.
    """
    done = rows[rows["status"] == "ok"]
    return [
        *_few_seeds(done),
        *_missing_baseline(rows, baseline),
        *_failures(rows, done),
        *_mixed_versions(done),
        *_mixed_machines(done),
        *_mixed_images(done),
        *_missing_runs(done, summaries),
        *_missing_categories(rows, done),
    ]


def _missing_baseline(rows: pd.DataFrame, baseline: str) -> Iterator[str]:
    for dataset in sorted(set(rows["dataset"]) - set(rows.loc[rows["method"] == baseline, "dataset"])):
        yield f"{dataset}: the baseline {baseline} has no runs, so the report contains no paired differences."


def _failures(rows: pd.DataFrame, done: pd.DataFrame) -> Iterator[str]:
    if len(done) < len(rows):
        yield f"{len(rows) - len(done)} of {len(rows)} runs failed. See the section Failed runs."


def _mixed_versions(done: pd.DataFrame) -> Iterator[str]:
    for name in ("torch", "anomalib", "anomalib_fewshot"):
        versions = sorted(set(done[name].dropna()), key=str)
        if len(versions) > 1:
            yield f"The runs use different versions of {name}: {join(versions)}."


def _mixed_machines(done: pd.DataFrame) -> Iterator[str]:
    machines = done[["device", "threads"]].drop_duplicates().sort_values(["device", "threads"])
    if len(machines) > 1:
        text = "; ".join(f"{machine.device}, {machine.threads:g} threads" for machine in machines.itertuples())
        yield f"The runs use different devices or numbers of threads ({text}). Compare times only within one of them."


def _mixed_images(done: pd.DataFrame) -> Iterator[str]:
    pool = ["unlabeled", "contamination"]
    cells = done.groupby(["dataset", "category", "k_shot", "seed", *pool])
    mixed = sum(len(set(supports.dropna())) > 1 for _, supports in cells["support"])
    if mixed:
        yield f"In {mixed} cells, the methods used different support images. Paired differences exclude these cells."
    tests = done.groupby(["dataset", "category", *pool])[["test_normal", "test_anomalous"]].nunique().max(axis=1)
    for dataset, category in dict.fromkeys((dataset, category) for dataset, category, *_ in tests[tests > 1].index):
        yield f"{dataset} {category}: the test images differ between runs, so the results are not comparable."


def _missing_runs(done: pd.DataFrame, summaries: pd.DataFrame) -> Iterator[str]:
    incomplete = summaries[(summaries["missing"] > 0) & summaries["dataset"].isin(done["dataset"])]
    for dataset, block in incomplete.groupby("dataset"):
        parts = [
            f"{row.method} {row.missing} of {row.runs + row.missing} at k = {format_k(row.k_shot)}"
            + _with_pool(row.unlabeled, row.contamination)
            for row in block.itertuples()
        ]
        yield f"{dataset}: runs without an image AUROC: {'; '.join(parts)}."


def _with_pool(unlabeled: int, contamination: float) -> str:
    return f" with {format_pool(unlabeled, contamination)}" if unlabeled else ""


def _missing_categories(rows: pd.DataFrame, done: pd.DataFrame) -> Iterator[str]:
    for dataset, block in done.groupby("dataset"):
        planned = set(rows.loc[rows["dataset"] == dataset, "category"])
        for (k, *pool), categories in (
            block.groupby(["k_shot", "unlabeled", "contamination"])["category"].unique().items()
        ):
            if missing := sorted(planned.difference(categories)):
                where = f"{dataset}, k = {format_k(k)}{_with_pool(*pool)}"
                yield (
                    f"{where}: no result for {join(missing)}. The means use only the other "
                    f"{len(categories)} categories and are not comparable with other k."
                )


def _few_seeds(done: pd.DataFrame) -> Iterator[str]:
    for dataset, block in done.groupby("dataset"):
        seeds = block["seed"].nunique()
        if seeds == 1:
            yield f"{dataset}: intervals need two or more seeds. The choice of support sets may explain differences."
        elif seeds < ENOUGH_SEEDS:
            yield (
                f"{dataset}: only {seeds} seeds. The intervals are very wide: even a method that wins every pair may "
                f"not be significantly better. Use {ENOUGH_SEEDS} or more seeds."
            )
