# Copyright (C) 2026 anomalib-fewshot contributors
# SPDX-License-Identifier: Apache-2.0

"""Figures of the report: inline SVG that uses the font and colors of the page, and SVG and PNG files.

For the page, the colors are replaced with ``currentColor`` and the CSS variables ``--series-1`` to ``--series-8``, so
that each figure is readable in light and dark mode. The files have a transparent background and gray text, so that they
are readable on light and dark slides. The output is deterministic.
"""

import io
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from math import inf
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter, NullLocator

from .tables import format_k

# The series colors of the page in light mode, which people with a color vision deficiency can distinguish
COLORS = ("#0072b2", "#c44e00", "#00855f", "#a8548a", "#b07d00", "#2f9bd6", "#6b6b6b", "#7a4ec2")
MARKERS = "os^DvPX*p<"
TEXT_COLOR = "#75777a"  # readable on white and on black
SVG_METADATA = dict.fromkeys(("Date", "Creator", "Format", "Type"))
WIDTH, HEIGHT = 380, 270  # in SVG units; about the width of a phone screen
LABEL_WIDTH = 5.8  # average width of a letter in the labels of a forest plot, in SVG units
RC: dict[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "anomalib-fewshot",
    "font.size": 11,
    "text.color": TEXT_COLOR,
    "axes.labelcolor": TEXT_COLOR,
    "axes.edgecolor": TEXT_COLOR,
    "xtick.color": TEXT_COLOR,
    "ytick.color": TEXT_COLOR,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.6,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "axes.axisbelow": True,
    "grid.color": TEXT_COLOR,
    "grid.alpha": 0.13,
    "grid.linewidth": 0.6,
    "lines.linewidth": 1.5,
    "lines.markersize": 5.5,
}


@dataclass(frozen=True)
class Style:
    """Color and marker of a method in all figures."""

    color: str
    marker: str


@dataclass(frozen=True)
class Plot:
    """A figure: its name, unique on the page, the inline SVG, and the files by suffix, ``svg`` and ``png``."""

    name: str
    svg: str
    files: dict[str, bytes]


@dataclass(frozen=True)
class XAxis:
    """An x axis: its name in a description, its label, and the text of its values."""

    name: str
    label: str
    format: Callable[[float], str]


X_AXES = {
    "k_shot": XAxis("k", "k, number of normal images", format_k),
    "unlabeled": XAxis("unlabeled images", "number of unlabeled images", "{:.0f}".format),
    "contamination": XAxis("contamination", "anomalous share of the unlabeled images", "{:.3g}".format),
}


def make_styles(methods: Sequence[str]) -> dict[str, Style]:
    """Return a style for each method. Styles depend only on the sorted names, so they are equal in all sections."""
    return {
        method: Style(COLORS[number % len(COLORS)], MARKERS[number % len(MARKERS)])
        for number, method in enumerate(sorted(methods))
    }


def swatch(style: Style, name: str) -> str:
    """Return the legend entry of a method: its line and marker."""
    with mpl.rc_context(RC):
        figure = Figure(figsize=(26 / 72, 12 / 72))
        axes = figure.add_axes((0, 0, 1, 1))
        axes.plot([0, 1], [0, 0], color=style.color)
        axes.plot([0.5], [0], color=style.color, marker=style.marker)
        axes.set(xlim=(0, 1), ylim=(-1, 1))
        axes.axis("off")
        return _svg(figure, name, "")


