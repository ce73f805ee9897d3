# Copyright (C) 2026 anomalib-fewshot contributors
# SPDX-License-Identifier: Apache-2.0

"""Sections of the report: statements, tables, figures and example images of each dataset."""

import base64
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import pandas as pd

from anomalib_fewshot.pipelines.plan.job import format_pool
from anomalib_fewshot.pipelines.results.store import Store

from . import figures, tables
from .figures import Plot
from .image_curves import GRID, ImageStatistics, image_statistics
from .statements import MAIN_METRIC, ReportStatement, make_statements
from .statistics import VERDICT_METRICS, by_category, guarantee_points, paired_differences
from .tables import Table, format_k

EXAMPLES = {
    "hit": "anomalous image with the highest score and its heat map",
    "miss": "anomalous image with the lowest score and its heat map",
    "false_alarm": "normal image with the highest score and its heat map",
}
COMMON_EXAMPLES = {"1": "anomalous image 1", "2": "anomalous image 2", "normal": "normal image"}
FEATURES = {"features": "projected features of support and test images"}


@dataclass(frozen=True)
class Example:
    """An example image of a run: category, title, alternative text, and the image as a data URI."""

    category: str
    title: str
    text: str
    uri: str


@dataclass(frozen=True)
class CommonExample:
    """The heat maps of all methods for one test image: category, title, and panels with a name, text and data URI."""

    category: str
    title: str
    panels: list[Example]


@dataclass(frozen=True)
class PoolSection:
    """The part of a report that compares different unlabeled images on one dataset. Each curve has a title."""

    name: str
    legend: list[tuple[str, str]]
    curves: list[tuple[str, Plot]]
    table: Table


@dataclass(frozen=True)
class CategoryTables:
    """The results of one metric by category: one table per k, and the smallest and largest value of the color scale."""

    metric: str
    label: str
    limits: tuple[str, str]
    tables: list[Table]


@dataclass(frozen=True)
class Section:
    """The part of a report about one dataset, with the same unlabeled images in all runs."""

    name: str
    about: str
    statements: list[ReportStatement]
    legends: list[list[tuple[str, str]]]  # for the curves, the cost plots, the image curves and the guarantees
    means: dict[str, Table]  # by metric
    curves: list[Plot]
    guarantees: Table | None
    guarantee_curves: list[Plot]
    image_k: str
    image_curves: list[Plot]  # mean ROC and precision-recall curves at this k
    differences: Table | None
    forests: list[tuple[str, Plot]]
    categories: list[CategoryTables]
    costs: Table | None
    scatters: list[Plot]
    example_k: str
    examples: list[Example]
    common_examples: list[CommonExample]
    feature_k: str
    features: list[Example]
    metrics: Table | None


def make_pool_section(summary: pd.DataFrame, styles: Mapping[str, figures.Style], name: str) -> PoolSection:
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


