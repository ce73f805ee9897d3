# Copyright (C) 2026 anomalib-fewshot contributors
# SPDX-License-Identifier: Apache-2.0

"""The report of a few-shot benchmark, as one HTML file that needs nothing else, and as Markdown."""

import base64
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import yaml
from markupsafe import Markup

from anomalib_fewshot._templates import template_environment
from anomalib_fewshot.pipelines.plan.job import ALL, Job, as_number
from anomalib_fewshot.pipelines.results.row import columns
from anomalib_fewshot.pipelines.results.store import Store

from . import figures, tables
from .findings import MAIN, READING, ReportStatement, find, find_warnings
from .statistics import by_category, check_rows, paired_differences, summarize
from .tables import Cell, Table, format_k

EXAMPLES = {
    "hit": "the anomalous image with the highest score, beside its heat map",
    "miss": "the anomalous image with the lowest score, beside its heat map",
    "false_alarm": "the normal image with the highest score, beside its heat map",
}
FEATURES = {"features": "the support and the test images as it sees them, on a plane"}
MAX_NAMES = 16  # images of a support that are named; the manifest has them all


@dataclass(frozen=True)
class Example:
    """A picture of a run: method, category, kind, a text for those who do not see it, and the picture as a data URI."""

    method: str
    category: str
    title: str
    text: str
    uri: str


@dataclass(frozen=True)
class Section:
    """The part of a report about one dataset."""

    name: str
    about: str
    findings: list[ReportStatement]
    legends: list[list[tuple[str, str]]]  # of the curves and of the costs
    means: list[Table]
    curves: list[str]
    differences: Table | None
    forests: list[tuple[str, str]]
    ends: tuple[str, str]
    heats: list[Table]
    costs: Table | None
    scatters: list[str]
    example_k: str
    examples: list[Example]
    feature_k: str
    features: list[Example]
    measures: Table | None


def write_report(
    store: Store,
    rows: pd.DataFrame,
    *,
    baseline: str,
    config: Mapping[str, Any],
    environment: Mapping[str, Any],
    jobs: Sequence[Job] | None = None,
) -> Path:
    """Write ``report.html`` and ``report.md`` into the folder of a sweep. The same input gives the same bytes.

    Args:
        store (Store): Folder of the sweep. Its supports and examples are shown, if there are any.
        rows (pd.DataFrame): The table ``results.csv``, one row a run; read hashes and keys as text.
        baseline (str): Name of the method that others are compared with.
        config (Mapping[str, Any]): All settings of the sweep.
        environment (Mapping[str, Any]): Versions, platform and processor.
        jobs (Sequence[Job] | None): The runs that were to be made, of which some may lack. Defaults to ``None``: those
            that any method has.

    Returns:
        Path: The HTML file.

    Raises:
        ValueError: If there are no rows, a column is missing, a run is there twice or a value is out of range.
    """
    if rows.empty:
        msg = "`rows` must have at least one run, got none."
        raise ValueError(msg)
    for metric in tables.METRICS:
        check_rows(rows, metric, *columns())
    rows = rows.assign(k_shot=rows["k_shot"].map(as_number))
    rows = rows.sort_values(["dataset", "category", "k_shot", "seed", "method"])
    content = _content(store, rows, baseline, None if jobs is None else _planned(jobs))
    content["reading"] = READING
    content["config"] = yaml.safe_dump(_plain(config), sort_keys=False, allow_unicode=True)
    content["environment"] = {str(name): str(value) for name, value in _plain(environment).items()}
    templates = template_environment("anomalib_fewshot.pipelines.report")  # Markdown has a filter of its own
    templates.filters |= {"md": _markdown, "breakable": _breakable}
    pages = {suffix: templates.get_template(f"report.{suffix}.j2").render(content) for suffix in ("html", "md")}
    return store.write_report(pages)


def _planned(jobs: Sequence[Job]) -> pd.DataFrame:
    """Return the name of each run, a row a category."""
    return pd.DataFrame([
        {"method": job.method, "dataset": job.dataset, "category": category, "k_shot": as_number(job.k_shot),
         "seed": job.seed}
        for job in jobs
        for category in job.test_categories
    ])  # fmt: skip


