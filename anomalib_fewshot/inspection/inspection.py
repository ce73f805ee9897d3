# Copyright (C) 2026 anomalib-fewshot contributors
# SPDX-License-Identifier: Apache-2.0

"""Train on a folder of good pictures, score new ones and write the results."""

import os
import shlex
import shutil
import time
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from math import isnan
from pathlib import Path
from typing import Any

import pandas as pd
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    TaskProgressColumn,
    TextColumn,
    TimeElapsedColumn,
)
from torchvision.datasets.folder import IMG_EXTENSIONS

from anomalib_fewshot._cli.signals import continue_after_interrupt, is_ending, set_hint
from anomalib_fewshot.data.validation.image_check import SAME_STEM, check_images, find_skipped_files
from anomalib_fewshot.data.validation.issue import ERROR, WARNING, DataIssue, report, summarize
from anomalib_fewshot.errors import ArgumentError, DataValidationError, MissingDataError
from anomalib_fewshot.post_processing import VERDICTS
from anomalib_fewshot.post_processing.calibration_scheme import needed

from .drift import describe_drift
from .ignore_mask import IgnoreMask
from .page import PAGE, write_page
from .picture_files import file_state, list_pictures
from .pool import Pool, next_pool_size
from .rendering import write_images
from .run_folder import Entry, RunFolder
from .scoring import ScoredImage, Scorer
from .training import CHECKPOINT, SUPPORT, checkpoint_of, load, to_device, train

MASK = "ignore.png"
MAX_NAME_BYTES = 251  # output files append a suffix of four bytes
MAX_PRINTED_ERRORS = 5  # the page and findings.csv list all of them
MAX_DEFECT_SHARE = 0.15  # of the new pictures, beyond the false alarms: with more, a pool does harm
WATCH_INTERVAL = 1.0  # seconds between two scans of the folder
PAGE_INTERVAL = 20.0  # seconds between two updates of the page during a run

ImagePaths = str | Path | Sequence[str | Path]