def curves(
    summary: pd.DataFrame,
    styles: Mapping[str, Style],
    label: str,
    name: str,
    reference: Mapping[float, float] | None = None,
    x: str = "k_shot",
) -> Plot:
    """Plot the macro mean of a metric with its intervals, by default against k. Methods are shifted to avoid overlap.

    Args:
        summary (pd.DataFrame): Output of :func:`~anomalib_fewshot.pipelines.report.statistics.summarize` for one
            dataset, with one row per method and value on the x axis.
        styles (Mapping[str, Style]): Style of each method.
        label (str): Name of the metric.
        name (str): Name of the figure, unique on the page.
        reference (Mapping[float, float] | None): Values by k, drawn as gray bars. Defaults to ``None``.
        x (str): Column of the x axis: ``"k_shot"``, ``"unlabeled"`` or ``"contamination"``. Defaults to ``"k_shot"``.
    """
    axis = X_AXES[x]
    values = sorted(summary[x].unique())
    ticks = [axis.format(value) for value in values]  # evenly spaced, because "all" is not a number
    methods = [method for method in styles if summary.loc[summary["method"] == method, "mean"].notna().any()]
    with mpl.rc_context(RC):
        figure, axes = _panel()
        for number, method in enumerate(methods):
            points = summary[summary["method"] == method].set_index(x).reindex(values)
            offset = 0.45 * (number - (len(methods) - 1) / 2) / max(len(methods), 4)
            positions = np.arange(len(ticks)) + offset
            color = styles[method].color
            axes.vlines(positions, points["low"], points["high"], color=color, linewidth=1.2, alpha=0.65)
            axes.plot(positions, points["mean"], color=color, marker=styles[method].marker)
        if reference is not None:
            axes.plot(
                [reference.get(value, np.nan) for value in values],
                color=TEXT_COLOR,
                linestyle="none",
                marker="_",
                markersize=44,
                markeredgewidth=2,
                alpha=0.5,
            )
        axes.set_xticks(range(len(ticks)), labels=ticks)
        axes.set_xlim(-0.5, len(ticks) - 0.5)
        axes.set_xlabel(axis.label)
        axes.grid(axis="y")
        _format_metric_axis(axes, label)
        means = summary.loc[summary["mean"].notna(), "mean"]
        value_range = f"{means.min():.3f} to {means.max():.3f}"
        text = f"{label} over {axis.name} = {', '.join(ticks)} for {', '.join(methods)}: {value_range}."
        return _plot(figure, name, text, {method: styles[method] for method in methods})


def forest(
    differences: pd.DataFrame,
    styles: Mapping[str, Style],
    baseline: str,
    limits: tuple[float, float],
    name: str,
) -> Plot:
    """Plot the differences from the baseline with their intervals, and list wins, ties and losses on the right.

    Args:
        differences (pd.DataFrame): Output of
            :func:`~anomalib_fewshot.pipelines.report.statistics.paired_differences` for one dataset and k. The first
            row is at the top.
        styles (Mapping[str, Style]): Style of each method.
        baseline (str): Name of the baseline.
        limits (tuple[float, float]): Limits of the x axis, shared by all panels of a dataset.
        name (str): Name of the figure, unique on the page.
    """
    rows = list(differences.itertuples())
    height = 62 + 26 * len(rows)
    with mpl.rc_context(RC):
        figure = Figure(figsize=(WIDTH / 72, height / 72))
        names = [_truncate(row.method) for row in rows]
        left, right = (8 + LABEL_WIDTH * max(map(len, names), default=0)) / WIDTH, 0.77
        axes = figure.add_axes((left, 44 / height, right - left, 26 * len(rows) / height))
        axes.axvline(0, color=TEXT_COLOR, linewidth=0.8, alpha=0.6)
        for y, row in enumerate(rows):
            style = styles[row.method]
            axes.hlines(y, row.low, row.high, color=style.color, linewidth=2)
            axes.plot([row.mean], [y], color=style.color, marker=style.marker, markersize=5.5)
            counts = f"{row.wins} / {row.ties} / {row.losses}" if row.runs else "no pairs"
            axes.text(1.04, y, counts, transform=axes.get_yaxis_transform(), va="center", fontsize=10)
        axes.text(
            1.04,
            -0.75,
            "wins / ties / losses",
            transform=axes.get_yaxis_transform(),
            va="center",
            fontsize=9,
            alpha=0.7,
        )
        axes.set(xlim=limits, ylim=(len(rows) - 0.5, -0.5))
        axes.set_yticks(range(len(rows)), labels=names, parse_math=False)
        axes.tick_params(axis="y", length=0, labelsize=10)
        axes.spines["left"].set_visible(False)
        axes.xaxis.set_major_locator(MaxNLocator(4, steps=[1, 2, 5, 10]))
        axes.xaxis.set_major_formatter(FuncFormatter(_signed))
        axes.grid(axis="x")
        axes.set_xlabel(f"difference from {_truncate(baseline)}", parse_math=False)
        text = "; ".join(f"{row.method} {_signed(row.mean, digits=3)}" for row in rows)
        return _plot(figure, name, f"Paired differences from {baseline}: {text}.", {})


