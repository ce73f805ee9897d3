# Copyright (C) 2026 anomalib-fewshot contributors
# SPDX-License-Identifier: Apache-2.0

"""Subcommands of ``anomalib`` that run the pipelines."""

from collections.abc import Callable

import pandas as pd
from jsonargparse import ArgumentParser
from rich.console import Console
from rich.table import Table

from anomalib_fewshot._cli.command import Command

FILE_WIDTH = 160  # characters, for a table that is written to a file or a pipe


class FewShotBenchmark(Command):
    """Compare models on few normal images: identical support sets, several seeds, paired differences."""

    name = "fewshot"
    extra = "benchmark"
    skip = {"dry_run"}  # noqa: RUF012  `get_parser` adds it as a flag

    @staticmethod
    def import_function() -> Callable[..., pd.DataFrame]:
        """Import :func:`benchmark` and return it."""
        from .few_shot_benchmark import benchmark

        return benchmark

    @classmethod
    def get_parser(cls, parser: ArgumentParser | None = None) -> ArgumentParser:
        """Return a parser for the arguments of :func:`benchmark`. A YAML file can set them too."""
        parser = super().get_parser(parser)
        parser.add_argument(
            "--dry_run",
            action="store_true",
            help="List the runs and estimate the time, without running them.",
        )
        return parser


class FewShotCost(Command):
    """Measure the cost of methods: time and memory of a fit, and latency relative to the backbone."""

    name = "fewshot_cost"
    extra = "benchmark"

    @staticmethod
    def import_function() -> Callable[..., pd.DataFrame]:
        """Import :func:`measure_cost` and return it."""
        from .cost import measure_cost

        return measure_cost

    def show(self, result: pd.DataFrame) -> None:
        """Print the table."""
        table = result.dropna(axis="columns", how="all")  # GPU memory, if there is no GPU
        printed = Table("method", *(name.replace("_", " ") for name in table))
        for method, values in table.iterrows():
            printed.add_row(str(method), *("" if pd.isna(value) else f"{value:.2f}" for value in values))
        _print_table(printed)


class FewShotParity(Command):
    """Compare runtimes and precisions on the same images: scores, maps, verdicts, AUROC, latency and size."""

    name = "fewshot_parity"
    extra = "benchmark"

    @staticmethod
    def import_function() -> Callable[..., pd.DataFrame]:
        """Import :func:`measure_parity` and return it."""
        from .parity import measure_parity

        return measure_parity

    def show(self, result: pd.DataFrame) -> None:
        """Print one table per method."""
        for method, rows in result.groupby(level="method", sort=False):
            printed = Table("runtime", *(name.replace("_", " ") for name in rows), title=str(method))
            for (_, runtime), values in rows.iterrows():
                printed.add_row(runtime, *map(_format_cell, values))
            _print_table(printed)


class FewShotFeatures(Command):
    """Plot the features of test images before and after training, with t-SNE or PCA."""

    name = "fewshot_features"
    extra = "benchmark"

    @staticmethod
    def import_function() -> Callable[..., pd.DataFrame]:
        """Import :func:`compare_features` and return it."""
        from .features import compare_features

        return compare_features

    def show(self, result: pd.DataFrame) -> None:
        """Print the table."""
        table = Table("method", *result)
        for method, values in result.iterrows():
            table.add_row(str(method), *(f"{value:.3g}" for value in values))
        Console().print(table)


def _print_table(table: Table) -> None:
    """Print a table. Without a terminal it is wide enough for all columns."""
    console = Console()
    if not console.is_terminal:
        console = Console(width=FILE_WIDTH)
    console.print(table)


def _format_cell(value: float | str) -> str:
    """Return the text of a table cell."""
    if isinstance(value, str):
        return value
    return "" if pd.isna(value) else f"{value:.3g}"
