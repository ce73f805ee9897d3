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

from anomalib_fewshot.data.validation.issue import DataIssue, summarize


class ProgressBar:
    """A bar of runs, with the current one beside it.

    Args:
        total (int): Number of runs.
    """

    def __init__(self, total: int) -> None:
        self._terminal = Console(file=sys.stdout)  # a run redirects stdout
        self._findings: dict[DataIssue, None] = {}
        self._later: list[DataIssue] = []  # of a kind that was printed before, for the end
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
        """Leave the bar as it is, and print the findings of later runs."""
        self._progress.stop()
        self._print_warnings(self._later)

    def show(self, text: str) -> None:
        """Show the current run."""
        self._progress.update(self._bar, description=escape(text))

    def advance(self) -> None:
        """Count a run."""
        self._progress.advance(self._bar)

    def print_findings(self, findings: Iterable[DataIssue]) -> None:
        """Print a line above the bar for each kind that is new. The end of the bar prints the other files."""
        fresh = [finding for finding in dict.fromkeys(findings) if finding not in self._findings]
        printed = {finding.kind or finding.message for finding in self._findings}
        self._later += [finding for finding in fresh if (finding.kind or finding.message) in printed]
        self._print_warnings(finding for finding in fresh if (finding.kind or finding.message) not in printed)
        self._findings |= dict.fromkeys(fresh)

    def _print_warnings(self, findings: Iterable[DataIssue]) -> None:
        for line in summarize(findings):
            self._terminal.print(f"[yellow]Warning:[/yellow] {escape(line)}", highlight=False)

    def print_failure(self, text: str) -> None:
        """Print a run that failed, above the bar."""
        self._terminal.print(f"[red]Failed:[/red] {escape(text)}", highlight=False)