def _content(store: Store, rows: pd.DataFrame, baseline: str, planned: pd.DataFrame | None) -> dict[str, Any]:
    """Return all that the templates show, but for the settings."""
    summaries = {metric: summarize(rows, metric, planned=planned) for metric in tables.METRICS}
    failed = rows[rows["status"] != "ok"]
    return {
        "baseline": baseline,
        "overview": _overview(rows),
        "warnings": find_warnings(rows, summaries[MAIN], baseline),
        "sections": [
            _section(
                store,
                rows[rows["dataset"] == name],
                {metric: s[s["dataset"] == name] for metric, s in summaries.items()},
                baseline,
                f"d{number}",
            )
            for number, name in enumerate(sorted(rows["dataset"].unique()))
        ],
        "failed": Table(
            "",
            ["dataset", "category", "k", "seed", "method", "error"],
            [
                [
                    Cell(row.dataset),
                    Cell(row.category),
                    Cell(format_k(row.k_shot)),
                    Cell(str(row.seed)),
                    Cell(row.method),
                    Cell(tables.join([row.error])),
                ]
                for row in failed.itertuples()
            ],
            text_columns=6,
        ),
        "supports": list(_supports(store, rows)),
        "settings": tables.settings_table(rows),
    }


def _overview(rows: pd.DataFrame) -> str:
    """Return what was run in a line."""

    def count(name: str, noun: str, plural: str = "") -> str:
        number = rows[name].nunique() if name != "category" else len(rows[["dataset", "category"]].drop_duplicates())
        return f"{number} {noun if number == 1 else plural or noun + 's'}"

    failed = int((rows["status"] != "ok").sum())
    parts = [
        f"{len(rows)} {'run' if len(rows) == 1 else 'runs'} ({failed} failed)",
        count("method", "method"),
        count("dataset", "dataset"),
        count("category", "category", "categories"),
        f"k = {', '.join(map(format_k, sorted(rows['k_shot'].unique())))}",
        count("seed", "seed"),
    ]
    finished = rows["finished"].dropna().astype(str)
    return " · ".join(parts) + (f" · finished {finished.max()[:10]}" if len(finished) else "")


def _section(
    store: Store,
    rows: pd.DataFrame,
    summaries: Mapping[str, pd.DataFrame],
    baseline: str,
    name: str,
) -> Section:
    main = summaries[MAIN]
    done = rows[rows["status"] == "ok"]
    order = main.groupby("method")["mean"].mean().reset_index().sort_values(["mean", "method"], ascending=[False, True])
    methods = list(order["method"])
    styles = figures.make_styles(methods)
    shown = [metric for metric in (MAIN, "pixel_AUROC") if summaries[metric]["mean"].notna().any()]
    differences = paired_differences(rows, baseline, MAIN)
    differences["order"] = differences["method"].map(methods.index)
    differences = differences.sort_values(["k_shot", "order"]).drop(columns="order")
    compared = differences.dropna(subset="mean")
    categories = by_category(rows, MAIN)
    ends = (categories["mean"].min(), categories["mean"].max())
    tests = {
        category: f"{block['test_normal'].max():.0f} + {block['test_anomalous'].max():.0f} images"
        for category, block in done.groupby("category")
    }
    drawn = {row.method for row in done.itertuples() if store.has_examples(str(row.key))}
    best = next((method for method in methods if method in drawn), baseline)
    example_k, examples = _pictures(store, done, list(dict.fromkeys([best, baseline])), EXAMPLES)
    feature_k, features = _pictures(store, done, methods, FEATURES)
    return Section(
        name=str(rows["dataset"].iloc[0]),
        about=f"Categories: {', '.join(sorted(rows['category'].unique()))}.",
        findings=find(rows, main, baseline) if len(done) else [],
        legends=[
            [(method, figures.swatch(styles[method], f"{name}-{part}{i}")) for i, method in enumerate(methods)]
            for part in ("curve", "cost")
        ],
        means=[tables.mean_table(summaries[metric], methods, tables.METRICS[metric].label) for metric in shown],
        curves=[
            *(
                figures.curves(summaries[metric], styles, tables.METRICS[metric].label, f"{name}-{metric}")
                for metric in shown
            ),
            *_verdict_curves(summaries, styles, name),
        ],
        differences=tables.difference_table(compared, baseline) if len(compared) else None,
        forests=[
            (
                f"k = {format_k(k)}",
                figures.forest(block, styles, baseline, _limits(compared), f"{name}-forest{format_k(k)}"),
            )
            for k, block in compared.groupby("k_shot")
        ],
        ends=(tables.format_score(ends[0]), tables.format_score(ends[1])),
        heats=[
            tables.heat_table(block, main[main["k_shot"] == k], methods, ends, tests)
            for k, block in categories.groupby("k_shot")
        ],
        costs=tables.cost_table(done, methods) if len(done) else None,
        scatters=_scatters(done, main, styles, name),
        example_k=example_k,
        examples=examples,
        feature_k=feature_k,
        features=features,
        measures=tables.measure_table(summaries, rows, methods) if shown else None,
    )