def make_section(
    store: Store,
    rows: pd.DataFrame,
    summaries: Mapping[str, pd.DataFrame],
    baseline: str,
    name: str,
    styles: Mapping[str, figures.Style],
) -> Section:
    """Return the part of the report about one dataset, whose runs have the same unlabeled images.

    Args:
        store (Store): Results folder, which provides example images.
        rows (pd.DataFrame): The runs of the section.
        summaries (Mapping[str, pd.DataFrame]): Summary of these runs for each metric.
        baseline (str): Method to compare the other methods with.
        name (str): Prefix of the names of all figures.
        styles (Mapping[str, figures.Style]): Style of each method.
    """
    main = summaries[MAIN_METRIC]
    done = rows[rows["status"] == "ok"]
    order = main.groupby("method")["mean"].mean().reset_index().sort_values(["mean", "method"], ascending=[False, True])
    methods = list(order["method"])
    shown = [metric for metric in (MAIN_METRIC, "pixel_AUROC") if summaries[metric]["mean"].notna().any()]
    differences = paired_differences(rows, baseline, MAIN_METRIC)
    differences["order"] = differences["method"].map(methods.index)
    differences = differences.sort_values(["k_shot", "order"]).drop(columns="order")
    compared = differences.dropna(subset="mean")
    with_examples = {row.method for row in done.itertuples() if store.has_examples(str(row.key))}
    best = next((method for method in methods if method in with_examples), baseline)
    example_k, examples = _examples(store, done, list(dict.fromkeys([best, baseline])), EXAMPLES)
    feature_k, features = _examples(store, done, methods, FEATURES)
    images = image_statistics(store, rows)
    points = guarantee_points(summaries)
    with_guarantee = [method for method in methods if method in set(points["method"])]
    pool = format_pool(rows["unlabeled"].iloc[0], rows["contamination"].iloc[0])
    means = {metric: tables.mean_table(summaries[metric], methods, tables.METRICS[metric].label) for metric in shown}
    if len(images.intervals):
        label = tables.METRICS[MAIN_METRIC].label
        means["image_AUROC_over_images"] = tables.interval_table(images.intervals, methods, label)
    return Section(
        name=", ".join(filter(None, [str(rows["dataset"].iloc[0]), pool])),
        about=f"Categories: {', '.join(sorted(rows['category'].unique()))}.",
        statements=make_statements(rows, main, baseline) if len(done) else [],
        legends=[
            [(method, figures.swatch(styles[method], f"{name}-{part}{i}")) for i, method in enumerate(shown_methods)]
            for part, shown_methods in (
                ("curve", methods),
                ("cost", methods),
                ("image", methods),
                ("guarantee", with_guarantee),
            )
        ],
        means=means,
        curves=[
            *(
                figures.curves(summaries[metric], styles, tables.METRICS[metric].label, f"{name}-{metric}")
                for metric in shown
            ),
            *_false_alarm_curves(summaries, styles, name),
        ],
        guarantees=tables.guarantee_table(points, methods) if len(points) else None,
        guarantee_curves=_guarantee_curves(points, styles, name),
        image_k=format_k(images.k_shot) if images.curves else "",
        image_curves=_image_curves(images, styles, name),
        differences=tables.difference_table(compared, baseline) if len(compared) else None,
        forests=[
            (
                f"k = {format_k(k)}",
                figures.forest(block, styles, baseline, _limits(compared), f"{name}-forest{format_k(k)}"),
            )
            for k, block in compared.groupby("k_shot")
        ],
        categories=list(_category_tables(rows, summaries, methods)),
        costs=tables.cost_table(done, methods) if len(done) else None,
        scatters=_scatters(done, main, styles, name),
        example_k=example_k,
        examples=examples,
        common_examples=list(_common_examples(store, done, methods)),
        feature_k=feature_k,
        features=features,
        metrics=tables.metrics_table(summaries, rows, methods) if shown else None,
    )


def _image_curves(images: ImageStatistics, styles: Mapping[str, figures.Style], name: str) -> list[Plot]:
    """Return the mean ROC and precision-recall curves. Empty without stored scores."""
    if not images.curves:
        return []
    recalls = {curve.method: curve.recall for curve in images.curves}
    precisions = {curve.method: curve.precision for curve in images.curves}
    return [
        figures.image_curves(recalls, GRID, styles, ("false-alarm rate", "recall"), f"{name}-roc"),
        figures.image_curves(precisions, GRID, styles, ("recall", "precision"), f"{name}-precision_recall"),
    ]


def _category_tables(
    rows: pd.DataFrame,
    summaries: Mapping[str, pd.DataFrame],
    methods: Sequence[str],
) -> Iterator[CategoryTables]:
    """Yield the tables by category of each accuracy metric that has values and does not depend on a threshold."""
    test_sizes = {
        category: f"{block['test_normal'].max():.0f} + {block['test_anomalous'].max():.0f} images"
        for category, block in rows[rows["status"] == "ok"].groupby("category")
    }
    for metric, summary in summaries.items():
        categories = by_category(rows, metric)
        if metric in VERDICT_METRICS or categories.empty:
            continue
        limits = (categories["mean"].min(), categories["mean"].max())
        by_k = []
        for k, block in categories.groupby("k_shot"):
            of_k = summary[summary["k_shot"] == k]
            with_values = [method for method in methods if method in set(block["method"])]
            by_k.append(tables.heat_table(block, of_k, with_values, limits, test_sizes))
        texts = (tables.format_score(limits[0]), tables.format_score(limits[1]))
        yield CategoryTables(metric, tables.METRICS[metric].label, texts, by_k)


