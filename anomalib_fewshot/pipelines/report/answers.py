# Copyright (C) 2026 anomalib-fewshot contributors
# SPDX-License-Identifier: Apache-2.0

"""Sentences of the report: which method is best at each k, by how much and how sure, and what to know before that."""

from dataclasses import dataclass

import pandas as pd

from anomalib_fewshot.pipelines.shots import shots
from anomalib_fewshot.pipelines.statistics import paired_differences

from .tables import amount, fraction, interval, join

MAIN = "image_AUROC"  # what methods are ranked by
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
        "k and seed",
        (
            "k is the number of normal images learnt from; a seed names one choice of them. All methods get the same "
            "images for the same category, k and seed. Where all are learnt from, a seed names their order alone, "
            "and an interval says how much chance in the training matters."
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
        "Paired difference, told apart",
        (
            "The mean difference between two methods on the same category, seed and support. Two methods are told "
            "apart if its interval does not hold 0. That they are not told apart does not show that they are equal."
        ),
    ),
    (
        "Won, tied, lost",
        "Pairs of runs; a tie is a difference of at most 0.005.",
    ),
    (
        "± over seeds, over categories",
        "Standard deviations. The first is luck with the supports; the second is how unlike the categories are.",
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
            "confidence needs 29, 59 or 299 normal images without an alarm that the detector has not learnt from."
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
class Answer:
    """What one k says: the best method with its mean, the rest of the sentence, and lines of what goes with it."""

    k_shot: str
    best: str
    finding: str
    lines: list[str]


def answers(rows: pd.DataFrame, summary: pd.DataFrame, baseline: str) -> list[Answer]:
    """Return an answer for each k of one dataset.

    Args:
        rows (pd.DataFrame): The runs of one dataset.
        summary (pd.DataFrame): Its summary by the main metric.
        baseline (str): Name of the baseline.
    """
    return [
        _answer(rows[rows["k_shot"] == k], ranked.sort_values(["mean", "method"], ascending=[False, True]), baseline)
        for k, ranked in summary.groupby("k_shot")
    ]


def _answer(rows: pd.DataFrame, ranked: pd.DataFrame, baseline: str) -> Answer:
    k = shots(ranked["k_shot"].iloc[0])
    whole = ranked.dropna(subset="mean")
    partial = [str(method) for method in ranked.loc[ranked["mean"].isna() & (ranked["runs"] > 0), "method"]]
    lines = [f"Without a mean, as a category lacks: {join(partial)}."] if partial else []
    if whole.empty:
        return Answer(k, "", "No method has a mean over all categories.", lines)
    best = whole.iloc[0]
    lines.insert(0, _cost(rows[(rows["method"] == best["method"]) & (rows["status"] == "ok")], best["method"]))
    name = f"{best['method']} {fraction(best['mean'])}"
    if len(whole) == 1:
        return Answer(k, name, f" {interval(best)}, with no other to compare.", lines)
    differences = paired_differences(rows, best["method"], MAIN).set_index("method")
    runner_up, *others = whole["method"].iloc[1:]
    if baseline in others:
        lines.insert(0, f"Baseline: {_behind(baseline, differences.loc[baseline])}.")
    close = [method for method in others if _verdict(differences.loc[method]) == "not told apart"]
    if close:
        lines.insert(0, f"Not told apart from {best['method']} either: {join(close)}.")
    clear = _verdict(differences.loc[runner_up]) == ""
    finding = f" {'is best' if clear else 'has the highest mean'}; {_behind(runner_up, differences.loc[runner_up])}."
    return Answer(k, name, finding, lines)


def _verdict(difference: pd.Series) -> str:
    """Return in words why a difference tells nothing, and no words if it does."""
    if pd.isna(difference["mean"]):
        return "no common supports in every category"
    if pd.isna(difference["low"]):
        return "no interval, as a category has one seed"
    return "not told apart" if difference["low"] <= 0 <= difference["high"] else ""


def _behind(method: str, difference: pd.Series) -> str:
    place = "behind" if difference["mean"] <= 0 else "ahead on the pairs"
    size = "next" if pd.isna(difference["mean"]) else f"{fraction(abs(difference['mean']))} {place}"
    pairs = f"{difference['runs']} paired {'run' if difference['runs'] == 1 else 'runs'}"
    parts = [f"{method} is {size}", interval(difference), pairs, _verdict(difference)]
    return ", ".join(part for part in parts if part)


def _cost(runs: pd.DataFrame, method: str) -> str:
    places = zip(runs["device"], runs["threads"], strict=True)
    where = join([f"{device}, {threads:g} {'thread' if threads == 1 else 'threads'}" for device, threads in places])
    fit, latency = runs["fit_seconds"].median(), runs["latency_p50_ms"].median()
    each = "" if pd.isna(latency) else f" and {amount(latency)} ms an image"
    return f"{method} takes {amount(fit)} s to fit{each} ({where})."


def cautions(rows: pd.DataFrame, summaries: pd.DataFrame, baseline: str) -> list[str]:
    """Return what a reader must know before the numbers: what failed, lacks or is not comparable.

    Args:
        rows (pd.DataFrame): All runs.
        summaries (pd.DataFrame): The summary by the main metric of all datasets.
        baseline (str): Name of the baseline.
    """
    done = rows[rows["status"] == "ok"]
    lacking = sorted(set(rows["dataset"]) - set(rows.loc[rows["method"] == baseline, "dataset"]))
    notes = [f"{dataset}: no run of the baseline, {baseline}, is there, and none is compared." for dataset in lacking]
    if len(done) < len(rows):
        notes.append(f"{len(rows) - len(done)} of {len(rows)} runs failed. They are listed under Failed runs.")
    versions = {name: sorted(set(done[name].dropna()), key=str) for name in ("torch", "anomalib", "anomalib_fewshot")}
    notes += [
        f"The runs are from more than one version of {name}: {join(several)}."
        for name, several in versions.items()
        if len(several) > 1
    ]
    places = done[["device", "threads"]].drop_duplicates().sort_values(["device", "threads"])
    if len(places) > 1:
        text = "; ".join(f"{place.device}, {place.threads:g} threads" for place in places.itertuples())
        notes.append(
            f"The runs are from more than one device or number of threads ({text}): compare times only within one.",
        )
    cells = done.groupby(["dataset", "category", "k_shot", "seed"])
    mixed = sum(len(set(supports.dropna())) > 1 for _, supports in cells["support"])
    if mixed:
        notes.append(f"In {mixed} cells methods had other support images; those pairs are left out of the differences.")
    tests = done.groupby(["dataset", "category"])[["test_normal", "test_anomalous"]].nunique().max(axis=1)
    for dataset, category in tests[tests > 1].index:
        notes.append(f"{dataset} {category} was tested on more than one set of images: its numbers are not comparable.")
    lacks = (summaries["missing"] > 0) & summaries["dataset"].isin(done["dataset"])
    for dataset, lacking in summaries[lacks].groupby("dataset"):
        parts = [
            f"{row.method} {row.missing} of {row.runs + row.missing} at k = {shots(row.k_shot)}"
            for row in lacking.itertuples()
        ]
        notes.append(f"{dataset}: runs without an image AUROC, {'; '.join(parts)}.")
    for dataset, block in done.groupby("dataset"):
        everything = set(rows.loc[rows["dataset"] == dataset, "category"])
        for k, categories in block.groupby("k_shot")["category"].unique().items():
            if absent := sorted(everything.difference(categories)):
                notes.append(
                    f"{dataset}, k = {shots(k)}: no result in {join(absent)}; the means are over the other "
                    f"{len(categories)} categories, and not comparable with those of another k.",
                )
        if len(set(block["seed"])) == 1:
            notes.append(
                f"{dataset}: one seed, so there are no intervals; the choice of supports may explain any difference.",
            )
    return notes
