# Copyright (C) 2026 anomalib-fewshot contributors
# SPDX-License-Identifier: Apache-2.0

"""Sentences of the report: the best method at each k, by how much and how sure, and warnings to read first."""

from collections.abc import Iterator
from dataclasses import dataclass
from math import inf

import pandas as pd

from .statistics import paired_differences
from .tables import format_interval, format_k, format_quantity, format_score, join

MAIN = "image_AUROC"  # the metric that methods are ranked by
NOT_SIGNIFICANT = "not significant"
READING = [
    (
        "Macro mean",
        (
            "The mean over seeds in each category, then the mean over categories: scores of different categories are "
            "never pooled. A method that lacks a category has none, since a mean over fewer categories is another "
            "quantity."
        ),
    ),
    (
        "False alarms and recall",
        (
            "The parts of the normal and of the anomalous test images that are above the model's threshold. A rate "
            "that is guaranteed holds on average over supports of exchangeable images: single runs are above and below."
        ),
    ),
    (
        "k and seed",
        (
            "k is the number of normal images in the support; a seed names one choice of them. All methods get the "
            "same images for the same category, k and seed. With k = all a seed names their order alone: an "
            "interval says how much chance in the training matters, and there is none where a seed changes nothing."
        ),
    ),
    (
        "95 % interval",
        (
            "A bootstrap over seeds within each category, widened for small numbers of seeds. It says how much the "
            "choice of supports matters for these categories and these test images, and not what another data set "
            "would give. It is not corrected for how many methods are compared, nor for the best having been picked "
            "with the same numbers."
        ),
    ),
    (
        "Paired difference, significant",
        (
            "The mean difference between two methods on the same category, seed and support. It is "
            "significant if its interval does not hold 0. A difference that is not significant does not show that two "
            "methods are equal."
        ),
    ),
    (
        "Won, tied, lost",
        "Pairs of runs; a tie is a difference of at most 0.005.",
    ),
    (
        "± over seeds, over categories",
        "Standard deviations. The first is luck with the supports; the second shows how unlike the categories are.",
    ),
    (
        "Image F1",
        (
            "The F1 score at a threshold. A threshold from the test images has seen their labels: its F1 is "
            "optimistic, and not comparable with one from other images."
        ),
    ),
    (
        "False alarms",
        (
            "No rate of false alarms follows from a few normal images: to hold one of at most 10, 5 or 1 % with 95 % "
            "confidence needs 29, 59 or 299 held-out normal images without an alarm."
        ),
    ),
    (
        "Cost",
        (
            "Medians over runs on the device and with the number of threads that are named; latency after warm-up, "
            "one image at a time. Memory is by how much the process grows at most while it trains and tests."
        ),
    ),
]


@dataclass(frozen=True)
class ReportStatement:
    """The result at one k: the best method with its mean, the rest of the sentence, and notes below."""

    k_shot: str
    best: str
    text: str
    notes: list[str]


def find(rows: pd.DataFrame, summary: pd.DataFrame, baseline: str) -> list[ReportStatement]:
    """Return a finding for each k of one dataset.

    Args:
        rows (pd.DataFrame): The runs of one dataset.
        summary (pd.DataFrame): Its summary by the main metric.
        baseline (str): Name of the baseline.
    """
    return [
        _find(rows[rows["k_shot"] == k], ranked.sort_values(["mean", "method"], ascending=[False, True]), baseline)
        for k, ranked in summary.groupby("k_shot")
    ]


def _find(rows: pd.DataFrame, ranked: pd.DataFrame, baseline: str) -> ReportStatement:
    k = format_k(ranked["k_shot"].iloc[0])
    whole = ranked.dropna(subset="mean")
    partial = [str(method) for method in ranked.loc[ranked["mean"].isna() & (ranked["runs"] > 0), "method"]]
    notes = [f"Without a mean, as a category lacks: {join(partial)}."] if partial else []
    if whole.empty:
        return ReportStatement(k, "", "No method has a mean over all categories.", notes)
    best = whole.iloc[0]
    notes.insert(0, _cost(rows[(rows["method"] == best["method"]) & (rows["status"] == "ok")], best["method"]))
    name = f"{best['method']} {format_score(best['mean'])}"
    if len(whole) == 1:
        alone = ", ".join(part for part in (format_interval(best), "with no other to compare") if part)
        return ReportStatement(k, name, f" {alone}.", notes)
    differences = paired_differences(rows, best["method"], MAIN).set_index("method")
    runner_up, *others = whole["method"].iloc[1:]
    if baseline in others:
        notes.insert(0, f"Baseline: {_behind(baseline, differences.loc[baseline])}.")
    close = [method for method in others if _doubt(differences.loc[method]) == NOT_SIGNIFICANT]
    if close:
        notes.insert(0, f"No significant difference to {best['method']} either: {join(close)}.")
    clear = not _doubt(differences.loc[runner_up])
    text = f" {'is best' if clear else 'has the highest mean'}; {_behind(runner_up, differences.loc[runner_up])}."
    return ReportStatement(k, name, text, notes)