def scatter(points: pd.DataFrame, styles: Mapping[str, Style], labels: tuple[str, str], name: str) -> Plot:
    """Plot accuracy against cost.

    Args:
        points (pd.DataFrame): One row per method with the columns ``method``, ``cost`` and ``mean``.
        styles (Mapping[str, Style]): Style of each method.
        labels (tuple[str, str]): Names of the cost and of the metric.
        name (str): Name of the figure, unique on the page.
    """
    with mpl.rc_context(RC):
        figure, axes = _panel()
        for point in points.itertuples():
            axes.plot(
                [point.cost],
                [point.mean],
                styles[point.method].marker,
                color=styles[point.method].color,
                markersize=8,
            )
        axes.margins(0.12)
        if points["cost"].min() > 0:
            low, high = points["cost"].min() / 1.6, points["cost"].max() * 1.6
            axes.set_xscale("log")
            axes.set_xlim(low, high)
            axes.xaxis.set_major_locator(LogLocator(subs=(1,) if high / low > 100 else (1, 2, 5)))
            axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.10g}"))
            axes.xaxis.set_minor_locator(NullLocator())
            axes.xaxis.set_minor_formatter(NullFormatter())
        axes.set_xlabel(labels[0])
        axes.grid()
        _format_metric_axis(axes, labels[1])
        text = "; ".join(f"{point.method} {point.cost:.3g}, {point.mean:.3f}" for point in points.itertuples())
        used = {point.method: styles[point.method] for point in points.itertuples()}
        return _plot(figure, name, f"{labels[1]} against {labels[0]}: {text}.", used)


def image_curves(
    points: Mapping[str, np.ndarray],
    grid: np.ndarray,
    styles: Mapping[str, Style],
    labels: tuple[str, str],
    name: str,
) -> Plot:
    """Plot a mean curve of each method, such as its ROC curve.

    Args:
        points (Mapping[str, np.ndarray]): Values by method, shape ``(N,)``.
        grid (np.ndarray): Positions on the x axis, from 0 to 1, shape ``(N,)``.
        styles (Mapping[str, Style]): Style of each method.
        labels (tuple[str, str]): Names of the x and y axis.
        name (str): Name of the figure, unique on the page.
    """
    with mpl.rc_context(RC):
        figure, axes = _panel()
        for number, (method, values) in enumerate(points.items()):
            style = styles[method]
            axes.plot(grid, values, color=style.color, marker=style.marker, markevery=(5 + 3 * number, 25))
        axes.set(xlim=(0, 1), ylim=(0, 1.02))
        axes.set_xlabel(labels[0])
        axes.grid()
        _format_metric_axis(axes, labels[1])
        text = f"{labels[1]} over {labels[0]} for {', '.join(points)}."
        return _plot(figure, name, text, {method: styles[method] for method in points})


def guarantees(
    points: pd.DataFrame,
    styles: Mapping[str, Style],
    metric: str,
    label: str,
    name: str,
    *,
    diagonal: bool = False,
) -> Plot:
    """Plot a metric with its intervals against the guaranteed false-alarm rate, with one point per k.

    Args:
        points (pd.DataFrame): Output of :func:`~anomalib_fewshot.pipelines.report.statistics.guarantee_points`.
        styles (Mapping[str, Style]): Style of each method.
        metric (str): Column of the metric: ``"recall"`` or ``"false_alarms"``.
        label (str): Name of the metric.
        name (str): Name of the figure, unique on the page.
        diagonal (bool): Draw the line on which the metric equals the guaranteed rate. Defaults to ``False``.
    """
    methods = [method for method in styles if method in set(points["method"])]
    largest = points["guaranteed_fpr"].max()
    with mpl.rc_context(RC):
        figure, axes = _panel()
        if diagonal:
            axes.plot([0, 1], [0, 1], color=TEXT_COLOR, linewidth=1, alpha=0.6, scalex=False, scaley=False)
        for number, method in enumerate(methods):
            own = points[points["method"] == method]
            shift = 0.006 * largest * (number - (len(methods) - 1) / 2)  # intervals of several methods stay visible
            color = styles[method].color
            x = own["guaranteed_fpr"] + shift
            axes.vlines(x, own[f"{metric}_low"], own[f"{metric}_high"], color=color, linewidth=1.2, alpha=0.65)
            axes.plot(x, own[metric], color=color, marker=styles[method].marker, clip_on=False)  # also at 0
        by_rate = points.drop_duplicates("k_shot").sort_values("guaranteed_fpr")
        axes.set_xlim(0, 1.12 * largest)
        low, high = axes.get_ylim()
        axes.set_ylim(0 if diagonal else max(low, 0), max(high, largest) if diagonal else high)
        rates, labels = list(by_rate["guaranteed_fpr"]), []
        labeled = inf
        for rate, k in zip(reversed(rates), reversed(list(by_rate["k_shot"])), strict=True):
            has_space = labeled - rate > 0.13 * largest
            labels.append(f"{rate:.2f}\nk = {format_k(k)}" if has_space else "")
            labeled = rate if has_space else labeled
        axes.set_xticks(rates, labels=labels[::-1])
        axes.set_xlabel("guaranteed false-alarm rate")
        axes.grid()
        _format_metric_axis(axes, label)
        values = "; ".join(
            f"{row.method} {getattr(row, metric):.3f} at {row.guaranteed_fpr:.3f}" for row in points.itertuples()
        )
        text = f"{label} over guaranteed false-alarm rate: {values}."
        return _plot(figure, name, text, {method: styles[method] for method in methods})


