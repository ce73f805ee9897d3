# Copyright (C) 2026 anomalib-fewshot contributors
# SPDX-License-Identifier: Apache-2.0

"""The folder of a benchmark. Only this module knows where its files are."""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from glob import escape as glob_escape
from pathlib import Path
from tempfile import TemporaryDirectory
from types import TracebackType
from typing import Any

import pandas as pd
import yaml
from filelock import FileLock, Timeout

from anomalib_fewshot.atomic import write_atomically
from anomalib_fewshot.data.manifest import SupportManifest
from anomalib_fewshot.pipelines.plan.job import Job

from .outcome import Outcome
from .row import as_table

FORMAT = 1


class Store:
    """The folder that a benchmark leaves.

    ``runs/KEY.json`` holds a run and decides whether it is finished: it is written last and atomically. A key changes
    with every setting that a result depends on, so that a changed configuration does not meet old runs. A run file is
    read once, and each finished run is appended to ``results.csv``. Several processes can share a folder: a run is
    claimed by a lock, which the system releases when a process dies.

    Args:
        folder (Path): The folder. It is made if it is not there.

    Raises:
        ValueError: If the folder was made by another version of this class, or holds something else.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._runs: dict[str, tuple[int, list[dict[str, Any]]]] = {}  # time of writing and rows, by key
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

    def claim(self, job: Job) -> "Claim | None":
        """Claim a run, or return ``None`` if another process has claimed or finished it."""
        lock = FileLock(self.folder / ".locks" / job.key)
        try:
            lock.acquire(blocking=False)
        except Timeout:
            return None
        if self.is_finished(job):
            lock.release()
            return None
        return Claim(lock)

    def is_finished(self, job: Job) -> bool:
        """Return whether there is a result of a run. A run that failed is not finished."""
        rows = self._read(job)
        return bool(rows) and all(row["status"] == "ok" for row in rows)

    def save(self, job: Job, outcome: Outcome) -> None:
        """Keep the outcome of a run, and append its rows to ``results.csv``.

        Raises:
            OSError: If it cannot be written. What was there before is untouched.
        """
        rows = [row.to_json() for row in outcome.rows]
        try:
            for (category, name), picture in outcome.examples.items():
                write_atomically(self._example_folder(job.key, category) / f"{name}.jpg", picture)
            for category, manifest in zip(job.test_categories, outcome.manifests, strict=False):  # none if it failed
                manifest.write(self.support_file(job, category))
            write_atomically(self._run_file(job), json.dumps({"rows": rows, "scores": outcome.scores}, indent=1))
            self._append(rows)
        except OSError as error:
            msg = (
                f"The run {job} cannot be written: {error}. All runs that were finished before are kept in "
                f"{self.folder}: make room, and start the same command again."
            )
            raise OSError(msg) from error
        self._runs[job.key] = self._run_file(job).stat().st_mtime_ns, rows

    def table(self, jobs: Sequence[Job]) -> pd.DataFrame:
        """Return the rows of the runs that are there, those of other processes included.

        Args:
            jobs (Sequence[Job]): Runs of the current configuration. Others in the folder are left out.
        """
        return as_table(row for job in jobs for row in self._read(job))

    def write_table(self, jobs: Sequence[Job]) -> pd.DataFrame:
        """Write ``results.csv`` from the runs that are there, and return it."""
        with self._table_lock():
            table = self.table(jobs)
            write_atomically(self._table_file, table.to_csv(index=False))
        return table

    def num_others(self, jobs: Sequence[Job]) -> int:
        """Return how many runs the folder holds that are not of the current configuration."""
        return len({path.stem for path in (self.folder / "runs").glob("*.json")} - {job.key for job in jobs})

    def scores(self, job: Job) -> dict[str, list[float]]:
        """Return label and raw score of each test image of a run that is there, by its path."""
        return json.loads(self._run_file(job).read_text(encoding="utf-8"))["scores"]

    def write_settings(self, config: Mapping[str, Any], environment: Mapping[str, Any]) -> None:
        """Write ``config.yaml`` and ``environment.json``."""
        write_atomically(self.folder / "config.yaml", yaml.safe_dump(config, sort_keys=False))
        write_atomically(self.folder / "environment.json", json.dumps(environment, indent=2))

    def write_report(self, pages: Mapping[str, str]) -> Path:
        """Write the pages of a report by their suffixes, and return the path of the first."""
        paths = [self.folder / f"report.{suffix}" for suffix in pages]
        for path, page in zip(paths, pages.values(), strict=True):
            write_atomically(path, page)
        return paths[0]

    def support_file(self, job: Job, category: str) -> Path:
        """Return the path of a support's manifest. Data of an override have their own."""
        suffix = f"-data{job.data_key[:8]}" if job.has_own_data else ""
        return self._support_file(job.dataset, category, job.k_shot, job.seed, suffix)

    def supports(self, table: pd.DataFrame) -> Iterator[tuple[str, SupportManifest]]:
        """Yield k and the manifest of each support in a table."""
        for cell, rows in table.groupby(["dataset", "category", "k_shot", "seed"]):
            digests = set(rows["support"])
            plain = self._support_file(*cell)
            for path in [plain, *sorted(plain.parent.glob(f"{glob_escape(plain.stem)}-data*.json"))]:
                manifest = _read_manifest(path)
                if manifest is not None and manifest.digest in digests:
                    yield str(cell[2]), manifest

    def has_examples(self, key: str) -> bool:
        """Return whether there are examples of a run."""
        return self._example_folder(key).is_dir()

    def examples(self, key: str, category: str) -> dict[str, bytes]:
        """Return the JPEG files of a run's examples by name."""
        return {path.stem: path.read_bytes() for path in sorted(self._example_folder(key, category).glob("*.jpg"))}

    @property
    def trainings(self) -> "Trainings":
        """Networks trained on other categories."""
        return Trainings(self.folder.absolute() / "trainings")

    def _append(self, rows: list[dict[str, Any]]) -> None:
        with self._table_lock():
            is_new = not self._table_file.is_file()
            with self._table_file.open("a", encoding="utf-8", newline="") as file:
                as_table(rows).to_csv(file, index=False, header=is_new)

    def _read(self, job: Job) -> list[dict[str, Any]]:
        """Return the rows of a run. A file is read again only if another process has written it."""
        path = self._run_file(job)
        try:
            written = path.stat().st_mtime_ns
        except FileNotFoundError:
            return []
        if self._runs.get(job.key, (None,))[0] != written:
            self._runs[job.key] = written, json.loads(path.read_text(encoding="utf-8"))["rows"]
        return self._runs[job.key][1]

    def _table_lock(self) -> FileLock:
        return FileLock(self.folder / ".locks" / "table")

    @property
    def _table_file(self) -> Path:
        return self.folder / "results.csv"

    def _run_file(self, job: Job) -> Path:
        return self.folder / "runs" / f"{job.key}.json"

    def _example_folder(self, key: str, category: str = "") -> Path:
        return self.folder / "examples" / key / category

    def _support_file(self, dataset: str, category: str, k_shot: int | str, seed: int, suffix: str = "") -> Path:
        name = "-".join(part for part in (dataset, category) if part).replace("/", "_")
        return self.folder / "supports" / f"{name}-k{k_shot}-seed{seed}{suffix}.json"


