# Copyright (C) 2026 anomalib-fewshot contributors
# SPDX-License-Identifier: Apache-2.0

"""Output folder of a run. Its journal gets one line per scored picture, so an interrupted run can be resumed."""

import csv
import io
import json
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, replace
from math import isnan
from pathlib import Path
from typing import Any

import pandas as pd

from anomalib_fewshot.atomic import write_atomically
from anomalib_fewshot.errors import ArgumentError

from .settings import Settings

SETTINGS, JOURNAL, TABLE, ISSUES = "run.json", "scored.jsonl", "scores.csv", "findings.csv"
COLUMNS = ("path", "verdict", "score", "p_value")


@dataclass(frozen=True, slots=True)
class Entry:
    """Line of the journal: the result of a picture, and the state of the file when it was scored.

    Args:
        path (str): Path relative to the folder of new pictures.
        verdict (str): Verdict.
        score (float): Score.
        p_value (float | None): p-value, or ``None`` if the model provides none.
        width (int): Width in pixels.
        height (int): Height in pixels.
        num_bytes (int): File size in bytes.
        modified (int): Modification time of the file, in nanoseconds.
        num_unlabeled (int): Number of unlabeled pictures that the model had learned from. With `watch` it grows, and
            scores of another number are outdated. Defaults to ``0``, for runs of earlier versions.
        region (list[int] | None): Largest anomalous region: x, y, width, height and area in pixels. ``None`` if no
            pixel is above the threshold. Defaults to ``None``.
        nearest (list[float] | None): Most similar region of a good picture, see :class:`NearestGood`: number of the
            picture, x and y there, side, and x and y in this picture, in pixels. Defaults to ``None``.
    """

    path: str
    verdict: str
    score: float
    p_value: float | None
    width: int
    height: int
    num_bytes: int
    modified: int
    num_unlabeled: int = 0
    region: list[int] | None = None
    nearest: list[float] | None = None

    def to_result(self) -> dict[str, Any]:
        """Return the result of the picture as values for JSON."""
        names = ("x", "y", "width", "height", "area")
        region = None if self.region is None else dict(zip(names, self.region, strict=True))
        return {name: getattr(self, name) for name in COLUMNS} | {"region": region}


class RunFolder:
    """Output folder of a run.

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
                    continue  # the run was killed while it wrote this line
                self.entries[entry.path] = entry

    @classmethod
    def create(cls, root: Path) -> "RunFolder":
        """Create the next free subfolder of ``root`` (``v0``, ``v1`` and so on) and return it."""
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
    def settings(self) -> Settings:
        """Settings of the run.

        Raises:
            ArgumentError: If the folder does not belong to a run.
        """
        try:
            return Settings.from_dict(json.loads((self.path / SETTINGS).read_text(encoding="utf-8")))
        except (OSError, json.JSONDecodeError, TypeError) as error:
            msg = f"The folder must contain an earlier run, got {self.path} without {SETTINGS}. Check the path."
            raise ArgumentError(msg) from error

    def write_settings(self, settings: Settings) -> None:
        """Write the settings of the run."""
        write_atomically(self.path / SETTINGS, json.dumps(settings.to_dict(), indent=2) + "\n")

    def add(self, entries: Iterable[Entry]) -> None:
        """Append to the journal. If a picture has several lines, the last one is used."""
        with (self.path / JOURNAL).open("a+b") as file:
            if file.tell():
                file.seek(-1, io.SEEK_END)
                if file.read() != b"\n":  # a killed run left an incomplete line
                    file.write(b"\n")
            for entry in entries:
                file.write(json.dumps(asdict(entry)).encode() + b"\n")
                self.entries[entry.path] = entry

    def update_verdicts(self, verdict: Callable[[Entry], str]) -> None:
        """Append the entries whose verdict has changed."""
        changed = []
        for entry in self.entries.values():
            new_verdict = verdict(entry)
            if new_verdict != entry.verdict:
                changed.append(replace(entry, verdict=new_verdict))
        self.add(changed)

    def table(self) -> pd.DataFrame:
        """Return path, verdict, score and p-value of each picture, sorted from the highest to the lowest score."""
        rows = [tuple(getattr(entry, name) for name in COLUMNS) for entry in self.entries.values()]
        table = pd.DataFrame(rows, columns=list(COLUMNS)).astype({"score": float, "p_value": float})
        return table.sort_values(["score", "path"], ascending=[False, True], ignore_index=True)

    def write_table(self) -> pd.DataFrame:
        """Write ``scores.csv`` and return it."""
        table = self.table()
        write_atomically(self.path / TABLE, _csv(COLUMNS, table.itertuples(index=False)))
        return table

    def write_issues(self, issues: Iterable[tuple[str, str, str]]) -> None:
        """Write ``findings.csv``, which lists the data issues."""
        write_atomically(self.path / ISSUES, _csv(("path", "severity", "message"), issues))


def _csv(header: Iterable[str], rows: Iterable[Iterable[Any]]) -> bytes:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    for row in rows:
        writer.writerow(["" if isinstance(value, float) and isnan(value) else value for value in row])
    return text.getvalue().encode("utf-8", errors="surrogateescape")
