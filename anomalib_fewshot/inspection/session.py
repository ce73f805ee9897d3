# Copyright (C) 2026 anomalib-fewshot contributors
# SPDX-License-Identifier: Apache-2.0

"""A run in progress: training, scoring, and writing the results."""

import shutil
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import astuple, replace
from math import isnan
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn
from torchvision.datasets.folder import IMG_EXTENSIONS

from anomalib_fewshot.data.validation.issue import ERROR, DataIssue
from anomalib_fewshot.errors import ArgumentError, MissingDataError
from anomalib_fewshot.models import CoftAD
from anomalib_fewshot.post_processing import SupportPostProcessor
from anomalib_fewshot.post_processing.calibration_scheme import needed

from . import summary
from .ignore_mask import MASK, IgnoreMask
from .labels import LABELS, read_labels, write_labels
from .page import page_data, write_page
from .picture_files import file_state, list_pictures
from .pictures import MAX_PRINTED_ERRORS, Pictures
from .pool import Pool
from .regions import largest_region
from .rendering import GoodPicture, write_good_pictures, write_images
from .run_folder import Entry, RunFolder
from .scoring import ScoredImage, Scorer
from .settings import Settings
from .training import CHECKPOINT, SUPPORT, checkpoint_of, load, save_state, to_device
from .training import train as fit_model

PAGE_INTERVAL = 20.0  # seconds between two updates of the page during a run

UpdateProgress = Callable[[int, int | None], object]