def _panel() -> tuple[Figure, Axes]:
    """Return an empty figure with one plot."""
    figure = Figure(figsize=(WIDTH / 72, HEIGHT / 72))
    return figure, figure.add_axes((0.12, 0.17, 0.86, 0.72))


def _format_metric_axis(axes: Axes, label: str) -> None:
    """Put the label above the y axis, where it needs no rotation, and limit the axis to 1."""
    low, high = axes.get_ylim()
    axes.set_ylim(low, min(high, 1 + 0.02 * (1 - low)))
    axes.yaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10]))
    axes.set_title(label, loc="left", fontsize=11, x=-0.1, pad=12)


def _signed(value: float, _: int = 0, *, digits: int = 2) -> str:
    text = f"{value:+.{digits}f}" if abs(value) >= 10**-digits / 2 else "0"
    return text.replace("-", "\N{MINUS SIGN}")


def _truncate(text: str, length: int = 24) -> str:
    return text if len(text) <= length else text[: length - 1] + "…"


def _plot(figure: Figure, name: str, text: str, styles: Mapping[str, Style]) -> Plot:
    """Return the figure for the page, and as files with a legend of the given methods."""
    svg = _svg(figure, name, text)
    handles = [
        Line2D([], [], color=style.color, marker=style.marker, label=escape_math(method))
        for method, style in styles.items()
    ]
    if handles:
        figure.legend(handles=handles, loc="upper center", bbox_to_anchor=(0.5, 0), ncols=2, frameon=False)
    metadata = {"svg": SVG_METADATA, "png": {"Software": None}}
    files = {}
    for suffix in metadata:
        file = io.BytesIO()
        figure.savefig(
            file,
            format=suffix,
            transparent=True,
            bbox_inches="tight",
            dpi=200,
            metadata=metadata[suffix],
        )
        files[suffix] = file.getvalue()
    return Plot(name, svg, files)


def escape_math(text: str) -> str:
    """Return text in which Matplotlib reads no formula."""
    return text.replace("$", r"\$")


def _svg(figure: Figure, name: str, text: str) -> str:
    """Return the figure as an SVG element with the font and colors of the page, and with unique ids."""
    file = io.StringIO()
    figure.savefig(file, format="svg", transparent=True, metadata=SVG_METADATA)
    svg = file.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<style.*?</style>", "", svg, flags=re.DOTALL)  # it would apply to the whole page
    svg = re.sub(r"font-family: [^;\"]*; ", "", svg)
    svg = re.sub(r'<g id="[^"]*"', "<g", svg)
    svg = re.sub(r' (width|height)="[\d.]+pt"', "", svg)  # the style sheet sets the size
    svg = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{name}-", svg)
    svg = svg.replace(TEXT_COLOR, "currentColor")
    for number, color in enumerate(COLORS, start=1):
        svg = svg.replace(color, f"var(--series-{number})")
    role = f'role="img" aria-label="{escape(text)}"' if text else 'aria-hidden="true"'
    return svg.replace("<svg ", f'<svg {role} style="stroke-linejoin: round" ', 1)