def _doubt(difference: pd.Series) -> str:
    """Return the reason why a difference says nothing, empty if it does."""
    if pd.isna(difference["mean"]):
        return "no common supports in every category"
    if pd.isna(difference["low"]):
        is_fixed = difference["k_shot"] == inf and difference["runs"] > difference["categories"]
        return "no interval, as a seed changes nothing" if is_fixed else "no interval, as a category has one seed"
    return NOT_SIGNIFICANT if difference["low"] <= 0 <= difference["high"] else ""


def _behind(method: str, difference: pd.Series) -> str:
    place = "behind" if difference["mean"] <= 0 else "ahead on the pairs"
    size = "next" if pd.isna(difference["mean"]) else f"{format_score(abs(difference['mean']))} {place}"
    pairs = f"{difference['runs']} paired {'run' if difference['runs'] == 1 else 'runs'}"
    parts = [f"{method} is {size}", format_interval(difference), pairs, _doubt(difference)]
    return ", ".join(part for part in parts if part)


def _cost(runs: pd.DataFrame, method: str) -> str:
    machines = zip(runs["device"], runs["threads"], strict=True)
    where = join([f"{device}, {threads:g} {'thread' if threads == 1 else 'threads'}" for device, threads in machines])
    fit, latency = runs["fit_seconds"].median(), runs["latency_p50_ms"].median()
    each = "" if pd.isna(latency) else f" and {format_quantity(latency)} ms an image"
    return f"{method} takes {format_quantity(fit)} s to fit{each} ({where})."


def find_warnings(rows: pd.DataFrame, summaries: pd.DataFrame, baseline: str) -> list[str]:
    """Return what to know before the numbers: runs that failed or lack, and figures that are not comparable.

    Args:
        rows (pd.DataFrame): All runs.
        summaries (pd.DataFrame): The summary by the main metric of all datasets.
        baseline (str): Name of the baseline.
    """
    done = rows[rows["status"] == "ok"]
    return [
        *_without_baseline(rows, baseline),
        *_failures(rows, done),
        *_mixed_versions(done),
        *_mixed_machines(done),
        *_mixed_images(done),
        *_lacking_runs(done, summaries),
        *_lacking_categories(rows, done),
    ]


def _without_baseline(rows: pd.DataFrame, baseline: str) -> Iterator[str]:
    for dataset in sorted(set(rows["dataset"]) - set(rows.loc[rows["method"] == baseline, "dataset"])):
        yield f"{dataset}: no run of the baseline, {baseline}, is there, and none is compared."


def _failures(rows: pd.DataFrame, done: pd.DataFrame) -> Iterator[str]:
    if len(done) < len(rows):
        yield f"{len(rows) - len(done)} of {len(rows)} runs failed. They are listed under Failed runs."


def _mixed_versions(done: pd.DataFrame) -> Iterator[str]:
    for name in ("torch", "anomalib", "anomalib_fewshot"):
        versions = sorted(set(done[name].dropna()), key=str)
        if len(versions) > 1:
            yield f"The runs are from more than one version of {name}: {join(versions)}."


def _mixed_machines(done: pd.DataFrame) -> Iterator[str]:
    machines = done[["device", "threads"]].drop_duplicates().sort_values(["device", "threads"])
    if len(machines) > 1:
        text = "; ".join(f"{machine.device}, {machine.threads:g} threads" for machine in machines.itertuples())
        yield f"The runs are from more than one device or number of threads ({text}): compare times only within one."


def _mixed_images(done: pd.DataFrame) -> Iterator[str]:
    cells = done.groupby(["dataset", "category", "k_shot", "seed"])
    mixed = sum(len(set(supports.dropna())) > 1 for _, supports in cells["support"])
    if mixed:
        yield f"In {mixed} cells methods had other support images; those pairs are left out of the differences."
    tests = done.groupby(["dataset", "category"])[["test_normal", "test_anomalous"]].nunique().max(axis=1)
    for dataset, category in tests[tests > 1].index:
        yield f"{dataset} {category} was tested on more than one set of images: its numbers are not comparable."


def _lacking_runs(done: pd.DataFrame, summaries: pd.DataFrame) -> Iterator[str]:
    lacking = summaries[(summaries["missing"] > 0) & summaries["dataset"].isin(done["dataset"])]
    for dataset, block in lacking.groupby("dataset"):
        parts = [
            f"{row.method} {row.missing} of {row.runs + row.missing} at k = {format_k(row.k_shot)}"
            for row in block.itertuples()
        ]
        yield f"{dataset}: runs without an image AUROC, {'; '.join(parts)}."


def _lacking_categories(rows: pd.DataFrame, done: pd.DataFrame) -> Iterator[str]:
    for dataset, block in done.groupby("dataset"):
        everything = set(rows.loc[rows["dataset"] == dataset, "category"])
        for k, categories in block.groupby("k_shot")["category"].unique().items():
            if absent := sorted(everything.difference(categories)):
                yield (
                    f"{dataset}, k = {format_k(k)}: no result in {join(absent)}; the means are over the other "
                    f"{len(categories)} categories, and not comparable with those of another k."
                )
        if len(set(block["seed"])) == 1:
            yield f"{dataset}: one seed, so there are no intervals; the choice of supports may explain any difference."
