# Copyright (C) 2026 anomalib-fewshot contributors
# SPDX-License-Identifier: Apache-2.0

"""Files next to the report: LaTeX tables, figures and BibTeX entries."""

import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from .figures import Plot
from .latex import to_latex
from .references import find_references
from .sections import PoolSection, Section
from .tables import Table

REPRODUCE_NOTE = (
    "This command repeats the benchmark with the settings below and the versions above. Add --results and a new folder "
    "to leave these results as they are."
)


def reproduce_command(config: Mapping[str, Any]) -> str:
    """Return the command that runs the benchmark again from the ``config.yaml`` in its results folder."""
    folder = str(config.get("results", "RESULTS")).rstrip("/")
    return f"anomalib fewshot --config {shlex.quote(folder + '/config.yaml')}"


def make_exports(
    sections: Sequence[Section],
    pool_sections: Sequence[PoolSection],
    config: Mapping[str, Any],
) -> dict[str, bytes]:
    """Return the content of all files by their path in the results folder.

    Args:
        sections (Sequence[Section]): Sections of the report.
        pool_sections (Sequence[PoolSection]): Sections that compare unlabeled images.
        config (Mapping[str, Any]): All settings of the benchmark.
    """
    files = {}
    parts: list[Section | PoolSection] = [*sections, *pool_sections]
    for name, section in zip(_unique_names([section.name for section in parts]), parts, strict=True):
        named = _section_tables(section) if isinstance(section, Section) else [("means", [section.table])]
        for part, tables in named:
            labels = [f"{name}-{part}"] if len(tables) == 1 else [f"{name}-{part}-{i}" for i in range(len(tables))]
            text = "\n".join(to_latex(table, label) for table, label in zip(tables, labels, strict=True))
            files[f"tables/{name}-{part}.tex"] = text.encode()
        for plot in _plots(section):
            part = plot.name.partition("-")[2]
            for suffix, content in plot.files.items():
                files[f"figures/{name}-{part}.{suffix}"] = content
    references = find_references(config)
    files["references.bib"] = "\n".join(reference.to_bibtex() for reference in references).encode()
    return files


def _section_tables(section: Section) -> Iterator[tuple[str, list[Table]]]:
    """Yield the name and the tables of each LaTeX file of a section, with captions that need no context."""
    for metric, table in section.means.items():
        yield f"means-{metric}", [_with_name(section.name, table)]
    if section.guarantees is not None:
        yield "guarantees", [_with_name(section.name, section.guarantees)]
    if section.differences is not None:
        yield "differences", [_with_name(section.name, section.differences)]
    for part in section.categories:
        name = f"{section.name}, {part.label} by category"
        yield f"categories-{part.metric}", [_with_name(name, table) for table in part.tables]
    if section.metrics is not None:
        yield "metrics", [_with_name(section.name, section.metrics)]
    if section.costs is not None:
        yield "cost", [_with_name(section.name, section.costs)]


def _with_name(name: str, table: Table) -> Table:
    return replace(table, caption=f"{name}. {table.caption}.")


def _plots(section: Section | PoolSection) -> list[Plot]:
    if isinstance(section, PoolSection):
        return [plot for _, plot in section.curves]
    forests = [plot for _, plot in section.forests]
    return [*section.curves, *section.guarantee_curves, *section.image_curves, *forests, *section.scatters]


def _unique_names(titles: Sequence[str]) -> list[str]:
    """Return a file name for each title, made of letters, digits and ``_``.

    Example:
        >>> _unique_names(["Parts, 16 images", "Parts 16 images"])
        ['Parts_16_images', 'Parts_16_images_2']
    """
    names: list[str] = []
    for title in titles:
        base = name = re.sub(r"[^A-Za-z0-9]+", "_", title).strip("_") or "dataset"
        number = 1
        while name in names:
            number += 1
            name = f"{base}_{number}"
        names.append(name)
    return names
