# Copyright (C) 2026 anomalib-fewshot contributors
# SPDX-License-Identifier: Apache-2.0

"""Report of a few-shot benchmark, as one self-contained HTML file and as Markdown."""

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
from anomalib_fewshot.pipelines.plan.job import ALL, Job, as_number, format_pool
from anomalib_fewshot.pipelines.results.row import add_pool_columns, columns
from anomalib_fewshot.pipelines.results.store import Store

from . import figures, tables
from .statements import GLOSSARY, MAIN_METRIC, ReportStatement, make_statements, make_warnings
from .statistics import by_category, check_rows, paired_differences, summarize
from .tables import Cell, Table, format_k

EXAMPLES = {
    "hit": "anomalous image with the highest score and its heat map",
    "miss": "anomalous image with the lowest score and its heat map",
    "false_alarm": "normal image with the highest score and its heat map",
}
FEATURES = {"features": "projected features of support and test images"}
MAX_NAMES = 16  # file names shown per support set; the manifest contains all of them


@dataclass(frozen=True)
class Example:
    """An example image of a run: method, category, title, alternative text, and the image as a data URI."""

    method: str
    category: str
    title: str
    text: str
    uri: str


@dataclass(frozen=True)
class PoolSection:
    """The part of a report that compares different unlabeled images on one dataset. Each curve has a title."""

    name: str
    legend: list[tuple[str, str]]
    curves: list[tuple[str, str]]
    table: Table


@dataclass(frozen=True)
class Section:
    """The part of a report about one dataset, with the same unlabeled images in all runs."""

    name: str
    about: str
    statements: list[ReportStatement]
    legends: list[list[tuple[str, str]]]  # for the curves and the cost plots
    means: list[Table]
    curves: list[str]
    differences: Table | None
    forests: list[tuple[str, str]]
    heat_limits: tuple[str, str]
    heat_tables: list[Table]
    costs: Table | None
    scatters: list[str]
    example_k: str
    examples: list[Example]
    feature_k: str
    features: list[Example]
    metrics: Table | None


def write_report(
    store: Store,
    rows: pd.DataFrame,
    *,
    baseline: str,
    config: Mapping[str, Any],
    environment: Mapping[str, Any],
    jobs: Sequence[Job] | None = None,
) -> Path:
    """Write ``report.html`` and ``report.md`` to a results folder. The output is deterministic.

    Args:
        store (Store): Results folder, which provides support sets and example images if available.
        rows (pd.DataFrame): Content of ``results.csv``, with hashes and keys as text.
        baseline (str): Method to compare the other methods with.
        config (Mapping[str, Any]): All settings of the benchmark.
        environment (Mapping[str, Any]): Versions, platform and processor.
        jobs (Sequence[Job] | None): All planned runs, used to count missing ones. Defaults to ``None``: each run that
            any method has is expected of all methods.

    Returns:
        Path: The HTML file.

    Raises:
        ValueError: If there are no rows, a column is missing, a run is duplicated or a value is out of range.
    """
    if rows.empty:
        msg = "`rows` must have at least one run, got none."
        raise ValueError(msg)
    rows = add_pool_columns(rows)
    for metric in tables.METRICS:
        check_rows(rows, metric, *columns())
    rows = rows.assign(k_shot=rows["k_shot"].map(as_number))
    rows = rows.sort_values(["dataset", "category", "k_shot", "unlabeled", "contamination", "seed", "method"])
    content = _content(store, rows, baseline, None if jobs is None else _planned(jobs))
    content["glossary"] = GLOSSARY
    content["config"] = yaml.safe_dump(_to_json(config), sort_keys=False, allow_unicode=True)
    content["environment"] = {str(name): str(value) for name, value in _to_json(environment).items()}
    templates = template_environment("anomalib_fewshot.pipelines.report")  # escapes HTML only, so Markdown has `md`
    templates.filters |= {"md": _markdown, "breakable": _breakable}
    pages = {suffix: templates.get_template(f"report.{suffix}.j2").render(content) for suffix in ("html", "md")}
    return store.write_report(pages)


