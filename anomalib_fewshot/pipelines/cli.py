# Copyright (C) 2026 anomalib-fewshot contributors
# SPDX-License-Identifier: Apache-2.0

"""The pipelines as subcommands of anomalib."""

from collections.abc import Callable

import pandas as pd
from jsonargparse import ArgumentParser
from rich.console import Console
from rich.table import Table

from anomalib_fewshot._cli.command import Command

WIDTH_OF_FILE = 160  # of a table in characters, where there is no terminal


class FewShotBenchmark(Command):
    """Compare models on few normal images: the same supports, several seeds, paired differences."""

    name = "fewshot"
    extra = "benchmark"
    skip = {"dry_run"}  # noqa: RUF012  a flag instead

    @staticmethod
    def import_function() -> Callable[..., pd.DataFrame]:
        """Import :func:`benchmark` and return it."""
        from .few_shot_benchmark import benchmark

        return benchmark

    @classmethod
    def get_parser(cls, parser: ArgumentParser | None = None) -> ArgumentParser:  # type: ignore[override]
        """Return a parser of the arguments of :func:`benchmark`, which a file can give too."""
        parser = super().get_parser(parser)
        parser.add_argument("--dry_run", action="store_true", help="Show the runs and an estimate, and do nothing.")
        return parser


class FewShotCost(Command):
    """Measure the cost of methods side by side: seconds and memory of a fit, latency against the backbone's."""

    name = "fewshot_cost"
    extra = "benchmark"

    @staticmethod
    def import_function() -> Callable[..., pd.DataFrame]:
        """Import :func:`measure_cost` and return it."""
        from .cost import measure_cost

        return measure_cost

    def show(self, result: pd.DataFrame) -> None:
        """Print the table."""
        table = result.dropna(axis="columns", how="all")  # without a GPU there is no memory of one
        shown = Table("method", *(name.replace("_", " ") for name in table))
        for method, values in table.iterrows():
            shown.add_row(str(method), *("" if pd.isna(value) else f"{value:.2f}" for value in values))
        _print(shown)


class FewShotParity(Command):
    """Compare what runtimes and precisions say of the same files: scores, maps, verdicts, AUROC, latency, size."""

    name = "fewshot_parity"
    extra = "benchmark"

    @staticmethod
    def import_function() -> Callable[..., pd.DataFrame]:
        """Import :func:`measure_parity` and return it."""
        from .parity import measure_parity

        return measure_parity

    def show(self, result: pd.DataFrame) -> None:
        """Print the table of each method."""
        for method, rows in result.groupby(level="method", sort=False):
            shown = Table("runtime", *(name.replace("_", " ") for name in rows), title=str(method))
            for (_, runtime), values in rows.iterrows():
                shown.add_row(runtime, *map(_shown, values))
            _print(shown)


class FewShotFeatures(Command):
    """Draw test images as models see them, before and after a training: t-SNE or PCA, a picture and a page."""

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


def _print(table: Table) -> None:
    """Print a table, with all of its figures where it goes to a file."""
    console = Console()
    (console if console.is_terminal else Console(width=WIDTH_OF_FILE)).print(table)


def _shown(value: float | str) -> str:
    """Return a cell of a table."""
    if isinstance(value, str):
        return value
    return "" if pd.isna(value) else f"{value:.3g}"
