# Copyright (C) 2026 anomalib-fewshot contributors
# SPDX-License-Identifier: Apache-2.0

"""Tables of the report, for HTML and Markdown: cells with text, a note, a shade and a mark for the best value."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import pandas as pd

from anomalib_fewshot.pipelines.plan.job import ALL
from anomalib_fewshot.pipelines.results.row import labeled_columns

EMPTY = "\N{EN DASH}"
METRICS = labeled_columns("accuracy")
COSTS = labeled_columns("cost")
SETTINGS = labeled_columns("settings")


@dataclass(frozen=True)
class Cell:
    """A cell: text, a smaller note below, a shade in [0, 1], and whether it is the best of its row or column."""

    text: str
    note: str = ""
    shade: float | None = None
    best: bool = False


@dataclass(frozen=True)
class Table:
    """A table. The first ``text_columns`` columns contain text, the others numbers."""

    caption: str
    header: list[str]
    rows: list[list[Cell]]
    text_columns: int = 1
    foot: list[list[Cell]] = field(default_factory=list)


def format_k(k_shot: float) -> str:
    """Return a numeric k as text, where infinity is ``all``.

    Example:
        >>> [format_k(k) for k in (4.0, np.inf)]
        ['4', 'all']
    """
    return ALL if k_shot == np.inf else f"{k_shot:.0f}"


def format_score(value: float, *, sign: bool = False) -> str:
    """Return a score or a difference of scores with three digits and a typographic minus sign."""
    if pd.isna(value):
        return EMPTY
    text = f"{value:+.3f}" if sign else f"{value:.3f}"
    return ("0.000" if text in {"-0.000", "+0.000"} else text).replace("-", "\N{MINUS SIGN}")


def format_interval(row: Mapping, *, sign: bool = False) -> str:
    """Return the interval of a summary or difference. Empty if there is none."""
    if pd.isna(row["low"]):
        return ""
    return f"[{format_score(row['low'], sign=sign)},\N{NO-BREAK SPACE}{format_score(row['high'], sign=sign)}]"


def format_quantity(value: float) -> str:
    """Return a duration or size with two to three significant digits."""
    if pd.isna(value):
        return EMPTY
    if abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}"


def join(values: Sequence[object], *, empty: str = EMPTY) -> str:
    """Return the distinct values, separated by commas."""
    texts = [f"{value:g}" if isinstance(value, float) else str(value) for value in values if not pd.isna(value)]
    return ", ".join(dict.fromkeys(filter(None, texts))) or empty


def mean_table(summary: pd.DataFrame, methods: Sequence[str], label: str) -> Table:
    """Return the macro means with their intervals, one row per method and one column per k."""
    shots = sorted(summary["k_shot"].unique())
    cells = summary.set_index(["method", "k_shot"])
    best = summary.groupby("k_shot")["mean"].max()
    rows = []
    for method in methods:
        row = [Cell(method)]
        for k in shots:
            value = cells.loc[method, k]
            notes = [format_interval(value)]
            if value["missing"]:
                notes.append(f"{value['runs']} of {value['runs'] + value['missing']} runs")
            note = "\n".join(note for note in notes if note)
            row.append(Cell(format_score(value["mean"]), note, best=value["mean"] == best[k]))
        rows.append(row)
    caption = f"{label}: macro mean over categories, [95 % interval]"
    return Table(caption, ["method", *(f"k = {format_k(k)}" for k in shots)], rows)


def interval_table(intervals: pd.DataFrame, methods: Sequence[str], label: str) -> Table:
    """Return the intervals over test images, one row per method and one column per k.

    Args:
        intervals (pd.DataFrame): Columns ``method``, ``k_shot``, ``low`` and ``high``.
        methods (Sequence[str]): Methods in the order of the rows.
        label (str): Name of the metric.
    """
    shots = sorted(intervals["k_shot"].unique())
    by_cell = intervals.set_index(["method", "k_shot"])
    rows = []
    for method in methods:
        row = [Cell(method)]
        for k in shots:
            has_interval = (method, k) in by_cell.index
            text = format_interval(by_cell.loc[method, k]) if has_interval else ""
            row.append(Cell(text or EMPTY))
        rows.append(row)
    caption = f"{label}: 95 % interval over test images"
    return Table(caption, ["method", *(f"k = {format_k(k)}" for k in shots)], rows)


def guarantee_table(points: pd.DataFrame, methods: Sequence[str]) -> Table:
    """Return guaranteed rate, measured false alarms and recall, one row per method and k.

    Args:
        points (pd.DataFrame): Output of :func:`~anomalib_fewshot.pipelines.report.statistics.guarantee_points`.
        methods (Sequence[str]): Methods in the order of the rows.
    """
    rows = []
    for method in methods:
        for point in points[points["method"] == method].to_dict("records"):
            row = [Cell(method), Cell(f"k = {format_k(point['k_shot'])}"), Cell(format_score(point["guaranteed_fpr"]))]
            for metric in ("false_alarms", "recall"):
                interval = {"low": point[f"{metric}_low"], "high": point[f"{metric}_high"]}
                row.append(Cell(format_score(point[metric]), format_interval(interval)))
            rows.append(row)
    labels = [METRICS[metric].label for metric in ("guaranteed_fpr", "false_alarms", "recall")]
    caption = "Recall at the guaranteed false-alarm rate: macro mean over categories, [95 % interval]"
    return Table(caption, ["method", "k", *labels], rows, text_columns=2)


def pool_table(summary: pd.DataFrame, methods: Sequence[str], label: str) -> Table:
    """Return the macro means by unlabeled images, one row per method and pool and one column per k."""
    shots = sorted(summary["k_shot"].unique())
    best = summary.groupby(["k_shot", "unlabeled", "contamination"])["mean"].max()
    rows = []
    for method in methods:
        own = summary[summary["method"] == method]
        for (unlabeled, contamination), block in own.groupby(["unlabeled", "contamination"]):
            means = block.set_index("k_shot")
            row = [Cell(method), Cell(f"{unlabeled:.0f}"), Cell(f"{contamination:.3g}" if unlabeled else EMPTY)]
            for k in shots:
                if k not in means.index:
                    row.append(Cell(EMPTY))
                    continue
                value = means.loc[k]
                is_best = value["mean"] == best[k, unlabeled, contamination]
                row.append(Cell(format_score(value["mean"]), format_interval(value), best=is_best))
            rows.append(row)
    header = ["method", "unlabeled images", "contamination", *(f"k = {format_k(k)}" for k in shots)]
    return Table(f"{label}: macro mean over categories, [95 % interval]", header, rows)


def difference_table(differences: pd.DataFrame, baseline: str) -> Table:
    """Return the paired differences from a baseline, one row per k and method."""
    rows = [
        [
            Cell(f"k = {format_k(row.k_shot)}"),
            Cell(row.method),
            Cell(format_score(row.mean, sign=True)),
            Cell(format_interval(row._asdict(), sign=True) or EMPTY),
            Cell(f"{row.wins} / {row.ties} / {row.losses}"),
            Cell(str(row.runs)),
            Cell(format_score(row.category_std)),
            Cell(f"{format_score(row.worst, sign=True)}", row.worst_category),
        ]
        for row in differences.itertuples()
    ]
    header = [
        "k",
        "method",
        "difference",
        "95 % interval",
        "wins / ties / losses",
        "pairs",
        "std over categories",
        "worst",
    ]
    return Table(
        f"Image AUROC of each method minus that of {baseline}; + is better than {baseline}",
        header,
        rows,
        text_columns=2,
    )


def heat_table(
    categories: pd.DataFrame,
    summary: pd.DataFrame,
    methods: Sequence[str],
    limits: tuple[float, float],
    test_sizes: Mapping,
) -> Table:
    """Return the means at one k, one row per category and one column per method, with macro mean and worst category."""
    means = categories.pivot_table(index="category", columns="method", values="mean").reindex(columns=methods)
    stds = categories.pivot_table(index="category", columns="method", values="std", dropna=False)
    stds = stds.reindex(index=means.index, columns=methods)
    rows = []
    for category in means.index:
        values = means.loc[category]
        row = [Cell(category, test_sizes.get(category, ""))]
        for method in methods:
            value, std = values[method], stds.loc[category, method]
            note = "" if pd.isna(std) else f"± {format_score(std)}"
            row.append(Cell(format_score(value), note, _shade(value, limits), best=value == values.max()))
        rows.append(row)
    by_method = summary.set_index("method")
    macro, worst = [Cell("macro mean", "± over seeds")], [Cell("worst category")]
    for method in methods:
        value = by_method.loc[method]
        note = "" if pd.isna(value["seed_std"]) else f"± {format_score(value['seed_std'])}"
        macro.append(Cell(format_score(value["mean"]), note, best=value["mean"] == by_method["mean"].max()))
        worst.append(
            Cell(
                format_score(value["worst"]),
                value["worst_category"],
                best=value["worst"] == by_method["worst"].max(),
            ),
        )
    return Table(f"k = {format_k(summary['k_shot'].iloc[0])}", ["category", *methods], rows, foot=[macro, worst])


def metrics_table(summaries: Mapping[str, pd.DataFrame], rows: pd.DataFrame, methods: Sequence[str]) -> Table:
    """Return the macro means of all available metrics, one row per k and method."""
    metrics = [metric for metric, summary in summaries.items() if summary["mean"].notna().any()]
    tables = {metric: summaries[metric].set_index(["k_shot", "method"]) for metric in metrics}
    lines = []
    for k in sorted(rows["k_shot"].unique()):
        for method in methods:
            runs = rows[(rows["k_shot"] == k) & (rows["method"] == method)]
            line = [Cell(f"k = {format_k(k)}"), Cell(method), Cell(join(sorted(runs["threshold"].dropna())))]
            for metric in metrics:
                value = tables[metric].loc[k, method]
                note = "" if pd.isna(value["seed_std"]) else f"± {format_score(value['seed_std'])}"
                line.append(Cell(format_score(value["mean"]), note))
            lines.append(line)
    header = ["k", "method", "threshold from", *(METRICS[metric].label for metric in metrics)]
    return Table("Macro means ± standard deviation over seeds", header, lines, text_columns=3)


def cost_table(rows: pd.DataFrame, methods: Sequence[str]) -> Table:
    """Return the median costs, one row per method, k, device and number of threads."""
    costs = [cost for cost in COSTS if cost in rows and rows[cost].fillna(0).any()]
    groups = rows.groupby(["method", "k_shot", "device", "threads"], dropna=False)
    lines = [
        [
            Cell(method),
            Cell(f"k = {format_k(k)}"),
            Cell(join([device])),
            Cell(join([threads])),
            *(Cell(format_quantity(block[cost].median())) for cost in costs),
        ]
        for name in methods
        for (method, k, device, threads), block in groups
        if method == name
    ]
    header = ["method", "k", "device", "threads", *(COSTS[cost].heading for cost in costs)]
    return Table("Medians over runs; latency for one image at a time", header, lines, text_columns=3)


def settings_table(rows: pd.DataFrame) -> Table:
    """Return the settings of each method. A cell with several values means that the runs differ."""
    lines = [
        [Cell(method), *(Cell(join(sorted(runs[name].dropna().unique(), key=str))) for name in SETTINGS)]
        for method, runs in rows.groupby("method")
    ]
    return Table(
        "Settings of each method",
        ["method", *(column.label for column in SETTINGS.values())],
        lines,
        text_columns=1 + len(SETTINGS),
    )


def _shade(value: float, limits: tuple[float, float]) -> float | None:
    """Return the position of a value between two limits, from 0 to 1."""
    if pd.isna(value):
        return None
    low, high = limits
    return 0.5 if low == high else round(float(np.clip((value - low) / (high - low), 0, 1)), 2)
