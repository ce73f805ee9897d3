# Copyright (C) 2026 anomalib-fewshot contributors
# SPDX-License-Identifier: Apache-2.0

"""The folder of a run: what was scored, line by line, so that a run that was ended loses nothing."""

import csv
import io
import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from anomalib_fewshot.atomic import write_atomically

SETTINGS, JOURNAL, TABLE, FINDINGS = "run.json", "scored.jsonl", "scores.csv", "findings.csv"
COLUMNS = ("path", "verdict", "score", "p_value")


@dataclass(frozen=True, slots=True)
class Entry:
    """A line of the journal: a picture, and the file that it was when it was scored.

    Args:
        path (str): Path in the folder of new pictures.
        verdict (str): Verdict.
        score (float): Score.
        p_value (float | None): p-value, if there is one.
        width (int): Width of the photo.
        height (int): Height of the photo.
        num_bytes (int): Length of the file.
        modified (int): Time of its last change, in nanoseconds.
    """

    path: str
    verdict: str
    score: float
    p_value: float | None
    width: int
    height: int
    num_bytes: int
    modified: int


class RunFolder:
    """A folder of one run.

    Args:
        path (Path): The folder.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.entries: dict[str, Entry] = {}
        if (path / JOURNAL).is_file():
            for line in (path / JOURNAL).read_text(encoding="utf-8").splitlines():
                try:
                    entry = Entry(**json.loads(line))
                except (json.JSONDecodeError, TypeError):
                    continue  # a line that was cut off
                self.entries[entry.path] = entry

    @classmethod
    def create(cls, root: Path) -> "RunFolder":
        """Return a new folder below a root, ``v0``, ``v1`` and so on: no run writes to that of another."""
        root.mkdir(parents=True, exist_ok=True)
        number = 0
        while True:
            try:
                (root / f"v{number}").mkdir()
            except FileExistsError:
                number += 1
            else:
                return cls(root / f"v{number}")

    @property
    def settings(self) -> dict[str, Any]:
        """Settings of the run.

        Raises:
            ValueError: If the folder is not that of a run.
        """
        try:
            return json.loads((self.path / SETTINGS).read_text(encoding="utf-8"))
        except (OSError, json.JSONDecodeError) as error:
            msg = f"The folder must be that of an earlier run, got {self.path}, which has no {SETTINGS}. Give another."
            raise ValueError(msg) from error

    def write_settings(self, **settings: Any) -> None:  # noqa: ANN401
        """Write the settings of the run."""
        write_atomically(self.path / SETTINGS, json.dumps(settings, indent=2) + "\n")

    def add(self, entries: Iterable[Entry]) -> None:
        """Append to the journal. Of a picture with two lines the later one counts."""
        with (self.path / JOURNAL).open("a+b") as file:
            if file.tell():
                file.seek(-1, io.SEEK_END)
                if file.read() != b"\n":  # the end of a run that was killed
                    file.write(b"\n")
            for entry in entries:
                file.write(json.dumps(asdict(entry)).encode() + b"\n")
                self.entries[entry.path] = entry

    def table(self) -> pd.DataFrame:
        """Return the pictures by score, the highest first, with the columns path, verdict, score and p_value."""
        rows = [tuple(getattr(entry, name) for name in COLUMNS) for entry in self.entries.values()]
        table = pd.DataFrame(rows, columns=list(COLUMNS)).astype({"score": float, "p_value": float})
        return table.sort_values(["score", "path"], ascending=[False, True], ignore_index=True)

    def write_table(self) -> pd.DataFrame:
        """Write ``scores.csv`` and return it."""
        table = self.table()
        write_atomically(self.path / TABLE, _csv(COLUMNS, table.itertuples(index=False)))
        return table

    def write_findings(self, findings: Iterable[tuple[str, str, str]]) -> None:
        """Write ``findings.csv``: what is wrong with which file."""
        write_atomically(self.path / FINDINGS, _csv(("path", "severity", "message"), findings))


def _csv(header: Iterable[str], rows: Iterable[Iterable[Any]]) -> bytes:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    writer.writerows([["" if value != value else value for value in row] for row in rows])  # noqa: PLR0124  NaN
    return text.getvalue().encode("utf-8", errors="surrogateescape")
