# Copyright (C) 2026 anomalib-fewshot contributors
# SPDX-License-Identifier: Apache-2.0

"""From a folder of good pictures to verdicts on a page: train, score, write."""

import os
import shlex
import shutil
import time
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
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
from anomalib_fewshot.data.validation.image_check import check_pictures, find_skipped_files
from anomalib_fewshot.data.validation.issue import ERROR, DataIssue, report, summarize
from anomalib_fewshot.post_processing import VERDICTS

from .drift import describe_drift
from .ignore_mask import IgnoreMask
from .page import PAGE, write_page
from .pictures import write_pictures
from .run_folder import SETTINGS, Entry, RunFolder
from .scoring import Scored, Scorer
from .training import CHECKPOINT, SUPPORT, checkpoint_of, load, to_device, train

MASK = "ignore.png"
SAME_STEM = "by its suffix alone"
MAX_NAME = 251  # bytes, to which a suffix is added
NUM_SAID = 5  # errors in the terminal, where warnings are grouped; the page and a table have all
WATCH_SECONDS = 1.0
PAGE_SECONDS = 20.0  # between two pages of a run that is not over

Pictures = str | Path | Sequence[str | Path]


def inspect(
    good: Pictures | None = None,
    new: str | Path | None = None,
    out: str | Path = "results/inspect",
    model: str | Path | None = None,
    resume: str | Path | None = None,
    ignore: str | Path | None = None,
    strict: bool = False,
    watch: bool = False,
    inline: bool = False,
    progress: bool = True,
) -> pd.DataFrame:
    """Train a detector on good pictures and give verdicts on new ones, in a table and on a page.

    Every run has a folder of its own, ``out/v0``, ``out/v1`` and so on, with ``index.html``, ``scores.csv``,
    ``overlays``, ``model.ckpt`` and ``support.json``.

    Ctrl-C and SIGTERM end the command within five seconds, with exit status 130 or 143. During the training nothing is
    kept, and the folder is removed. After it, the model and the scored pictures are kept, the table and the page show
    them, and the last line gives the command that scores the others. With ``watch``, Ctrl-C is the usual end, with exit
    status 0.

    Args:
        good (Pictures | None): Good pictures: a folder, a file or several of both. Not used with ``model``.
        new (str | Path | None): Folder of pictures to score, or one picture.
        out (str | Path): Folder of runs. Defaults to ``"results/inspect"``.
        model (str | Path | None): Folder of an earlier run, or a checkpoint of ``anomalib fit``, whose model scores.
            Nothing is trained. Defaults to ``None``.
        resume (str | Path | None): Folder of a run that was ended, to complete. Defaults to ``None``.
        ignore (str | Path | None): Mask, white where pictures do not count. Defaults to ``None``.
        strict (bool): Refuse pictures that cannot be used, instead of leaving them out. Defaults to ``False``.
        watch (bool): Score what comes into ``new`` until Ctrl-C. Defaults to ``False``.
        inline (bool): Write the pictures into the page, so that it is one file. Defaults to ``False``.
        progress (bool): Say what is done. Defaults to ``True``.

    Returns:
        pd.DataFrame: The pictures by score, the highest first, with the columns path, verdict, score and p_value.

    Raises:
        FileNotFoundError: If a folder does not exist.
        ValueError: If arguments do not go together, if there is no good picture, or with ``strict`` if a picture cannot
            be used.

    Example:
        >>> from anomalib_fewshot import inspect
        >>> inspect("good", "new")  # doctest: +SKIP
    """
    console = Console(quiet=not progress, highlight=False, soft_wrap=True)
    if resume is not None:
        if any(value is not None for value in (good, new, model, ignore)):
            msg = f"`resume` must stand alone, got {resume} and others. The folder knows the good and new pictures."
            raise ValueError(msg)
        run = RunFolder(Path(resume))
        settings = run.settings
        if not (run.path / CHECKPOINT).is_file():
            msg = f"`resume` must be a run that has trained its model, got {resume}. Start it again."
            raise ValueError(msg)
        if not Path(settings["new"]).exists():
            msg = f"Pictures of `resume` must exist, got {settings['new']}. Resume where the run was started."
            raise FileNotFoundError(msg)
        inspection = _Inspection(console, run, settings, strict, inline)
        inspection.support, inspection.model = inspection.good_pictures(), load(run.path)
    else:
        if new is None or (good is None) == (model is None):
            msg = "`new` and one of `good` and `model` must be given. For example: --good good/ --new new/."
            raise ValueError(msg)
        settings = {
            "good": [],
            "new": str(new),
            "started": datetime.now().astimezone().isoformat(timespec="microseconds"),
        }
        if model is None:
            settings["good"] = [str(path) for path in ([good] if isinstance(good, str | Path) else good or ())]
        else:
            settings["model"] = str(model)
            earlier = RunFolder(Path(model))
            if not Path(model).is_file():  # of a checkpoint's good pictures nothing is known
                settings["good"] = earlier.settings["good"]
            if ignore is not None:
                msg = f"`ignore` must be given when the model is trained, got {ignore}. The folder of `model` has it."
                raise ValueError(msg)
            ignore = earlier.path / MASK if (earlier.path / MASK).is_file() else None
        _check_folders([str(new), *([] if model is not None else settings["good"])])
        if ignore is not None:
            IgnoreMask(Path(ignore))
        inspection = _Inspection(console, None, settings, strict, inline)
        inspection.check(complete=not watch)
        inspection.begin(Path(out), model, ignore)
    with inspection.finalize(watch=watch):
        inspection.score(watch=watch)
    return inspection.run.table()