class Claim(AbstractContextManager):
    """A run that this process has claimed, as long as the context lasts."""

    def __init__(self, lock: FileLock) -> None:
        self._lock = lock

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Release the claim."""
        self._lock.release()


@dataclass(frozen=True)
class Training:
    """A finished training on other categories: its checkpoint, seconds and optimiser steps."""

    checkpoint: Path
    seconds: float
    steps: int


@dataclass(frozen=True)
class Trainings:
    """Trainings that several runs share.

    Args:
        folder (Path): Absolute path of their folder: workers have other current folders.
    """

    folder: Path

    def get(self, key: str, train: Callable[[Path], tuple[float, int]]) -> Training:
        """Return a training, which the first run that asks for it carries out while others wait.

        Args:
            key (str): Hash of its settings.
            train (Callable): Writes a checkpoint to the path that it is given, and returns seconds and steps.
        """
        folder = self.folder / key
        self.folder.mkdir(parents=True, exist_ok=True)
        with FileLock(folder.with_suffix(".lock")):
            if not folder.exists():
                with TemporaryDirectory(dir=self.folder, prefix=".part-") as part:
                    made = Path(part) / key
                    made.mkdir()
                    seconds, steps = train(made / "model.ckpt")
                    cost = json.dumps({"seconds": seconds, "steps": steps})
                    (made / "cost.json").write_text(cost, encoding="utf-8")
                    made.replace(folder)
        cost = json.loads((folder / "cost.json").read_text(encoding="utf-8"))
        return Training(folder / "model.ckpt", cost["seconds"], cost["steps"])


def _read_manifest(path: Path) -> SupportManifest | None:
    try:
        return SupportManifest.read(path)
    except (FileNotFoundError, ValueError):
        return None
