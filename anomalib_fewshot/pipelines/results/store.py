# Copyright (C) 2026 anomalib-fewshot contributors
# SPDX-License-Identifier: Apache-2.0

"""Results folder of a benchmark. Only this module knows its layout."""

import csv
import hashlib
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

from anomalib_fewshot.atomic import complete_file, write_atomically
from anomalib_fewshot.data.manifest import SupportManifest
from anomalib_fewshot.pipelines.plan.job import Job

from .image_scores import HEADER, ImageScore, find_category
from .outcome import Outcome
from .row import add_pool_columns, as_table

FORMAT = 1


class Store:
    """Results folder of a benchmark.

    A run is finished if ``runs/KEY.json`` exists; this file is written last and atomically. The key is a hash of all
    settings that affect the result, so a changed configuration never reuses old runs. Each run file is read once, and
    each finished run is appended to ``results.csv``. Several processes can share a folder. They claim runs with file
    locks, which the operating system releases when a process dies.

    Args:
        folder (Path): The folder. It is created if it does not exist.

    Raises:
        ValueError: If the folder has another format version, or contains unrelated files.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._runs: dict[str, tuple[int, list[dict[str, Any]]]] = {}  # modification time and rows, by key
        self._check()
        for name in ("runs", "supports", "examples", ".locks"):
            (folder / name).mkdir(parents=True, exist_ok=True)
        write_atomically(folder / "runs" / "FORMAT", f"{FORMAT}\n")

    def _check(self) -> None:
        format_file = self.folder / "runs" / "FORMAT"
        if not format_file.is_file():
            if self.folder.exists() and (not self.folder.is_dir() or any(self.folder.iterdir())):
                msg = (
                    "`results` must be a new folder or the results of a benchmark, got one with other files. "
                    f"Set another folder: {self.folder}"
                )
                raise ValueError(msg)
            return
        found = format_file.read_text(encoding="utf-8").strip()
        if found != str(FORMAT):
            msg = (
                f"`results` must be a folder with format {FORMAT}, got format {found}. Set another folder, or use the "
                f"version of anomalib-fewshot that created this one: {self.folder}"
            )
            raise ValueError(msg)

    def claim(self, job: Job) -> "Claim | None":
        """Claim a run. Return ``None`` if another process has claimed or finished it."""
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
        """Return whether a run has a result. A failed run is not finished."""
        rows = self._read(job)
        return bool(rows) and all(row["status"] == "ok" for row in rows)

    def save(self, job: Job, outcome: Outcome) -> None:
        """Store the outcome of a run, and append its rows to ``results.csv``.

        Raises:
            OSError: If a file cannot be written. Earlier results are not affected.
        """
        rows = [row.to_json() for row in outcome.rows]
        try:
            for (category, name), image in outcome.examples.items():
                write_atomically(self._example_folder(job.key, category) / f"{name}.jpg", image)
            for category, manifest in zip(
                job.test_categories,
                outcome.manifests,
                strict=False,
            ):  # a failed run has no manifests
                manifest.write(self.support_file(job, category))
            write_atomically(self._run_file(job), json.dumps({"rows": rows, "scores": outcome.scores}, indent=1))
            self._append(rows)
        except OSError as error:
            msg = (
                f"The result of the run {job} cannot be written: {error}. Free some disk space, then run the same "
                f"command to resume. Finished runs are kept in {self.folder}"
            )
            raise OSError(msg) from error
        self._runs[job.key] = self._run_file(job).stat().st_mtime_ns, rows

    def table(self, jobs: Sequence[Job]) -> pd.DataFrame:
        """Return the rows of all stored runs, including those of other processes.

        Args:
            jobs (Sequence[Job]): Runs of the current configuration. Other runs in the folder are ignored.
        """
        return as_table(row for job in jobs for row in self._read(job))

    def write_table(self, jobs: Sequence[Job]) -> pd.DataFrame:
        """Write ``results.csv`` from the stored runs, and return the table."""
        with self._table_lock():
            table = self.table(jobs)
            write_atomically(self._table_file, table.to_csv(index=False))
        return table

    def num_other_runs(self, jobs: Sequence[Job]) -> int:
        """Return the number of stored runs that do not belong to the current configuration."""
        return len({path.stem for path in (self.folder / "runs").glob("*.json")} - {job.key for job in jobs})

    def scores(self, job: Job) -> dict[str, list[float]]:
        """Return label and raw score of each test image of a stored run, by image path."""
        return json.loads(self._run_file(job).read_text(encoding="utf-8"))["scores"]

    def image_scores(self, key: str, categories: Sequence[str]) -> list[ImageScore]:
        """Return the scores of the test images of a stored run. Empty if there is no file of the run.

        Args:
            key (str): Hash of the run.
            categories (Sequence[str]): Categories that the run tests.
        """
        path = self.folder / "runs" / f"{key}.json"
        if not path.is_file():
            return []
        scores = json.loads(path.read_text(encoding="utf-8"))["scores"]
        return [
            ImageScore(find_category(image, categories), image, int(label), score)
            for image, (label, score) in scores.items()
        ]

    def write_scores(self, table: pd.DataFrame) -> None:
        """Write ``scores.csv``: one row per run and test image. Only one run at a time is in memory.

        Args:
            table (pd.DataFrame): The runs, with the columns of ``results.csv``.
        """
        done = add_pool_columns(table[table["status"] == "ok"])
        with (
            self._table_lock(),
            complete_file(self.folder / "scores.csv") as part,
            part.open("w", encoding="utf-8", newline="") as file,
        ):
            writer = csv.writer(file)
            writer.writerow(HEADER)
            for key, rows in done.groupby("key", sort=False):
                row = rows.iloc[0]
                pool = [row["unlabeled"], row["contamination"]]
                for image in self.image_scores(str(key), list(rows["category"])):
                    run = [row["method"], row["dataset"], image.category, row["k_shot"], *pool, row["seed"]]
                    writer.writerow([*run, image.path, image.label, image.score])

    def write_exports(self, files: Mapping[str, bytes]) -> None:
        """Write the files next to the report, by their path in the folder.

        Files of an earlier report that the new report does not have are removed if they are unchanged. ``runs/EXPORTS``
        lists the written files with their hashes, so a user's own files are never removed.
        """
        with self._table_lock():
            index = self.folder / "runs" / "EXPORTS"
            for name, digest in self._earlier_exports(index).items():
                path = self.folder / name
                if name not in files and path.is_file() and _digest(path.read_bytes()) == digest:
                    path.unlink()
            for name, content in files.items():
                write_atomically(self.folder / name, content)
            digests = {name: _digest(content) for name, content in files.items()}
            write_atomically(index, json.dumps(digests, indent=1))

    def write_settings(self, config: Mapping[str, Any], environment: Mapping[str, Any]) -> None:
        """Write ``config.yaml`` and ``environment.json``."""
        write_atomically(self.folder / "config.yaml", yaml.safe_dump(config, sort_keys=False))
        write_atomically(self.folder / "environment.json", json.dumps(environment, indent=2))

    def write_report(self, pages: Mapping[str, str]) -> Path:
        """Write the report in several formats, given as text by file suffix, and return the path of the first file."""
        paths = [self.folder / f"report.{suffix}" for suffix in pages]
        for path, page in zip(paths, pages.values(), strict=True):
            write_atomically(path, page)
        return paths[0]

    def support_file(self, job: Job, category: str) -> Path:
        """Return the path of a support manifest. A job with unlabeled images or with its own data has its own file."""
        suffix = _pool_suffix(job.unlabeled, job.contamination)
        if job.has_own_data:
            suffix += f"-data{job.data_key[:8]}"
        return self._support_file(job.dataset, category, job.k_shot, job.seed, suffix)

    def supports(self, table: pd.DataFrame) -> Iterator[tuple[str, SupportManifest]]:
        """Yield k and the manifest of each support set in a table."""
        names = ["dataset", "category", "k_shot", "seed", "unlabeled", "contamination"]
        for (dataset, category, k_shot, seed, *pool), rows in add_pool_columns(table).groupby(names):
            digests = set(rows["support"])
            shared = self._support_file(dataset, category, k_shot, seed, _pool_suffix(*pool))
            with_own_data = sorted(shared.parent.glob(f"{glob_escape(shared.stem)}-data*.json"))
            for path in [shared, *with_own_data]:
                manifest = _read_manifest(path)
                if manifest is not None and manifest.digest in digests:
                    yield str(k_shot), manifest

    def has_examples(self, key: str) -> bool:
        """Return whether a run has example images."""
        return self._example_folder(key).is_dir()

    def examples(self, key: str, category: str) -> dict[str, bytes]:
        """Return the example images of a run as JPEG files, by name."""
        return {path.stem: path.read_bytes() for path in sorted(self._example_folder(key, category).glob("*.jpg"))}

    @property
    def trainings(self) -> "Trainings":
        """Trainings on other categories, shared by several runs."""
        return Trainings(self.folder.absolute() / "trainings")

    def _earlier_exports(self, index: Path) -> dict[str, str]:
        """Return the hash of each file that the previous report wrote, by its path in the folder."""
        return json.loads(index.read_text(encoding="utf-8")) if index.is_file() else {}

    def _append(self, rows: list[dict[str, Any]]) -> None:
        with self._table_lock():
            is_new = not self._table_file.is_file()
            with self._table_file.open("a", encoding="utf-8", newline="") as file:
                as_table(rows).to_csv(file, index=False, header=is_new)

    def _read(self, job: Job) -> list[dict[str, Any]]:
        """Return the rows of a run. The file is read again only if another process has changed it."""
        path = self._run_file(job)
        try:
            modified = path.stat().st_mtime_ns
        except FileNotFoundError:
            return []
        if self._runs.get(job.key, (None,))[0] != modified:
            self._runs[job.key] = modified, json.loads(path.read_text(encoding="utf-8"))["rows"]
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
    """Context in which this process has claimed a run."""

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
    """A finished training on other categories: checkpoint, duration in seconds, and number of optimizer steps."""

    checkpoint: Path
    seconds: float
    steps: int


@dataclass(frozen=True)
class Trainings:
    """Trainings on other categories, shared by several runs.

    Args:
        folder (Path): Folder for the checkpoints. An absolute path, because workers have other working directories.
    """

    folder: Path

    def get(self, key: str, train: Callable[[Path], tuple[float, int]]) -> Training:
        """Return a training. The first caller runs it, and other processes wait for the result.

        Args:
            key (str): Hash of its settings.
            train (Callable): Function that writes a checkpoint to a given path, and returns seconds and steps.
        """
        folder = self.folder / key
        self.folder.mkdir(parents=True, exist_ok=True)
        with FileLock(folder.with_suffix(".lock")):
            if not folder.exists():
                with TemporaryDirectory(dir=self.folder, prefix=".part-") as part:
                    partial = Path(part) / key
                    partial.mkdir()
                    seconds, steps = train(partial / "model.ckpt")
                    cost = json.dumps({"seconds": seconds, "steps": steps})
                    (partial / "cost.json").write_text(cost, encoding="utf-8")
                    partial.replace(folder)
        cost = json.loads((folder / "cost.json").read_text(encoding="utf-8"))
        return Training(folder / "model.ckpt", cost["seconds"], cost["steps"])


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _pool_suffix(unlabeled: int, contamination: float) -> str:
    """Return the part of the name of a support manifest that describes its unlabeled images."""
    suffix = f"-unlabeled{unlabeled}" if unlabeled else ""
    return f"{suffix}-contamination{contamination:g}" if contamination else suffix


def _read_manifest(path: Path) -> SupportManifest | None:
    try:
        return SupportManifest.read(path)
    except (FileNotFoundError, ValueError):
        return None