def _check_folders(folders: Sequence[str]) -> None:
    for folder in folders:
        if not Path(folder).exists():
            msg = f"Folders must exist, got {folder}, which does not. Check the name."
            raise FileNotFoundError(msg)


@dataclass
class _Inspection:
    """A run: the folder that it writes to, and what it knows."""

    console: Console
    _run: RunFolder | None
    settings: dict[str, Any]
    strict: bool
    inline: bool
    model: Any = None
    findings: dict[DataIssue, None] = field(default_factory=dict)
    left_out: dict[Path, int] = field(default_factory=dict)  # when it was last changed
    support: list[Path] = field(default_factory=list)
    resolved: set[str] = field(default_factory=set)  # of good pictures; a link to itself has a name, too
    num_scored: int = 0
    shown: float = field(default_factory=time.monotonic)  # when the page was last written

    @property
    def run(self) -> RunFolder:
        if self._run is None:
            msg = "A run must begin before it scores. Call `begin`."
            raise RuntimeError(msg)
        return self._run

    @property
    def new(self) -> Path:
        return Path(self.settings["new"])

    def check(self, *, complete: bool) -> None:
        """Check all pictures before anything is trained.

        Raises:
            ValueError: If none is good or, where ``new`` is ``complete``, none is to be scored; with ``strict`` if one
                cannot be used.
        """
        self.support = self.good_pictures()
        if not self.support and "model" not in self.settings:
            lines = "".join(f"\n  {finding}" for finding in list(self.findings)[:NUM_SAID])
            msg = f"`good` must have a picture that can be used, got none in {', '.join(self.settings['good'])}.{lines}"
            raise ValueError(msg)
        if self.new.is_dir():
            self.add_issues(find_skipped_files([self.new, *(path for path in self.new.rglob("*") if path.is_dir())]))
        listed = _list(self.new)
        pending = self.usable(listed)
        same = [path for path in listed if os.path.realpath(path) in self.resolved]
        if same:
            self.console.print(f"  {_pictures(len(same), 'new')} among the good ones: not scored.")
        if complete and not pending:
            suffixes = ", ".join(IMG_EXTENSIONS)
            msg = f"`new` must have pictures to score, got none in {self.new} that can be. Add some, of {suffixes}."
            raise ValueError(msg)

    def begin(self, out: Path, model: str | Path | None, ignore: str | Path | None) -> None:
        """Make the folder, and train or take the model of another run."""
        self.model = None if model is None else load(Path(model))
        self._run = RunFolder.create(out)
        try:
            self._fill(model, ignore)
        except BaseException:  # there is nothing to resume
            shutil.rmtree(self.run.path)
            raise

    def _fill(self, model: str | Path | None, ignore: str | Path | None) -> None:
        if ignore is not None:
            shutil.copyfile(ignore, self.run.path / MASK)
        self.run.write_settings(**self.settings)
        if model is not None:
            shutil.copyfile(checkpoint_of(Path(model)), self.run.path / CHECKPOINT)
            if (Path(model) / SUPPORT).is_file():
                shutil.copyfile(Path(model) / SUPPORT, self.run.path / SUPPORT)
            return
        with self.progress(TaskProgressColumn()) as bar:
            task = bar.add_task(f"Training on {_pictures(len(self.support), 'good')}", total=None)
            self.model = train(
                self.support,
                self.run.path,
                self.ignored,
                lambda step, total: bar.update(task, completed=step, total=total),
            )

    def good_pictures(self) -> list[Path]:
        """Return the good pictures that can be used, each once, and note what is wrong with the others."""
        parts = [part for part in self.settings["good"] if "model" not in self.settings or Path(part).exists()]
        bad = self.add_issues(check_pictures(parts, upright=True))
        files = list(dict.fromkeys(path for part in parts for path in _list(Path(part))))
        self.resolved = {os.path.realpath(path) for path in files}
        return [path for path in files if path not in bad]

    @property
    def ignored(self) -> IgnoreMask | None:
        path = self.run.path / MASK
        return IgnoreMask(path) if path.is_file() else None

    def add_issues(self, findings: Sequence[DataIssue]) -> set[Path]:
        """Say what is wrong, once each, and return the files that cannot be used."""
        findings = [finding for finding in findings if SAME_STEM not in finding.message]  # here nothing can mix
        fresh = [finding for finding in findings if finding not in self.findings]
        if self.strict:
            report([finding for finding in fresh if finding.severity == ERROR])
        self.findings |= dict.fromkeys(fresh)
        errors = [finding for finding in fresh if finding.severity == ERROR]
        for finding in errors[:NUM_SAID]:
            self.print_issue(finding)
        if len(errors) > NUM_SAID:
            self.console.print(f"  ... and {len(errors) - NUM_SAID} more, on the page and in findings.csv.")
        for line in summarize(finding for finding in fresh if finding.severity != ERROR):
            self.console.print(f"  {line}", markup=False)
        return {finding.path for finding in findings if finding.severity == ERROR}

    def print_issue(self, finding: DataIssue) -> None:
        left_out = " Left out." if finding.severity == ERROR and not finding.path.is_dir() else ""
        self.console.print(f"  {finding}{left_out}", markup=False)

    def score(self, *, watch: bool) -> None:
        """Score what is not scored yet, and with ``watch`` what comes."""
        scorer = Scorer(to_device(self.model), self.ignored)
        before: dict[Path, tuple[int, int]] = {}
        with self.progress(MofNCompleteColumn()) as bar:
            task = bar.add_task("Scoring", total=None)
            while True:
                paths = list(self.pending(_list(self.new)))
                if watch:  # a file that is still being written is not complete: wait until it stays as it is
                    now = {path: _state(path) for path in paths}
                    paths = [path for path in paths if before.get(path) == now[path]]
                    before = now
                paths = self.usable(paths)
                bar.update(task, total=self.num_scored + len(paths) if paths or not watch else None)
                for scored in scorer(paths):
                    self.record(scored)
                    bar.update(task, completed=self.num_scored)
                if not watch:
                    return
                if paths or not (self.run.path / PAGE).is_file():
                    self.write()
                time.sleep(WATCH_SECONDS)

    def usable(self, paths: Sequence[Path]) -> list[Path]:
        """Return the pictures that are to be scored and can be, and note what is wrong with the others."""
        paths = list(self.pending(paths))
        if not paths:
            return []
        long = f"has a name of more than {MAX_NAME} bytes: its heat map would have none. Rename it."
        findings = [DataIssue(path, ERROR, long) for path in paths if len(os.fsencode(path.name)) > MAX_NAME]
        bad = self.add_issues([*findings, *check_pictures(self.support, paths, decode=False, upright=True)])
        self.left_out |= {path: _state(path)[1] for path in paths if path in bad}
        return [path for path in paths if path not in bad]

    def pending(self, paths: Sequence[Path]) -> Iterator[Path]:
        """Yield new pictures that are not among the good ones, and were not scored or left out as they are now."""
        for path in paths:
            state = _state(path)
            if self.left_out.get(path) != state[1] and os.path.realpath(path) not in self.resolved:
                entry = None if self._run is None else self.run.entries.get(self.name(path))
                if entry is None or (entry.num_bytes, entry.modified) != state:
                    yield path

    def name(self, path: Path) -> str:
        return path.relative_to(self.new).as_posix() if self.new.is_dir() else path.name

    def record(self, scored: Scored) -> None:
        """Write the pictures of a picture, and then the line that says it is done."""
        if scored.photo is None:
            self.add_issues([DataIssue(scored.path, ERROR, scored.fault)])
            self.left_out[scored.path] = _state(scored.path)[1]
            return
        if self.left_out.pop(scored.path, None) is not None:  # it was broken, and has come again
            self.findings = {each: None for each in self.findings if (each.path, each.severity) != (scored.path, ERROR)}
        name = self.name(scored.path)
        write_pictures(scored, self.run.path, name)
        p_value = None if scored.p_value != scored.p_value else scored.p_value
        self.run.add([Entry(name, scored.verdict, scored.score, p_value, *scored.photo.size, *_state(scored.path))])
        self.num_scored += 1
        if time.monotonic() - self.shown > PAGE_SECONDS:
            self.write()

    def write(self, *, inline: bool = False) -> pd.DataFrame:
        """Write the table and the page of what is scored so far."""
        self.shown = time.monotonic()
        table = self.run.write_table()
        findings = [(str(finding.path), finding.severity, finding.message) for finding in self.findings]
        if findings:
            self.run.write_findings(findings)
        note = write_page(self.run, self.model.post_processor, findings, self.drift(), inline=inline)
        if note:
            self.console.print(note)
        return table

    def drift(self) -> str:
        """Return what is said of a drift, in the order of the pictures' names."""
        entries = sorted(self.run.entries.values(), key=lambda entry: entry.path)
        calibration_scores = [
            level["score_up_to"] for level in self.model.post_processor.metadata().get("p_values", [])
        ]
        return describe_drift([entry.score for entry in entries], calibration_scores)

    @contextmanager
    def finalize(self, *, watch: bool) -> Generator[None]:
        """Write what there is, also when the user ends the run."""
        inline = " --inline" if self.inline else ""
        resume = (
            f"Scored pictures are kept. To resume: anomalib inspect{inline} --resume {shlex.quote(str(self.run.path))}"
        )
        set_hint(resume)
        ended = False
        try:
            yield
        except KeyboardInterrupt:
            ended = True
            if not watch:
                self.write()
                if not is_ending():  # else it is in the last line of the command
                    self.console.print(resume, markup=False)
                raise
            continue_after_interrupt()
        table = self.write(inline=self.inline)
        if ended:
            self.console.print("Ended. Nothing is lost.")
        self.print_summary(table)

    def print_summary(self, table: pd.DataFrame) -> None:
        """Say what was found and where it lies."""
        counts = table.verdict.value_counts()
        verdicts = ", ".join(f"{counts.get(verdict, 0)} {verdict}" for verdict in VERDICTS[::-1])
        folder = self.run.path
        lines = [
            "",
            self.model.post_processor.describe(),
            f"{_pictures(len(table), 'new')}: {verdicts}."
            + (f" {len(self.left_out)} left out." if self.left_out else ""),
            *filter(None, [self.drift()]),
            f"Page        {folder / 'index.html'}",
            f"Table       {folder / 'scores.csv'}   heat maps: {folder / 'overlays'}",
            f"Checkpoint  {folder / CHECKPOINT}",
            f"Next        anomalib inspect --model {shlex.quote(str(folder))} --new FOLDER",
        ]
        for line in lines:
            self.console.print(line, markup=False)

    def progress(self, *columns: ProgressColumn) -> Progress:
        columns = (TextColumn("{task.description}"), BarColumn(30), *columns, TimeElapsedColumn())
        return Progress(*columns, console=self.console, disable=self.console.quiet)


def _list(path: Path) -> list[Path]:
    """Return the pictures of a folder, or the file itself."""
    found = path.rglob("*") if path.is_dir() else [path]
    runs = {file.parent for file in path.rglob(SETTINGS)} if path.is_dir() else set()  # their pictures are not new
    pictures = (file for file in found if file.suffix.lower() in IMG_EXTENSIONS and not file.name.startswith("._"))
    return sorted(
        file for file in pictures if (file.is_file() or file.is_symlink()) and not (runs and runs & {*file.parents})
    )


def _state(path: Path) -> tuple[int, int]:
    try:
        status = path.stat()
    except OSError:
        return 0, 0
    return status.st_size, status.st_mtime_ns


def _pictures(count: int, kind: str) -> str:
    return f"{count} {kind} picture{'' if count == 1 else 's'}"
