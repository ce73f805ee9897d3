# Copyright (C) 2026 anomalib-fewshot contributors
# SPDX-License-Identifier: Apache-2.0

"""The pipelines as subcommands of anomalib."""

import sys
from collections.abc import Callable
from typing import Any, ClassVar

import pandas as pd
from anomalib.pipelines.components.base import Pipeline
from jsonargparse import ActionConfigFile, ArgumentParser, Namespace
from rich.console import Console
from rich.table import Table

from anomalib_fewshot.errors import FewShotError

from .benchmark import benchmark
from .cost import measure_cost
from .parity import measure_parity

INTERRUPTED = 130  # exit status of a command that Ctrl-C has ended
WIDTH_OF_FILE = 160  # of a table in characters, where there is no terminal


class Command(Pipeline):
    """A function as a pipeline: its arguments come from the command line and from a file.

    Attributes:
        name (str): Name of the subcommand.
        function (Callable): The function, as a static method.
        skip (set[str]): Arguments that the parser does not have.
    """

    name: ClassVar[str]
    function: ClassVar[Callable[..., Any]]
    skip: ClassVar[set[str | int]] = set()

    @classmethod
    def get_parser(cls, parser: ArgumentParser | None = None) -> ArgumentParser:  # type: ignore[override]
        """Return a parser of the arguments of the function, which a file can give too."""
        if parser is None:
            parser = ArgumentParser(description=cls.__doc__)
            parser.add_argument("-c", "--config", action=ActionConfigFile, help="YAML file of the arguments below.")
        parser.add_function_arguments(cls.function, skip=cls.skip)
        return parser

    def run(self, args: Namespace | None = None) -> None:
        """Call the function.

        Args:
            args (Namespace | None): Its arguments. Defaults to ``None``: the command line's.

        Raises:
            SystemExit: If an argument is wrong or results cannot be written, with the reason; or after Ctrl-C, with
                exit status 130.
        """
        arguments = (self.get_parser().parse_args() if args is None else args).as_dict()
        try:
            result = self.function(**{name: _plain(value) for name, value in arguments.items() if name != "config"})
        except (FewShotError, OSError, ValueError) as error:
            msg = f"anomalib {self.name}: {error}"
            raise SystemExit(msg) from error
        except KeyboardInterrupt:
            print(f"anomalib {self.name}: interrupted.", file=sys.stderr)
            raise SystemExit(INTERRUPTED) from None
        self.show(result)

    def show(self, result: Any) -> None:  # noqa: ANN401
        """Print the result. By default nothing: the function has printed it."""

    def _setup_runners(self, args: dict) -> list:
        """Not used: the base class would lose the results of a run that is ended."""
        raise NotImplementedError


class FewShotBenchmark(Command):
    """Compare models on few normal images: the same supports, several seeds, paired differences."""

    name = "fewshot"
    function = staticmethod(benchmark)
    skip = {"dry_run"}  # noqa: RUF012  a flag instead

    @classmethod
    def get_parser(cls, parser: ArgumentParser | None = None) -> ArgumentParser:  # type: ignore[override]
        """Return a parser of the arguments of :func:`benchmark`, which a file can give too."""
        parser = super().get_parser(parser)
        parser.add_argument("--dry_run", action="store_true", help="Show the runs and an estimate, and do nothing.")
        return parser


class FewShotCost(Command):
    """Measure the cost of methods side by side: seconds and memory of a fit, latency against the backbone's."""

    name = "fewshot_cost"
    function = staticmethod(measure_cost)

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
    function = staticmethod(measure_parity)

    def show(self, result: pd.DataFrame) -> None:
        """Print the table of each method."""
        for method, rows in result.groupby(level="method", sort=False):
            shown = Table("runtime", *(name.replace("_", " ") for name in rows), title=str(method))
            for (_, runtime), values in rows.iterrows():
                shown.add_row(runtime, *map(_shown, values))
            _print(shown)


def _plain(value: Any) -> Any:  # noqa: ANN401  whatever a file may hold
    """Return a value without the parser's namespaces, which it leaves in lists: in those of callbacks."""
    if isinstance(value, Namespace):
        value = value.as_dict()
    if isinstance(value, dict):
        return {name: _plain(part) for name, part in value.items()}
    return [_plain(part) for part in value] if isinstance(value, list) else value


def _print(table: Table) -> None:
    """Print a table, with all of its figures where it goes to a file."""
    console = Console()
    (console if console.is_terminal else Console(width=WIDTH_OF_FILE)).print(table)


def _shown(value: float | str) -> str:
    """Return a cell of a table."""
    if isinstance(value, str):
        return value
    return "" if pd.isna(value) else f"{value:.3g}"
