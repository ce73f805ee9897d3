# Copyright (C) 2026 anomalib-fewshot contributors
# SPDX-License-Identifier: Apache-2.0

"""The progress of a benchmark in the terminal."""

import sys
from collections.abc import Iterable
from types import TracebackType

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Column


class ProgressBar:
    """A bar of runs, with the current one beside it.

    Args:
        total (int): Number of runs.
    """

    def __init__(self, total: int) -> None:
        self._terminal = Console(file=sys.stdout)  # a run redirects stdout
        self._printed: set[str] = set()
        self._progress = Progress(
            BarColumn(bar_width=20),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            TextColumn("{task.description}", table_column=Column(no_wrap=True, overflow="ellipsis", ratio=1)),
            console=self._terminal,
            expand=True,
            speed_estimate_period=3600,
        )
        self._bar = self._progress.add_task("", total=total)

    def __enter__(self) -> "ProgressBar":
        """Show the bar."""
        self._progress.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Leave the bar as it is."""
        self._progress.stop()

    def show(self, text: str) -> None:
        """Show the current run."""
        self._progress.update(self._bar, description=escape(text))

    def advance(self) -> None:
        """Count a run."""
        self._progress.advance(self._bar)

    def print_warnings(self, lines: Iterable[str]) -> None:
        """Print lines above the bar, each once."""
        for line in dict.fromkeys(lines):
            if line not in self._printed:
                self._printed.add(line)
                self._terminal.print(f"[yellow]Warning:[/yellow] {escape(line)}", highlight=False)

    def print_failure(self, text: str) -> None:
        """Print a run that failed, above the bar."""
        self._terminal.print(f"[red]Failed:[/red] {escape(text)}", highlight=False)