class Session:
    """A run in progress.

    Args:
        settings (Settings): Settings of the run.
        console (Console): For messages and progress.
        strict (bool): Raise an error if a picture cannot be used. Defaults to ``False``.
        inline (bool): Embed the pictures in the page. Defaults to ``False``.
        on_result (Callable[[Path, Entry], object] | None): Called with the file and the result of each picture.
            Defaults to ``None``.
    """

    def __init__(
        self,
        settings: Settings,
        console: Console,
        *,
        strict: bool = False,
        inline: bool = False,
        on_result: Callable[[Path, Entry], object] | None = None,
    ) -> None:
        self.settings = settings
        self.console = console
        self.strict = strict
        self.inline = inline
        self.on_result = on_result
        self.on_progress: Callable[[str, int, int | None], object] = lambda _text, _done, _total: None
        self.pictures = Pictures(settings, console, strict=strict)
        self.labels: dict[str, str] = {}
        self.good: list[GoodPicture] = []
        self.pool: Pool | None = None  # None: the model learns from the good pictures only
        if settings.pool and settings.trains:
            self.pool = Pool(settings.unlabeled, self.pictures.find_unusable, settings.unlabeled_found)
        self.num_scored = 0
        self._run: RunFolder | None = None
        self._model: CoftAD | None = None
        self._scorer: Scorer | None = None
        self._page_written = time.monotonic()

    # --- State

    @property
    def run(self) -> RunFolder:
        """Folder of the run."""
        if self._run is None:
            msg = "The session has no run folder. Call `create` or `resume` first."
            raise RuntimeError(msg)
        return self._run

    @property
    def model(self) -> CoftAD:
        """Fitted model."""
        if self._model is None:
            msg = "The session has no model. Call `create` or `resume` first."
            raise RuntimeError(msg)
        return self._model

    @model.setter
    def model(self, model: CoftAD) -> None:
        self._model, self._scorer = model, None

    @property
    def post_processor(self) -> SupportPostProcessor:
        """Thresholds of the model."""
        return self.model.post_processor  # type: ignore[return-value]

    @property
    def scorer(self) -> Scorer:
        """Scorer of the model."""
        if self._scorer is None:
            self._scorer = Scorer(to_device(self.model), self.ignored, self.pictures.good)
        return self._scorer

    @property
    def ignored(self) -> IgnoreMask | None:
        """Region to ignore."""
        path = self.run.path / MASK
        return IgnoreMask(path) if path.is_file() else None

    @property
    def pool_size(self) -> int:
        """Number of unlabeled pictures that the model has learned from."""
        return self.model.model.scorer.memory_bank.pool_size

    # --- Start

    def check(self, *, complete: bool) -> None:
        """Check all pictures before a new run.

        Args:
            complete (bool): Require at least one new picture.

        Raises:
            ArgumentError: If there is no usable good picture, or if a required new or unlabeled picture is missing.
            DataValidationError: If ``strict`` is set and a picture cannot be used.
        """
        pictures = self.pictures
        pictures.find_good()
        self._check_good()
        pictures.add_system_files([pictures.new, *map(Path, self.settings.unlabeled if self.pool else [])])
        listed = list_pictures(pictures.new)
        candidates = pictures.skip_unusable([path for path in listed if pictures.is_candidate(path)])
        num_good = sum(not pictures.is_candidate(path) for path in listed if path not in pictures.skipped)
        if num_good:
            count = summary.count_pictures(num_good, "new")
            self.console.print(f"  Skipped {count} that also belong to the good pictures.")
        if self.pool is not None:
            self.pool.find_older(self._left_out)
            if self.pool.parts and not self.pool.older:
                parts = ", ".join(self.pool.parts)
                msg = f"`unlabeled` must contain usable pictures besides the good ones, got none in {parts}."
                raise ArgumentError(msg)
            self.choose_pool(self.pool, candidates)
            candidates = [path for path in candidates if path not in pictures.skipped]
        if complete and not candidates:
            suffixes = ", ".join(IMG_EXTENSIONS)
            msg = f"`new` must contain usable pictures, got none in {pictures.new}. Supported formats: {suffixes}."
            raise ArgumentError(msg)

    def _check_good(self) -> None:
        """Check that there are enough good pictures."""
        settings = self.settings
        good = [path for path in self.pictures.good if path not in self.pictures.marked_good]
        if not good and settings.trains:
            details = "".join(f"\n  {issue}" for issue in list(self.pictures.issues)[:MAX_PRINTED_ERRORS])
            msg = f"`good` must contain usable pictures, got none in {', '.join(settings.good)}.{details}"
            raise ArgumentError(msg)
        rate, lowest = settings.false_alarm_rate, 1 / (len(good) + 1)
        if rate is not None and rate < lowest:
            msg = (
                f"`false_alarm_rate` must be at least {lowest:.3g} with {summary.count_pictures(len(good), 'good')}, "
                f"got {rate:.3g}. Provide {needed(rate)} good pictures, or a higher rate."
            )
            raise ArgumentError(msg)

    @property
    def _left_out(self) -> set[str]:
        """Real paths of the pictures that are not part of the pool."""
        return self.pictures.good_realpaths | self.pictures.bad_realpaths

    def choose_pool(self, pool: Pool, new: Sequence[Path]) -> None:
        """Choose the pool of the next training. New pictures that turn out to be broken are skipped."""
        broken = pool.choose(new, self._left_out)
        self.pictures.skip([path for path in new if path in broken])

    def create(self, out: Path, ignore: Path | None) -> None:
        """Create the run folder, and train a model or copy that of an earlier run.

        Args:
            out (Path): Folder of all runs.
            ignore (Path | None): Mask image of the region to ignore.
        """
        source = None if self.settings.model is None else Path(self.settings.model)
        if source is not None:
            self.model = load(source)
        self._run = RunFolder.create(out)
        try:
            self._fill(source, ignore)
        except BaseException:  # without a trained model, the run cannot be resumed
            shutil.rmtree(self.run.path)
            raise
        self.good = write_good_pictures(self.pictures.good, self.run.path)
        if self.labels:
            write_labels(self.run.path / LABELS, self.labels)

    def _fill(self, source: Path | None, ignore: Path | None) -> None:
        """Write the mask, the settings and the model to the folder of the run."""
        if ignore is not None:
            shutil.copyfile(ignore, self.run.path / MASK)
        self.run.write_settings(self.settings)  # also if the training is killed
        if source is None:
            self.train(self.pool.chosen if self.pool else [])
            return
        shutil.copyfile(checkpoint_of(source), self.run.path / CHECKPOINT)
        if (source / SUPPORT).is_file():
            shutil.copyfile(source / SUPPORT, self.run.path / SUPPORT)

    def resume(self, run: RunFolder, *, watch: bool) -> None:
        """Continue an earlier run.

        Args:
            run (RunFolder): Folder of the run.
            watch (bool): The pool will grow.

        Raises:
            ArgumentError: If the run has no trained model.
            MissingDataError: If its new pictures do not exist.
        """
        if not (run.path / CHECKPOINT).is_file():
            msg = f"`resume` must be a run with a trained model, got {run.path}. Start a new run."
            raise ArgumentError(msg)
        if not self.pictures.new.exists():
            msg = (
                f"`resume` must be a run whose new pictures exist, got {self.settings.new}. Resume from the working "
                "directory in which the run was started."
            )
            raise MissingDataError(msg)
        self._run = run
        self.pictures.find_good()
        self.model = load(run.path)
        if (run.path / LABELS).is_file():
            self.labels = read_labels(run.path / LABELS) | self.labels
        if self.labels:
            write_labels(run.path / LABELS, self.labels)
        if self.pool is not None and watch:
            self.pool.find_older(self._left_out)
        self.good = write_good_pictures(self.pictures.good, run.path)
        self.run.update_verdicts(self.verdict)  # another command may have changed the thresholds

    def train(self, unlabeled: Sequence[Path]) -> None:
        """Train a model on the good pictures and on unlabeled ones."""
        good = self.pictures.good
        text = summary.count_pictures(len(good), "good")
        if unlabeled:
            text = f"{len(good)} good and {summary.count_pictures(len(unlabeled), 'unlabeled')}"
        with self.progress(f"Training on {text}", TaskProgressColumn()) as update:
            marked = self.pictures.marked_good
            self.model = fit_model(good, self.run.path, self.ignored, update, unlabeled, self.settings, marked)
        self._write_settings()

    def _write_settings(self) -> None:
        self.settings.unlabeled_used = self.pool_size
        if self.pool is not None:
            self.settings.unlabeled_found = self.pool.num_found
        self.run.write_settings(self.settings)

    # --- Scoring

    def score(self) -> None:
        """Score the remaining pictures."""
        with self.progress("Scoring", MofNCompleteColumn()) as update:
            self.score_paths(self.pending(), update)

    def pending(self) -> list[Path]:
        """Return the pictures to score: new or changed ones, and those that an earlier model has scored."""
        paths = []
        for path in list_pictures(self.pictures.new):
            if self.pictures.is_candidate(path):
                entry = self.run.entries.get(self.pictures.name(path))
                state = (*file_state(path), self.pool_size)
                if entry is None or (entry.num_bytes, entry.modified, entry.num_unlabeled) != state:
                    paths.append(path)
        return paths

    def score_paths(self, paths: Sequence[Path], update: UpdateProgress) -> None:
        """Score pictures. Those that cannot be used are skipped."""
        paths = self.pictures.skip_unusable(paths)
        if not paths:
            return
        total = self.num_scored + len(paths)
        update(self.num_scored, total)
        for scored in self.scorer(paths):
            self._record(scored)
            update(self.num_scored, total)
        if self.scorer.reference is not None:
            self.settings.warnings = self.scorer.reference.warnings()

    def _record(self, scored: ScoredImage) -> None:
        """Write the image files of a picture, then its line in the journal. The line marks it as done."""
        if scored.photo is None:
            self.pictures.add_issues([DataIssue(scored.path, ERROR, scored.error)])
            self.pictures.skip([scored.path])
            return
        self.pictures.forget_errors(scored.path)
        name = self.pictures.name(scored.path)
        write_images(scored, self.run.path, name)
        p_value = None if isnan(scored.p_value) else scored.p_value
        region = None if scored.heat is None else largest_region(scored.heat, scored.photo.size)
        entry = Entry(
            name,
            scored.verdict,
            scored.score,
            p_value,
            *scored.photo.size,
            *file_state(scored.path),
            self.pool_size,
            None if region is None else list(astuple(region)),
            scored.nearest,
        )
        entry = replace(entry, verdict=self.verdict(entry))  # it also depends on the region
        self.run.add([entry])
        self.num_scored += 1
        if self.on_result is not None:
            self.on_result(scored.path, entry)
        if time.monotonic() - self._page_written > PAGE_INTERVAL:
            self.write()

    def verdict(self, entry: Entry) -> str:
        """Return the verdict of a picture from its score and the area of its largest region."""
        min_area = self.settings.min_area
        if min_area is not None and entry.region is not None and entry.region[-1] < min_area:
            return "good"
        return self.post_processor.verdicts(torch.tensor([entry.score]))[0]

    # --- Thresholds and labels

    def set_thresholds(self, thresholds: Mapping[str, float | None]) -> None:
        """Change the thresholds of the run: in the checkpoint, and in the verdicts of all pictures.

        Args:
            thresholds (Mapping[str, float | None]): Thresholds by verdict. A missing one keeps its value. If all are
                missing, the calibrated thresholds are restored.

        Raises:
            ArgumentError: If they are not finite, or if the one of "review" is higher than that of "defect".
        """
        if thresholds:
            metadata = self.post_processor.metadata()
            review = thresholds.get("review", metadata["review_score"])
            self.post_processor.set_verdict_thresholds((review, thresholds.get("defect", metadata["defect_score"])))
        else:
            self.post_processor.set_verdict_thresholds(None)
        save_state(self.model, self.run.path / CHECKPOINT)
        self.run.update_verdicts(self.verdict)

    def set_labels(self, labels: Mapping[str, str | None]) -> None:
        """Store the labels of pictures. ``None`` removes one."""
        changed: dict[str, str | None] = {**self.labels, **labels}
        self.labels = {path: label for path, label in changed.items() if label is not None}
        write_labels(self.run.path / LABELS, self.labels)

    # --- Results

    def write(self, *, inline: bool = False) -> pd.DataFrame:
        """Write the table and the page for the pictures scored so far."""
        self._page_written = time.monotonic()
        self._write_settings()
        table = self.run.write_table()
        issues = [(str(issue.path), issue.severity, issue.message) for issue in self.pictures.issues]
        if issues:
            self.run.write_issues(issues)
        data = page_data(self, inline=inline)
        write_page(self.run.path, data)
        if data["inline_note"]:
            self.console.print(data["inline_note"])
        return table

    @contextmanager
    def progress(self, text: str, column: Any) -> Generator[UpdateProgress]:  # noqa: ANN401  a column of rich
        """Show a progress bar, and call ``on_progress`` with its state.

        Args:
            text (str): Description.
            column (ProgressColumn): Column that shows how much is done.

        Yields:
            UpdateProgress: Function that takes the number of completed steps and the total.
        """
        columns = (TextColumn("{task.description}"), BarColumn(30), column, TimeElapsedColumn())
        with Progress(*columns, console=self.console, disable=self.console.quiet) as bar:
            task = bar.add_task(text, total=None)

            def update(done: int, total: int | None) -> None:
                bar.update(task, completed=done, total=total)
                self.on_progress(text, done, total)

            yield update