def inspect(
    good: ImagePaths | None = None,
    new: str | Path | None = None,
    out: str | Path = "results/inspect",
    model: str | Path | None = None,
    resume: str | Path | None = None,
    ignore: str | Path | None = None,
    unlabeled: ImagePaths | None = None,
    pool: bool = True,
    false_alarm_rate: float | None = None,
    strict: bool = False,
    watch: bool = False,
    inline: bool = False,
    progress: bool = True,
) -> pd.DataFrame:
    """Train a detector on good pictures and score new ones. The results are a table and a web page.

    If there are at least eight new pictures, the model also learns from them, without labels: they are its *pool*. Most
    of them should be good. Each of them is scored without itself, so the false-alarm rate is guaranteed as before.

    Each run creates a subfolder of ``out`` (``v0``, ``v1`` and so on) with ``index.html``, ``scores.csv``,
    ``overlays``, ``model.ckpt`` and ``support.json``.

    Ctrl-C and SIGTERM end the command within five seconds, with exit status 130 or 143. During the training nothing is
    kept, and the folder is removed. After it, the model and the scored pictures are kept, the table and the page show
    them, and the last line gives the command that scores the others. With ``watch``, Ctrl-C is the usual end, with exit
    status 0.

    Args:
        good (ImagePaths | None): Good pictures: a folder, a file, or a list of folders and files. Must be
            omitted if ``model`` is given.
        new (str | Path | None): Folder of pictures to score, or a single picture.
        out (str | Path): Output folder. Defaults to ``"results/inspect"``.
        model (str | Path | None): Folder of an earlier run, or a checkpoint of ``anomalib fit``. Its model scores the
            pictures, and no model is trained. Defaults to ``None``.
        resume (str | Path | None): Folder of an interrupted run to resume. Defaults to ``None``.
        ignore (str | Path | None): Mask image. White regions are ignored. Defaults to ``None``.
        unlabeled (ImagePaths | None): Older pictures to learn from, in addition to the new ones: a folder, a file, or a
            list of folders and files. They are not scored. Defaults to ``None``.
        pool (bool): Learn from the new pictures and from ``unlabeled``. ``False``: only from the good pictures. With
            ``watch``, the model is trained again each time that the number of pictures has doubled, up to 128, and all
            pictures are scored again. Defaults to ``True``.
        false_alarm_rate (float | None): Highest share of good pictures that may be called a defect, on average over
            sets of good pictures. A higher rate finds more defects. Defaults to ``None``: 5 %, or 1 / (k + 1) with k
            good pictures if that is higher.
        strict (bool): Raise an error if a picture cannot be used, instead of skipping it. Defaults to ``False``.
        watch (bool): Keep scoring pictures that arrive in ``new`` until Ctrl-C. Defaults to ``False``.
        inline (bool): Embed the pictures in the page, so that it is a single file. Defaults to ``False``.
        progress (bool): Print progress and results. Defaults to ``True``.

    Returns:
        pd.DataFrame: Columns path, verdict, score and p_value, sorted from the highest to the lowest score.

    Raises:
        MissingDataError: If a folder or file does not exist.
        ArgumentError: If arguments exclude each other, or if there is no usable picture.
        DataValidationError: If ``strict`` is set and a picture cannot be used.

    Example:
        >>> from anomalib_fewshot import inspect
        >>> inspect("good", "new")  # doctest: +SKIP
    """
    console = Console(quiet=not progress, highlight=False, soft_wrap=True)
    if resume is not None:
        if any(value is not None for value in (good, new, model, ignore, unlabeled, false_alarm_rate)) or not pool:
            msg = f"`resume` must be the only input, got {resume} and others. The run has stored its inputs."
            raise ArgumentError(msg)
        run = RunFolder(Path(resume))
        settings = run.settings
        if not (run.path / CHECKPOINT).is_file():
            msg = f"`resume` must be a run with a trained model, got {resume}. Start a new run."
            raise ArgumentError(msg)
        if not Path(settings["new"]).exists():
            msg = (
                f"`resume` must be a run whose new pictures exist, got {settings['new']}. Resume from the working "
                "directory in which the run was started."
            )
            raise MissingDataError(msg)
        inspection = _Inspection(console, run, settings, strict, inline)
        inspection.support, inspection.model = inspection.good_images(), load(run.path)
        if inspection.pool is not None and watch:
            inspection.pool.find_older(inspection.good_realpaths)
    else:
        if new is None or (good is None) == (model is None):
            msg = "`new` and one of `good` and `model` must be given. For example: --good good/ --new new/."
            raise ArgumentError(msg)
        if unlabeled is not None and (model is not None or not pool):
            reason = "`--no-pool`" if model is None else "`model`, because no model is trained"
            msg = f"`unlabeled` must be omitted with {reason}, got {unlabeled}."
            raise ArgumentError(msg)
        if false_alarm_rate is not None and model is not None:
            msg = f"`false_alarm_rate` must be omitted with `model`, got {false_alarm_rate}. Train a new model."
            raise ArgumentError(msg)
        if false_alarm_rate is not None and not 0 < false_alarm_rate < 1:
            msg = f"`false_alarm_rate` must be between 0 and 1, got {false_alarm_rate}."
            raise ArgumentError(msg)
        settings = {
            "good": [],
            "new": str(new),
            "unlabeled": _as_list(unlabeled),
            "pool": pool,
            "false_alarm_rate": false_alarm_rate,
            "started": datetime.now().astimezone().isoformat(timespec="microseconds"),
        }
        if model is None:
            settings["good"] = _as_list(good)
        else:
            settings["model"] = str(model)
            earlier = RunFolder(Path(model))
            if not Path(model).is_file():  # a checkpoint does not list its good pictures
                settings["good"] = earlier.settings["good"]
                settings["unlabeled"] = earlier.settings.get("unlabeled", [])
                settings["pool"] = earlier.settings.get("pool", False)
            if ignore is not None:
                msg = f"`ignore` must be omitted with `model`, got {ignore}. The mask of the earlier run is used."
                raise ArgumentError(msg)
            ignore = earlier.path / MASK if (earlier.path / MASK).is_file() else None
        inputs = [*settings["good"], *settings["unlabeled"]] if model is None else []
        _check_paths_exist([str(new), *inputs])
        if ignore is not None:
            IgnoreMask(Path(ignore))  # raises if the mask is not valid
        inspection = _Inspection(console, None, settings, strict, inline)
        inspection.check(complete=not watch)
        inspection.begin(Path(out), model, ignore)
    with inspection.finalize(watch=watch):
        inspection.score(watch=watch)
    return inspection.run.table()


def _as_list(paths: ImagePaths | None) -> list[str]:
    return [str(path) for path in ([paths] if isinstance(paths, str | Path) else paths or ())]


