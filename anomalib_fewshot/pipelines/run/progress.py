# Copyright (C) 2026 anomalib-fewshot contributors
# SPDX-License-Identifier: Apache-2.0

"""Progress bar of a benchmark."""

import sys
from collections.abc import Iterable
from types import TracebackType
from typing import TYPE_CHECKING

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Column

from anomalib_fewshot.data.validation.issue import DataIssue, summarize

if TYPE_CHECKING:
    from pathlib import Path


class ProgressBar:
    """Progress bar that counts runs and shows the current one.

    Args:
        total (int): Number of runs.
    """

    def __init__(self, total: int) -> None:
        self._terminal = Console(file=sys.stdout)  # keep the original stdout, because runs redirect it
        self._printed: set[tuple[Path, str]] = set()  # path and kind of each issue so far
        self._deferred: list[DataIssue] = []  # issues of a kind that is already printed
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
        """Stop the bar, and print the deferred warnings."""
        self._progress.stop()
        self._print_warnings(self._deferred)

    def set_current(self, text: str) -> None:
        """Show the name of the current run."""
        self._progress.update(self._bar, description=escape(text))

    def advance(self) -> None:
        """Count one finished run."""
        self._progress.advance(self._bar)

    def print_issues(self, issues: Iterable[DataIssue]) -> None:
        """Print a warning above the bar for each new kind of issue. Further files are printed when the bar stops.

        A file is printed once for each kind: another support set compares it with another median.
        """
        printed_kinds = {kind for _, kind in self._printed}
        new_kinds = []
        for issue in issues:
            kind = issue.kind or issue.message
            if (issue.path, kind) in self._printed:
                continue
            self._printed.add((issue.path, kind))
            if kind in printed_kinds:
                self._deferred.append(issue)
            else:
                new_kinds.append(issue)
        self._print_warnings(new_kinds)

    def _print_warnings(self, issues: Iterable[DataIssue]) -> None:
        for line in summarize(issues):
            self._terminal.print(f"[yellow]Warning:[/yellow] {escape(line)}", highlight=False)

    def print_failure(self, text: str) -> None:
        """Print the error of a failed run above the bar."""
        self._terminal.print(f"[red]Failed:[/red] {escape(text)}", highlight=False)