def _false_alarm_curves(
    summaries: Mapping[str, pd.DataFrame],
    styles: Mapping[str, figures.Style],
    name: str,
) -> Iterator[Plot]:
    """Yield plots of false alarms and recall, if a threshold guarantees a false-alarm rate."""
    guaranteed = summaries["guaranteed_fpr"].groupby("k_shot")["mean"].max().dropna()
    if guaranteed.empty:
        return
    label = f"{tables.METRICS['false_alarms'].label} (gray bars: guaranteed)"
    yield figures.curves(summaries["false_alarms"], styles, label, f"{name}-false_alarms", guaranteed)
    yield figures.curves(summaries["recall"], styles, tables.METRICS["recall"].label, f"{name}-recall")


def _guarantee_curves(points: pd.DataFrame, styles: Mapping[str, figures.Style], name: str) -> list[Plot]:
    """Return plots of recall and false alarms over the guaranteed rate. Empty without a guarantee at several k."""
    if points.empty:
        return []
    label = f"{tables.METRICS['false_alarms'].label} (gray line: equal to the guaranteed rate)"
    return [
        figures.guarantees(points, styles, "recall", tables.METRICS["recall"].label, f"{name}-guarantee_recall"),
        figures.guarantees(points, styles, "false_alarms", label, f"{name}-guarantee_false_alarms", diagonal=True),
    ]


def _limits(differences: pd.DataFrame) -> tuple[float, float]:
    """Return the limits of the difference axis, which include zero."""
    values = differences[["low", "high", "mean"]].to_numpy()
    low, high = min(0.0, pd.Series(values.ravel()).min()), max(0.0, pd.Series(values.ravel()).max())
    margin = 0.06 * (high - low) or 0.01
    return low - margin, high + margin


def _scatters(done: pd.DataFrame, main: pd.DataFrame, styles: Mapping[str, figures.Style], name: str) -> list[Plot]:
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


def _runs_with_examples(store: Store, done: pd.DataFrame, methods: Sequence[str]) -> pd.DataFrame:
    """Return one run per category and method with example images, at the largest k that has any."""
    runs = done[done["method"].isin(methods)]
    runs = runs[runs["key"].map(store.has_examples).astype(bool)]
    runs = runs[runs["k_shot"] == runs["k_shot"].max()].drop_duplicates(["category", "method"])
    order = runs["method"].map(list(methods).index)
    return runs.assign(order=order).sort_values(["category", "order"])


def _examples(
    store: Store,
    done: pd.DataFrame,
    methods: Sequence[str],
    kinds: Mapping[str, str],
) -> tuple[str, list[Example]]:
    """Return the largest k with example images, and these images for the given methods and kinds."""
    runs = _runs_with_examples(store, done, methods)
    examples = []
    for row in runs.itertuples():
        images = store.examples(str(row.key), row.category)
        for name, description in kinds.items():
            if name not in images:
                continue
            text = f"{row.category}, {row.method}: {description}"
            title = f"{row.method}, {name.replace('_', ' ')}"
            examples.append(Example(row.category, title, text, _data_uri(images[name])))
    return format_k(runs["k_shot"].max()) if examples else "", examples


def _common_examples(store: Store, done: pd.DataFrame, methods: Sequence[str]) -> Iterator[CommonExample]:
    """Yield the test images of which several methods have a heat map on the common color scale."""
    for category, runs in _runs_with_examples(store, done, methods).groupby("category"):
        by_image: dict[str, list[tuple[str, bytes, bytes]]] = {}  # method, image and heat map
        for row in runs.itertuples():
            images = store.examples(str(row.key), row.category)
            for name in images:
                if name.startswith("common-") and name.endswith("-map"):
                    stem = name.removesuffix("-map")
                    by_image.setdefault(stem, []).append((row.method, images[f"{stem}-image"], images[name]))
        for stem, maps in sorted(by_image.items()):
            if len(maps) < 2:
                continue
            title = COMMON_EXAMPLES[stem.split("-")[1]]
            panels = [Example(category, "image", f"{category}: {title}", _data_uri(maps[0][1]))]
            for method, _, heat_map in maps:
                text = f"{category}, {method}: heat map of {title}"
                panels.append(Example(category, method, text, _data_uri(heat_map)))
            yield CommonExample(category, title, panels)


def _data_uri(image: bytes) -> str:
    """Return a JPEG file as a data URI."""
    return "data:image/jpeg;base64," + base64.b64encode(image).decode()