def _check_paths_exist(paths: Sequence[str]) -> None:
    for path in paths:
        if not Path(path).exists():
            msg = f"Folders and files must exist, got {path}. Check the path."
            raise MissingDataError(msg)


@dataclass
class _Inspection:
    """State of a run."""

    console: Console
    _run: RunFolder | None
    settings: dict[str, Any]
    strict: bool
    inline: bool
    model: Any = None
    issues: dict[DataIssue, None] = field(default_factory=dict)
    skipped: dict[Path, int] = field(default_factory=dict)  # modification time by path
    support: list[Path] = field(default_factory=list)
    good_realpaths: set[str] = field(default_factory=set)
    pool: Pool | None = field(init=False, default=None)  # None: the model learns from the good pictures only
    num_tried: int = 0  # number of scored pictures when the last training with a larger pool was tried
    num_scored: int = 0
    page_written: float = field(default_factory=time.monotonic)  # time of the last update of the page

    def __post_init__(self) -> None:
        if self.settings.get("pool", False) and "model" not in self.settings:
            num_found = self.settings.get("unlabeled_found", 0)
            self.pool = Pool(self.settings["unlabeled"], self._find_unusable, num_found)

    @property
    def run(self) -> RunFolder:
        if self._run is None:
            msg = "The run has no folder. Call `begin` first."
            raise RuntimeError(msg)
        return self._run

    @property
    def new(self) -> Path:
        return Path(self.settings["new"])

    @property
    def pool_size(self) -> int:
        """Number of unlabeled pictures that the model has learned from."""
        return self.model.model.memory_bank.pool_size

    def check(self, *, complete: bool) -> None:
        """Check all pictures before training.

        Args:
            complete (bool): Require at least one new picture.

        Raises:
            ArgumentError: If there is no usable good picture, or if a required new or unlabeled picture is missing.
            DataValidationError: If ``strict`` is set and a picture cannot be used.
        """
        self.support = self.good_images()
        if not self.support and "model" not in self.settings:
            details = "".join(f"\n  {issue}" for issue in list(self.issues)[:MAX_PRINTED_ERRORS])
            msg = f"`good` must contain usable pictures, got none in {', '.join(self.settings['good'])}.{details}"
            raise ArgumentError(msg)
        rate, lowest = self.settings.get("false_alarm_rate"), 1 / (len(self.support) + 1)
        if rate is not None and rate < lowest:
            msg = (
                f"`false_alarm_rate` must be at least {lowest:.3g} with {_count_pictures(len(self.support), 'good')}, "
                f"got {rate:.3g}. Provide {needed(rate)} good pictures, or a higher rate."
            )
            raise ArgumentError(msg)
        for part in (self.new, *map(Path, self.settings["unlabeled"] if self.pool else [])):
            self.add_issues(find_skipped_files(_subfolders(part)))
        listed = list_pictures(self.new)
        pending = self.usable(listed)
        num_good = sum(os.path.realpath(path) in self.good_realpaths for path in listed)
        if num_good:
            self.console.print(f"  Skipped {_count_pictures(num_good, 'new')} that also belong to the good pictures.")
        if self.pool is not None:
            self.pool.find_older(self.good_realpaths)
            if self.pool.parts and not self.pool.older:
                parts = ", ".join(self.pool.parts)
                msg = f"`unlabeled` must contain usable pictures besides the good ones, got none in {parts}."
                raise ArgumentError(msg)
            self._choose_pool(self.pool, pending)
            pending = [path for path in pending if path not in self.skipped]
        if complete and not pending:
            suffixes = ", ".join(IMG_EXTENSIONS)
            msg = f"`new` must contain usable pictures, got none in {self.new}. Supported formats: {suffixes}."
            raise ArgumentError(msg)

    def begin(self, out: Path, model: str | Path | None, ignore: str | Path | None) -> None:
        """Create the output folder, and train a model or load the given one."""
        self.model = None if model is None else load(Path(model))
        self._run = RunFolder.create(out)
        try:
            self._fill(model, ignore)
        except BaseException:  # without a trained model, the run cannot be resumed
            shutil.rmtree(self.run.path)
            raise

    def _fill(self, model: str | Path | None, ignore: str | Path | None) -> None:
        if ignore is not None:
            shutil.copyfile(ignore, self.run.path / MASK)
        self.run.write_settings(**self.settings)  # also if the training is killed
        if model is not None:
            shutil.copyfile(checkpoint_of(Path(model)), self.run.path / CHECKPOINT)
            if (Path(model) / SUPPORT).is_file():
                shutil.copyfile(Path(model) / SUPPORT, self.run.path / SUPPORT)
            return
        with self.progress(TaskProgressColumn()) as bar:
            self._train(bar, self.pool.chosen if self.pool else [])

    def _train(self, bar: Progress, unlabeled: list[Path]) -> None:
        """Train a model on the good pictures and on unlabeled ones."""
        pictures = _count_pictures(len(self.support), "good")
        if unlabeled:
            pictures = f"{len(self.support)} good and {_count_pictures(len(unlabeled), 'unlabeled')}"
        task = bar.add_task(f"Training on {pictures}", total=None)
        self.model = train(
            self.support,
            self.run.path,
            self.ignored,
            lambda step, total: bar.update(task, completed=step, total=total),
            unlabeled,
            self.settings.get("false_alarm_rate"),
        )
        self._write_settings()

    def _write_settings(self) -> None:
        self.settings["unlabeled_used"] = self.pool_size
        if self.pool is not None:
            self.settings["unlabeled_found"] = self.pool.num_found
        self.run.write_settings(**self.settings)

    def good_images(self) -> list[Path]:
        """Return the usable good pictures without duplicates, and record the issues of the others."""
        parts = self.settings["good"]
        if "model" in self.settings:  # the pictures of the earlier run may have been moved
            parts = [part for part in parts if Path(part).exists()]
        unusable = self.add_issues(check_images(parts, upright=True))
        files = list(dict.fromkeys(path for part in parts for path in list_pictures(Path(part))))
        self.good_realpaths = {os.path.realpath(path) for path in files}
        return [path for path in files if path not in unusable]

    def _find_unusable(self, paths: Sequence[Path], *, decode: bool) -> set[Path]:
        """Record the issues of unlabeled pictures, and return those that cannot be used."""
        return self.add_issues(check_images(self.support, paths, decode=decode, upright=True))

    def _choose_pool(self, pool: Pool, new: Sequence[Path]) -> None:
        """Choose the pool of the next training. New pictures that turn out to be broken are skipped."""
        broken = pool.choose(new, self.good_realpaths)
        self.skipped |= {path: file_state(path)[1] for path in new if path in broken}

    def _describe_pool(self) -> str:
        if self.pool is None:
            return ""
        text = self.pool.describe(self.pool_size, len(self._outdated()))
        num_defects = sum(entry.verdict == "defect" for entry in self.run.entries.values())
        expected = self.model.post_processor.guaranteed_fpr or 0
        if self.pool_size and num_defects > (expected + MAX_DEFECT_SHARE) * len(self.run.entries):
            text += (
                f" {num_defects} of {_count_pictures(len(self.run.entries), 'new')} look defective. If they are, the "
                "model may learn defects as normal: train without the new pictures (`--no-pool`)."
            )
        return text

    def _outdated(self) -> list[Path]:
        """Return the pictures that an earlier model has scored, with a smaller pool."""
        names = [entry.path for entry in self.run.entries.values() if entry.num_unlabeled != self.pool_size]
        return [path for path in map(self._path, names) if path.is_file()]

    @property
    def ignored(self) -> IgnoreMask | None:
        path = self.run.path / MASK
        return IgnoreMask(path) if path.is_file() else None

    def add_issues(self, issues: Sequence[DataIssue]) -> set[Path]:
        """Record and print new issues, and return the files that cannot be used."""
        issues = [issue for issue in issues if issue.kind != SAME_STEM]  # outputs keep the suffix of each picture
        new_issues = [issue for issue in issues if issue not in self.issues]
        if self.strict:
            report([issue for issue in new_issues if issue.severity == ERROR])
        self.issues |= dict.fromkeys(new_issues)
        errors = [issue for issue in new_issues if issue.severity == ERROR]
        for issue in errors[:MAX_PRINTED_ERRORS]:
            self.print_issue(issue)
        if len(errors) > MAX_PRINTED_ERRORS:
            self.console.print(f"  ... and {len(errors) - MAX_PRINTED_ERRORS} more, on the page and in findings.csv.")
        for line in summarize(issue for issue in new_issues if issue.severity != ERROR):
            self.console.print(f"  {line}", markup=False)
        return {issue.path for issue in issues if issue.severity == ERROR}

    def print_issue(self, issue: DataIssue) -> None:
        suffix = " Skipped." if issue.severity == ERROR and not issue.path.is_dir() else ""
        self.console.print(f"  {issue}{suffix}", markup=False)

    def score(self, *, watch: bool) -> None:
        """Score the remaining pictures, and with ``watch`` also those that arrive later."""
        scorer = Scorer(to_device(self.model), self.ignored)
        previous: dict[Path, tuple[int, int]] = {}
        with self.progress(MofNCompleteColumn()) as bar:
            task = bar.add_task("Scoring", total=None)
            while True:
                paths = list(self.pending(list_pictures(self.new)))
                if watch:  # wait until a file no longer changes: another program may still be writing it
                    current = {path: file_state(path) for path in paths}
                    paths = [path for path in paths if previous.get(path) == current[path]]
                    previous = current
                paths = self.usable(paths)
                bar.update(task, total=self.num_scored + len(paths) if paths or not watch else None)
                for scored in scorer(paths):
                    self.record(scored)
                    bar.update(task, completed=self.num_scored)
                if not watch:
                    return
                if self.pool is not None:
                    self.pool.num_found = len(self.run.entries) + len(self.pool.older)
                if paths or not (self.run.path / PAGE).is_file():
                    self.write()
                if self.pool and self._is_pool_enlarged(self.pool) and self._retrain(bar, self.pool.chosen):
                    scorer = Scorer(to_device(self.model), self.ignored)
                    bar.reset(task, total=None)
                time.sleep(WATCH_INTERVAL)

    def _is_pool_enlarged(self, pool: Pool) -> bool:
        """Choose a new pool if there are twice as many pictures as in the pool of the model."""
        size, num_scored = next_pool_size(self.pool_size), len(self.run.entries)
        if size is None or num_scored == self.num_tried or num_scored + len(pool.older) < size or not self.support:
            return False
        self.num_tried = num_scored
        listed = list_pictures(self.new)
        left_out = {*self.pending(listed), *self.skipped}
        self._choose_pool(pool, [path for path in listed if path not in left_out])
        return len(pool.chosen) >= size

    def _retrain(self, bar: Progress, unlabeled: list[Path]) -> bool:
        """Train again with a larger pool. Return whether it succeeded, so that all pictures must be scored again."""
        try:
            self._train(bar, unlabeled)
        except (FileNotFoundError, DataValidationError) as error:  # a picture has been removed or replaced
            self.console.print(f"The training failed, and the earlier model is kept: {error}", markup=False)
            return False
        finally:
            bar.remove_task(bar.task_ids[-1])
        self.num_scored = 0
        count = _count_pictures(len(unlabeled), "unlabeled")
        self.console.print(f"Trained again with {count}. All pictures are scored again.")
        message = "no longer exists, so it keeps the score of an earlier model with fewer unlabeled pictures."
        kind = "pictures no longer exist, so they keep the scores of an earlier model"
        missing = [path for path in map(self._path, self.run.entries) if not path.is_file()]
        self.add_issues([DataIssue(path, WARNING, message, kind) for path in missing])
        return True

    def usable(self, paths: Sequence[Path]) -> list[Path]:
        """Return the pictures to score, and record the issues of those that cannot be used."""
        paths = list(self.pending(paths))
        if not paths:
            return []
        too_long = f"has a name of more than {MAX_NAME_BYTES} bytes, which is too long for its heat map. Rename it."
        issues = [DataIssue(path, ERROR, too_long) for path in paths if len(os.fsencode(path.name)) > MAX_NAME_BYTES]
        unusable = self.add_issues([*issues, *check_images(self.support, paths, decode=False, upright=True)])
        self.skipped |= {path: file_state(path)[1] for path in paths if path in unusable}
        return [path for path in paths if path not in unusable]

    def pending(self, paths: Sequence[Path]) -> Iterator[Path]:
        """Yield the pictures to score: new or changed ones, and those that an earlier model has scored."""
        for path in paths:
            state = file_state(path)
            if self.skipped.get(path) != state[1] and os.path.realpath(path) not in self.good_realpaths:
                entry = None if self._run is None else self.run.entries.get(self.name(path))
                if entry is None or (entry.num_bytes, entry.modified, entry.num_unlabeled) != (*state, self.pool_size):
                    yield path

    def name(self, path: Path) -> str:
        return path.relative_to(self.new).as_posix() if self.new.is_dir() else path.name

    def _path(self, name: str) -> Path:
        return self.new / name if self.new.is_dir() else self.new

    def record(self, scored: ScoredImage) -> None:
        """Write the image files of a picture, then its line in the journal. The line marks it as done."""
        if scored.photo is None:
            self.add_issues([DataIssue(scored.path, ERROR, scored.error)])
            self.skipped[scored.path] = file_state(scored.path)[1]
            return
        if self.skipped.pop(scored.path, None) is not None:  # a broken file has been replaced
            self.issues = {each: None for each in self.issues if (each.path, each.severity) != (scored.path, ERROR)}
        name = self.name(scored.path)
        write_images(scored, self.run.path, name)
        p_value = None if isnan(scored.p_value) else scored.p_value
        state = file_state(scored.path)
        entry = Entry(name, scored.verdict, scored.score, p_value, *scored.photo.size, *state, self.pool_size)
        self.run.add([entry])
        self.num_scored += 1
        if time.monotonic() - self.page_written > PAGE_INTERVAL:
            self.write()

    def write(self, *, inline: bool = False) -> pd.DataFrame:
        """Write the table and the page for the pictures scored so far."""
        self.page_written = time.monotonic()
        self._write_settings()
        table = self.run.write_table()
        issues = [(str(issue.path), issue.severity, issue.message) for issue in self.issues]
        if issues:
            self.run.write_issues(issues)
        texts = (self.drift(), self._describe_pool())
        note = write_page(self.run, self.model.post_processor, issues, *texts, inline=inline)
        if note:
            self.console.print(note)
        return table

    def drift(self) -> str:
        """Return the drift report. Pictures are ordered by name."""
        entries = sorted(self.run.entries.values(), key=lambda entry: entry.path)
        metadata = self.model.post_processor.metadata()
        calibration_scores = [
            max(level["score_up_to"], metadata["review_score"])  # below it, only the distance orders pictures
            for level in metadata.get("p_values", [])
        ]
        return describe_drift([entry.score for entry in entries], calibration_scores)

    @contextmanager
    def finalize(self, *, watch: bool) -> Generator[None]:
        """Write the results at the end of the run, also after Ctrl-C."""
        inline = " --inline" if self.inline else ""
        command = f"anomalib inspect{inline} --resume {shlex.quote(str(self.run.path))}"
        hint = f"Scored pictures are saved. To resume: {command}"
        set_hint(hint)
        interrupted = False
        try:
            yield
        except KeyboardInterrupt:
            interrupted = True
            if not watch:
                self.write()
                if not is_ending():  # otherwise the signal handler prints the hint
                    self.console.print(hint, markup=False)
                raise
            continue_after_interrupt()
        table = self.write(inline=self.inline)
        if interrupted:
            again = f" To score all pictures with the last model: {command}" if self._outdated() else ""
            self.console.print(f"Stopped. All results are saved.{again}", markup=False)
        self.print_summary(table)

    def print_summary(self, table: pd.DataFrame) -> None:
        """Print the verdicts and the paths of the results."""
        counts = table.verdict.value_counts()
        verdicts = ", ".join(f"{counts.get(verdict, 0)} {verdict}" for verdict in VERDICTS[::-1])
        skipped = f" {len(self.skipped)} skipped." if self.skipped else ""
        notes = [text for text in (self._describe_pool(), self.drift()) if text]
        folder = self.run.path
        lines = [
            "",
            self.model.post_processor.describe(),
            f"{_count_pictures(len(table), 'new')}: {verdicts}.{skipped}",
            *notes,
            f"Page        {folder / 'index.html'}",
            f"Table       {folder / 'scores.csv'}",
            f"Heat maps   {folder / 'overlays'}",
            f"Checkpoint  {folder / CHECKPOINT}",
            f"Score more  anomalib inspect --model {shlex.quote(str(folder))} --new FOLDER",
        ]
        for line in lines:
            self.console.print(line, markup=False)

    def progress(self, *columns: ProgressColumn) -> Progress:
        columns = (TextColumn("{task.description}"), BarColumn(30), *columns, TimeElapsedColumn())
        return Progress(*columns, console=self.console, disable=self.console.quiet)


def _subfolders(folder: Path) -> list[Path]:
    """Return a folder and its subfolders. None for a file."""
    return [folder, *(path for path in folder.rglob("*") if path.is_dir())] if folder.is_dir() else []


def _count_pictures(count: int, kind: str) -> str:
    return f"{count} {kind} picture{'' if count == 1 else 's'}"
