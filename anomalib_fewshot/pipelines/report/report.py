# Copyright (C) 2026 anomalib-fewshot contributors
# SPDX-License-Identifier: Apache-2.0

"""Report of a few-shot benchmark, as one self-contained HTML file and as Markdown."""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
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
from .export import REPRODUCE_NOTE, make_exports, reproduce_command
from .sections import PoolSection, Section, make_pool_section, make_section
from .statements import GLOSSARY, MAIN_METRIC, make_warnings
from .statistics import check_rows, clear_rates_without_verdicts, summarize
from .tables import Cell, Table, format_k

MAX_NAMES = 16  # file names shown per support set; the manifest contains all of them


def write_report(
    store: Store,
    rows: pd.DataFrame,
    *,
    baseline: str,
    config: Mapping[str, Any],
    environment: Mapping[str, Any],
    jobs: Sequence[Job] | None = None,
) -> Path:
    """Write a report to a results folder: ``report.html``, ``report.md``, and files for papers next to them.

    These files are LaTeX tables in ``tables/``, all figures in ``figures/``, the scores of all test images in
    ``scores.csv``, and BibTeX entries in ``references.bib``. The output is deterministic.

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
    store.write_scores(rows)
    rows = rows.assign(k_shot=rows["k_shot"].map(as_number))
    rows = clear_rates_without_verdicts(rows)
    rows = rows.sort_values(["dataset", "category", "k_shot", "unlabeled", "contamination", "seed", "method"])
    content = _content(store, rows, baseline, None if jobs is None else _planned(jobs))
    content["glossary"] = GLOSSARY
    content["command"] = reproduce_command(config)
    content["reproduce_note"] = REPRODUCE_NOTE
    content["config"] = yaml.safe_dump(_to_json(config), sort_keys=False, allow_unicode=True)
    content["environment"] = {str(name): str(value) for name, value in _to_json(environment).items()}
    templates = template_environment("anomalib_fewshot.pipelines.report")  # escapes HTML only, so Markdown has `md`
    templates.filters |= {"md": _markdown, "breakable": _breakable}
    pages = {suffix: templates.get_template(f"report.{suffix}.j2").render(content) for suffix in ("html", "md")}
    store.write_exports(make_exports(content["sections"], content["pool_sections"], config))
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
            pool_sections.append(make_pool_section(main[main["dataset"] == dataset], styles, f"p{len(pool_sections)}"))
        for pool, own_rows in by_pool:
            own_summaries = {metric: _select(summary, dataset, *pool) for metric, summary in summaries.items()}
            sections.append(make_section(store, own_rows, own_summaries, baseline, f"d{len(sections)}", styles))
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