def _verdict_curves(
    summaries: Mapping[str, pd.DataFrame],
    styles: Mapping[str, figures.Style],
    name: str,
) -> Iterator[str]:
    """Draw false alarms, with the rate that was guaranteed, and recall, if thresholds guarantee anything."""
    guaranteed = summaries["guaranteed_fpr"].groupby("k_shot")["mean"].max().dropna()
    for metric, line in (("false_alarms", guaranteed), ("recall", None)) if len(guaranteed) else ():
        label = tables.METRICS[metric].label + (", dashed: guaranteed" if line is not None else "")
        yield figures.curves(summaries[metric], styles, label, f"{name}-{metric}", line)


def _limits(differences: pd.DataFrame) -> tuple[float, float]:
    """Return the ends of the axis of differences, with zero in between."""
    values = differences[["low", "high", "mean"]].to_numpy()
    low, high = min(0.0, pd.Series(values.ravel()).min()), max(0.0, pd.Series(values.ravel()).max())
    margin = 0.06 * (high - low) or 0.01
    return low - margin, high + margin


def _scatters(done: pd.DataFrame, main: pd.DataFrame, styles: Mapping[str, figures.Style], name: str) -> list[str]:
    """Return accuracy against cost at the largest k with means, if all runs are from one device."""
    means = main.dropna(subset="mean")
    if means.empty or len(done[["device", "threads"]].drop_duplicates()) > 1:
        return []
    k = means["k_shot"].max()
    means = means[means["k_shot"] == k].set_index("method")["mean"]
    drawn = []
    for cost, label in (("fit_seconds", "seconds to fit"), ("latency_p50_ms", "milliseconds an image, p50")):
        costs = done[done["k_shot"] == k].groupby("method")[cost].median()
        points = pd.DataFrame({"cost": costs, "mean": means}).dropna().rename_axis("method").reset_index()
        if len(points):
            labels = (label, f"{tables.METRICS[MAIN].label} at k = {format_k(k)}")
            drawn.append(figures.scatter(points, styles, labels, f"{name}-{cost}"))
    return drawn


def _pictures(
    store: Store,
    done: pd.DataFrame,
    methods: Sequence[str],
    kinds: Mapping[str, str],
) -> tuple[str, list[Example]]:
    """Return k and the pictures of some kinds of the runs of methods, of the largest k, methods in their order."""
    runs = done[done["method"].isin(methods)]
    runs = runs[runs["key"].map(store.has_examples).astype(bool)]
    runs = runs[runs["k_shot"] == runs["k_shot"].max()].drop_duplicates(["category", "method"])
    found = []
    for row in sorted(runs.itertuples(), key=lambda row: (row.category, methods.index(row.method))):
        pictures = store.examples(str(row.key), row.category)
        for name in filter(pictures.__contains__, kinds):
            uri = "data:image/jpeg;base64," + base64.b64encode(pictures[name]).decode()
            text = f"{row.category}, {row.method}: {kinds[name]}"
            found.append(Example(row.method, row.category, name.replace("_", " "), text, uri))
    return format_k(runs["k_shot"].max()) if found else "", found


def _supports(store: Store, rows: pd.DataFrame) -> Iterator[tuple[str, str]]:
    """Yield the name and the images of each support, several k together where the smaller begin the largest."""
    groups: dict[tuple[str, str, str], list[tuple[int, str, list[str]]]] = {}
    for k_shot, manifest in store.supports(rows.assign(k_shot=rows["k_shot"].map(format_k))):
        k = f"{ALL} ({manifest.k_shot})" if k_shot == ALL else k_shot
        support = (manifest.k_shot, k, list(manifest.images))
        groups.setdefault((manifest.dataset, manifest.category, str(manifest.seed)), []).append(support)
    for (dataset, category, seed), supports in sorted(groups.items()):
        supports.sort()
        *_, largest = supports[-1]
        nested = all(images == largest[: len(images)] for *_, images in supports)
        for some in [supports] if nested else [[support] for support in supports]:
            *_, images = some[-1]
            more = [f"and {len(images) - MAX_NAMES} more"] if len(images) > MAX_NAMES else []
            words = ", ".join(k for _, k, _ in some)
            yield f"{dataset} {category}, seed {seed}, k = {words}", ", ".join(images[:MAX_NAMES] + more)


def _plain(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values as JSON has them: tuples as lists, paths as text."""
    return json.loads(json.dumps(values, default=str))


def _markdown(text: object) -> str:
    """Return a text that GitHub shows as it is, in a table too."""
    text = re.sub(r"[ \t\r\n]+", " ", str(text)).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return re.sub(r"([\\`*_|~])", r"\\\1", text)


def _breakable(text: str) -> Markup:
    """Return a name that a browser may break where a new word begins in it."""
    return Markup("<wbr>").join(re.split(r"(?<=[a-z])(?=[A-Z][a-z])|(?<=[_=/,-])", text))  # join escapes the parts
