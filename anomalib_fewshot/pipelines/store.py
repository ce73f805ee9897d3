# Copyright (C) 2026 anomalib-fewshot contributors
# SPDX-License-Identifier: Apache-2.0

"""The folder of a sweep: every finished run is a file of its own, and the table is made of these files."""

import json
import math
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pandas as pd
from filelock import FileLock, Timeout

from anomalib_fewshot.atomic import write_atomically

from .jobs import Job
from .worker import Outcome

FORMAT = 1


class Store:
    """The folder that a sweep leaves.

    ``runs/KEY.json`` holds a run and decides whether it is finished: it is written last and in one step. A key changes
    with every setting that a result depends on, so that a changed configuration does not meet old runs. Several
    processes can share a folder: a run is claimed by a lock, which the system gives back when a process dies.

    Args:
        folder (Path): The folder. It is made if it is not there.

    Raises:
        ValueError: If the folder was made by another version of this class, or holds something else.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._check()
        for name in ("runs", "supports", "examples", ".locks"):
            (folder / name).mkdir(parents=True, exist_ok=True)
        write_atomically(folder / "runs" / "FORMAT", f"{FORMAT}\n")

    def _check(self) -> None:
        mark = self.folder / "runs" / "FORMAT"
        if not mark.is_file():
            if self.folder.exists() and (not self.folder.is_dir() or any(self.folder.iterdir())):
                msg = f"`results` must be a new folder or that of a sweep, got {self.folder}, which holds other things."
                raise ValueError(msg)
            return
        found = mark.read_text(encoding="utf-8").strip()
        if found != str(FORMAT):
            msg = (
                f"`results` must be a folder of format {FORMAT}, got {self.folder}, which has format {found}. It is "
                "left as it is: name another folder, or use the version of anomalib-fewshot that made it."
            )
            raise ValueError(msg)

    @contextmanager
    def claim(self, job: Job) -> Generator[bool, None, None]:
        """Claim a run as long as the context lasts. Gives False if another process has claimed or finished it."""
        lock = FileLock(self.folder / ".locks" / job.key)
        try:
            lock.acquire(blocking=False)
        except Timeout:
            yield False
            return
        try:
            yield not self.is_finished(job)
        finally:
            lock.release()

    def is_finished(self, job: Job) -> bool:
        """Return whether there is a result of a run. A run that failed is not finished."""
        rows = self._read(job)
        return bool(rows) and all(row["status"] == "ok" for row in rows)

    def save(self, job: Job, outcome: Outcome) -> None:
        """Keep the outcome of a run.

        Raises:
            OSError: If it cannot be written. What was there before is untouched.
        """
        try:
            self._write(job, outcome)
        except OSError as error:
            msg = (
                f"The run {job} cannot be written: {error}. All runs that were finished before are kept in "
                f"{self.folder}: make room, and start the same command again."
            )
            raise OSError(msg) from error

    def table(self, jobs: Sequence[Job]) -> pd.DataFrame:
        """Return the rows of all runs that there are.

        Args:
            jobs (Sequence[Job]): Runs of the current configuration. Others in the folder are left out.
        """
        return pd.DataFrame([row for job in jobs for row in self._read(job)])

    def write_table(self, jobs: Sequence[Job]) -> pd.DataFrame:
        """Write the rows of all runs that there are to ``results.csv``, and return them."""
        with FileLock(self.folder / ".locks" / "table"):
            table = self.table(jobs)
            write_atomically(self.folder / "results.csv", table.to_csv(index=False))
        return table

    def num_others(self, jobs: Sequence[Job]) -> int:
        """Return how many runs the folder holds that are not of the current configuration."""
        return len({path.stem for path in (self.folder / "runs").glob("*.json")} - {job.key for job in jobs})

    def _write(self, job: Job, outcome: Outcome) -> None:
        for (category, name), picture in outcome.pictures.items():
            write_atomically(self.folder / "examples" / job.key / category / f"{name}.jpg", picture)
        for category, manifest in zip(job.tested, outcome.manifests, strict=False):  # a run that failed has none
            manifest.write(self._support_file(job, category))
        content = {"rows": [_plain(row) for row in outcome.rows], "scores": outcome.scores}
        write_atomically(self._run_file(job), json.dumps(content, indent=1))

    def _read(self, job: Job) -> list[dict[str, Any]]:
        try:
            return json.loads(self._run_file(job).read_text(encoding="utf-8"))["rows"]
        except FileNotFoundError:
            return []

    def _run_file(self, job: Job) -> Path:
        return self.folder / "runs" / f"{job.key}.json"

    def _support_file(self, job: Job, category: str) -> Path:
        name = "-".join(part for part in (job.dataset, category) if part)
        return self.folder / "supports" / f"{name.replace('/', '_')}-k{job.k_shot}-seed{job.seed}.json"


def _plain(row: dict[str, Any]) -> dict[str, Any]:
    """Return a row that JSON can hold: it knows no NaN."""
    return {key: None if isinstance(value, float) and math.isnan(value) else value for key, value in row.items()}