def _planned(jobs: Sequence[Job]) -> pd.DataFrame:
    """Return the planned runs as a table, one row per run and category."""
    return pd.DataFrame([
        {"method": job.method, "dataset": job.dataset, "category": category, "k_shot": as_number(job.k_shot),
         "seed": job.seed, "unlabeled": job.unlabeled, "contamination": job.contamination}
        for job in jobs
        for category in job.test_categories
    ])  # fmt: skip


def _content(store: Store, rows: pd.DataFrame, baseline: str, planned: pd.DataFrame | None) -> dict[str, Any]:
    """Return the variables of the templates, except the settings."""
    summaries = {metric: summarize(rows, metric, planned=planned) for metric in tables.METRICS}
    pool_sections: list[PoolSection] = []
    sections: list[Section] = []
    for dataset, in_dataset in rows.groupby("dataset"):
        styles = figures.make_styles(list(in_dataset["method"].unique()))
        by_pool = in_dataset.groupby(["unlabeled", "contamination"])
        if len(by_pool) > 1:
            main = summaries[MAIN_METRIC]
            pool_sections.append(_pool_section(main[main["dataset"] == dataset], styles, f"p{len(pool_sections)}"))
        for pool, own_rows in by_pool:
            own_summaries = {metric: _select(summary, dataset, *pool) for metric, summary in summaries.items()}
            sections.append(_section(store, own_rows, own_summaries, baseline, f"d{len(sections)}", styles))
    failed = rows[rows["status"] != "ok"]
    return {
        "baseline": baseline,
        "overview": _overview(rows),
        "warnings": make_warnings(rows, summaries[MAIN_METRIC], baseline),
        "pool_sections": pool_sections,
        "sections": sections,
        "failed": Table(
            "",
            ["dataset", "category", "k", "seed", "method", "error"],
            [
                [
                    Cell(row.dataset),
                    Cell(row.category),
                    Cell(format_k(row.k_shot), format_pool(row.unlabeled, row.contamination)),
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
    """Return a one-line summary of the runs."""

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
    if rows["unlabeled"].any():
        parts.append(f"unlabeled images: {', '.join(map(str, sorted(rows['unlabeled'].unique())))}")
    finished = rows["finished"].dropna().astype(str)
    return " · ".join(parts) + (f" · finished {finished.max()[:10]}" if len(finished) else "")


def _select(summary: pd.DataFrame, dataset: str, unlabeled: int, contamination: float) -> pd.DataFrame:
    """Return the part of a summary about a dataset and its unlabeled images."""
    is_pool = (summary["unlabeled"] == unlabeled) & (summary["contamination"] == contamination)
    return summary[is_pool & (summary["dataset"] == dataset)]


def _pool_section(summary: pd.DataFrame, styles: Mapping[str, figures.Style], name: str) -> PoolSection:
    """Return the comparison of unlabeled images from the summary of the main metric on one dataset."""
    label = tables.METRICS[MAIN_METRIC].label
    pools = summary[summary["unlabeled"] > 0]
    takes_pools = set(pools["method"])
    methods = [method for method in styles if method in takes_pools]
    summary = summary[summary["method"].isin(methods)]
    lowest, largest = pools["contamination"].min(), pools["unlabeled"].max()
    curves = []
    for k, block in summary.dropna(subset="mean").groupby("k_shot"):
        by_size = block[(block["unlabeled"] == 0) | (block["contamination"] == lowest)]
        if len(set(by_size["unlabeled"])) > 1:
            title = f"k = {format_k(k)}" + (f", contamination {lowest:.3g}" if lowest else "")
            svg = figures.curves(by_size, styles, label, f"{name}-size{format_k(k)}", x="unlabeled")
            curves.append((title, svg))
        by_share = block[block["unlabeled"] == largest]
        if len(set(by_share["contamination"])) > 1:
            svg = figures.curves(by_share, styles, label, f"{name}-share{format_k(k)}", x="contamination")
            curves.append((f"k = {format_k(k)}, {largest:.0f} unlabeled images", svg))
    return PoolSection(
        name=f"{summary['dataset'].iloc[0]}: effect of unlabeled images",
        legend=[(method, figures.swatch(styles[method], f"{name}-{i}")) for i, method in enumerate(methods)],
        curves=curves,
        table=tables.pool_table(summary, methods, label),
    )


def _section(
    store: Store,
    rows: pd.DataFrame,
    summaries: Mapping[str, pd.DataFrame],
    baseline: str,
    name: str,
    styles: Mapping[str, figures.Style],
) -> Section:
    main = summaries[MAIN_METRIC]
    done = rows[rows["status"] == "ok"]
    order = main.groupby("method")["mean"].mean().reset_index().sort_values(["mean", "method"], ascending=[False, True])
    methods = list(order["method"])
    shown = [metric for metric in (MAIN_METRIC, "pixel_AUROC") if summaries[metric]["mean"].notna().any()]
    differences = paired_differences(rows, baseline, MAIN_METRIC)
    differences["order"] = differences["method"].map(methods.index)
    differences = differences.sort_values(["k_shot", "order"]).drop(columns="order")
    compared = differences.dropna(subset="mean")
    categories = by_category(rows, MAIN_METRIC)
    limits = (categories["mean"].min(), categories["mean"].max())
    test_sizes = {
        category: f"{block['test_normal'].max():.0f} + {block['test_anomalous'].max():.0f} images"
        for category, block in done.groupby("category")
    }
    with_examples = {row.method for row in done.itertuples() if store.has_examples(str(row.key))}
    best = next((method for method in methods if method in with_examples), baseline)
    example_k, examples = _examples(store, done, list(dict.fromkeys([best, baseline])), EXAMPLES)
    feature_k, features = _examples(store, done, methods, FEATURES)
    pool = format_pool(rows["unlabeled"].iloc[0], rows["contamination"].iloc[0])
    return Section(
        name=", ".join(filter(None, [str(rows["dataset"].iloc[0]), pool])),
        about=f"Categories: {', '.join(sorted(rows['category'].unique()))}.",
        statements=make_statements(rows, main, baseline) if len(done) else [],
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
            *_false_alarm_curves(summaries, styles, name),
        ],
        differences=tables.difference_table(compared, baseline) if len(compared) else None,
        forests=[
            (
                f"k = {format_k(k)}",
                figures.forest(block, styles, baseline, _limits(compared), f"{name}-forest{format_k(k)}"),
            )
            for k, block in compared.groupby("k_shot")
        ],
        heat_limits=(tables.format_score(limits[0]), tables.format_score(limits[1])),
        heat_tables=[
            tables.heat_table(block, main[main["k_shot"] == k], methods, limits, test_sizes)
            for k, block in categories.groupby("k_shot")
        ],
        costs=tables.cost_table(done, methods) if len(done) else None,
        scatters=_scatters(done, main, styles, name),
        example_k=example_k,
        examples=examples,
        feature_k=feature_k,
        features=features,
        metrics=tables.metrics_table(summaries, rows, methods) if shown else None,
    )


def _false_alarm_curves(
    summaries: Mapping[str, pd.DataFrame],
    styles: Mapping[str, figures.Style],
    name: str,
) -> Iterator[str]:
    """Yield plots of false alarms and recall, if a threshold guarantees a false-alarm rate."""
    guaranteed = summaries["guaranteed_fpr"].groupby("k_shot")["mean"].max().dropna()
    if guaranteed.empty:
        return
    label = f"{tables.METRICS['false_alarms'].label} (dashed: guaranteed)"
    yield figures.curves(summaries["false_alarms"], styles, label, f"{name}-false_alarms", guaranteed)
    yield figures.curves(summaries["recall"], styles, tables.METRICS["recall"].label, f"{name}-recall")


def _limits(differences: pd.DataFrame) -> tuple[float, float]:
    """Return the limits of the difference axis, which include zero."""
    values = differences[["low", "high", "mean"]].to_numpy()
    low, high = min(0.0, pd.Series(values.ravel()).min()), max(0.0, pd.Series(values.ravel()).max())
    margin = 0.06 * (high - low) or 0.01
    return low - margin, high + margin


def _scatters(done: pd.DataFrame, main: pd.DataFrame, styles: Mapping[str, figures.Style], name: str) -> list[str]:
    """Return plots of accuracy against cost at the largest k. Empty if the runs used different devices."""
    means = main.dropna(subset="mean")
    if means.empty or len(done[["device", "threads"]].drop_duplicates()) > 1:
        return []
    k = means["k_shot"].max()
    means = means[means["k_shot"] == k].set_index("method")["mean"]
    plots = []
    for cost, label in (("fit_seconds", "seconds to fit"), ("latency_p50_ms", "milliseconds per image, p50")):
        costs = done[done["k_shot"] == k].groupby("method")[cost].median()
        points = pd.DataFrame({"cost": costs, "mean": means}).dropna().rename_axis("method").reset_index()
        if len(points):
            labels = (label, f"{tables.METRICS[MAIN_METRIC].label} at k = {format_k(k)}")
            plots.append(figures.scatter(points, styles, labels, f"{name}-{cost}"))
    return plots


def _examples(
    store: Store,
    done: pd.DataFrame,
    methods: Sequence[str],
    kinds: Mapping[str, str],
) -> tuple[str, list[Example]]:
    """Return the largest k with example images, and these images for the given methods and kinds."""
    runs = done[done["method"].isin(methods)]
    runs = runs[runs["key"].map(store.has_examples).astype(bool)]
    runs = runs[runs["k_shot"] == runs["k_shot"].max()].drop_duplicates(["category", "method"])
    examples = []
    for row in sorted(runs.itertuples(), key=lambda row: (row.category, methods.index(row.method))):
        images = store.examples(str(row.key), row.category)
        for name, description in kinds.items():
            if name not in images:
                continue
            uri = "data:image/jpeg;base64," + base64.b64encode(images[name]).decode()
            text = f"{row.category}, {row.method}: {description}"
            examples.append(Example(row.method, row.category, name.replace("_", " "), text, uri))
    return format_k(runs["k_shot"].max()) if examples else "", examples


def _supports(store: Store, rows: pd.DataFrame) -> Iterator[tuple[str, str]]:
    """Yield the title and file names of each support set. Nested support sets of several k share one entry."""
    groups: dict[tuple[str, str, str], list[tuple[int, str, list[str]]]] = {}
    for k_shot, manifest in store.supports(rows.assign(k_shot=rows["k_shot"].map(format_k))):
        k = f"{ALL} ({manifest.k_shot})" if k_shot == ALL else k_shot
        support = (manifest.k_shot, k, list(manifest.images))
        group = groups.setdefault((manifest.dataset, manifest.category, str(manifest.seed)), [])
        if support not in group:  # the same support set is used with different unlabeled images
            group.append(support)
    for (dataset, category, seed), supports in sorted(groups.items()):
        supports.sort()
        largest = supports[-1][2]
        is_nested = all(images == largest[: len(images)] for _, _, images in supports)
        for entry in [supports] if is_nested else [[support] for support in supports]:
            images = entry[-1][2]
            names = images[:MAX_NAMES]
            if len(images) > MAX_NAMES:
                names = [*names, f"and {len(images) - MAX_NAMES} more"]
            k_values = ", ".join(k for _, k, _ in entry)
            yield f"{dataset} {category}, seed {seed}, k = {k_values}", ", ".join(names)


def _to_json(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values as JSON types: lists for tuples, text for paths."""
    return json.loads(json.dumps(values, default=str))


def _markdown(text: object) -> str:
    """Return text with Markdown and HTML escaped, also for table cells."""
    text = re.sub(r"[ \t\r\n]+", " ", str(text)).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return re.sub(r"([\\`*_|~])", r"\\\1", text)


def _breakable(text: str) -> Markup:
    """Return a name with optional line breaks at word boundaries."""
    return Markup("<wbr>").join(re.split(r"(?<=[a-z])(?=[A-Z][a-z])|(?<=[_=/,-])", text))  # `join` escapes the parts
