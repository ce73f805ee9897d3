# Copyright (C) 2026 anomalib-fewshot contributors
# SPDX-License-Identifier: Apache-2.0

"""The inspection behind the served page: it keeps marks and thresholds, scores new pictures and trains again.

Requests arrive in the threads of the server. Everything that changes a model or a run happens in the main thread, one
task after the other. Marks are stored at once, also during a training.
"""

import queue
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path
from typing import Any

from anomalib_fewshot._cli.signals import continue_after_interrupt, set_hint
from anomalib_fewshot.errors import ArgumentError, FewShotError

from . import summary
from .ignore_mask import MASK, write_mask
from .labels import KINDS
from .page import page_data
from .server import PageServer
from .session import Session
from .settings import Settings, now
from .watch import WATCH_INTERVAL, Watcher

NEXT_MASK = "ignore_next.png"  # of the next training
Rectangle = tuple[float, float, float, float]  # x, y, width and height as fractions of a picture
TIMEOUT = 60.0  # seconds that a request waits for a short task of the main thread


class InspectionService:
    """Inspection that a page controls.

    Args:
        session (Session): Session with a fitted model.
        watch (bool): Score pictures that arrive later.
        port (int): Port of the server. 0 means a free one.

    Attributes:
        session (Session): The current session. A training replaces it.
        version (int): Number that grows with every change of the page.
    """

    def __init__(self, session: Session, *, watch: bool, port: int) -> None:
        self.session = session
        self.watcher = Watcher(session) if watch else None
        self.version = 0
        self._port = port
        self._lock = threading.Lock()
        self._tasks: queue.Queue[Callable[[], None]] = queue.Queue()
        self._job: dict[str, Any] | None = None
        self._error: str | None = None

    # --- Main thread

    def run(self) -> Session:
        """Score the pictures and serve the page until Ctrl-C. Return the last session."""
        self.session.on_progress = self._report
        set_hint(f"Scored pictures are saved. To continue: {self._command}")
        try:
            self._do("Scoring", self._score)
            with PageServer(self, self._port) as server:
                self.session.console.print(f"Serving     {server.url}\nCtrl-C stops the server.", markup=False)
                while True:
                    self._run_next_task()
        except KeyboardInterrupt:
            continue_after_interrupt()
        self.session.write()
        self.session.console.print(f"Stopped. To continue: {self._command}", markup=False)
        return self.session

    @property
    def _command(self) -> str:
        return f"anomalib inspect --resume {self.session.run.path} --serve"

    def _run_next_task(self) -> None:
        try:
            task = self._tasks.get(timeout=WATCH_INTERVAL)
        except queue.Empty:
            if self.watcher is not None:
                self._watch(self.watcher)
        else:
            task()

    def _watch(self, watcher: Watcher) -> None:
        """Score the pictures that have arrived."""
        if watcher.step(lambda done, total: self._report("Scoring", done, total)):
            self._changed()
        if self._tasks.empty():  # otherwise a training has been requested in the meantime
            self._job = None

    def _score(self) -> None:
        self.session.score()
        table = self.session.write()
        for line in summary.summary_lines(self.session, table):
            self.session.console.print(line, markup=False)

    def _do(self, text: str, work: Callable[[], None]) -> None:
        """Do a long task, and keep its error for the page."""
        self._job, self._error = {"text": text, "done": 0, "total": None}, None
        try:
            work()
        except (FewShotError, OSError, ValueError) as error:
            self._error = str(error)
            self.session.console.print(f"{text} failed: {error}", markup=False)
        finally:
            self._job = None
            set_hint(f"Scored pictures are saved. To continue: {self._command}")
            self._changed()

    def _train(self) -> None:
        """Train a new run on the good pictures, the ones marked good too, and without those marked bad."""
        old = self.session
        settings = self._next_settings(old)
        new = Session(settings, old.console, strict=old.strict, inline=old.inline, on_result=old.on_result)
        new.on_progress = self._report
        new.labels = dict(old.labels)
        new.check(complete=False)
        masks = [path for path in (old.run.path / NEXT_MASK, old.run.path / MASK) if path.is_file()]
        new.create(old.run.path.parent, masks[0] if masks else None)
        new.score()
        with self._lock:
            new.labels = {}
            new.set_labels(old.labels)  # as they are now: the page may have changed them in the meantime
            self.session = new
        if self.watcher is not None:
            self.watcher = Watcher(new)
        table = new.write()
        for line in summary.summary_lines(new, table):
            new.console.print(line, markup=False)

    @staticmethod
    def _next_settings(old: Session) -> Settings:
        marked: dict[str, list[str]] = {kind: [] for kind in KINDS}
        for name, kind in old.labels.items():
            path = old.pictures.path(name)
            if path.is_file():
                marked[kind].append(str(path))
        marked_good = list(dict.fromkeys([*old.settings.marked_good, *marked["good"]]))
        bad = list(dict.fromkeys([*old.settings.bad, *marked["bad"]]))
        missing = [path for path in old.settings.good if not Path(path).exists()]
        if missing or not old.settings.good:
            which = missing[0] if missing else f"the checkpoint {old.settings.model}"
            msg = f"Training requires the good pictures of the model, but those of {which} do not exist."
            raise ArgumentError(msg)
        return replace(
            old.settings,
            marked_good=marked_good,
            bad=bad,
            model=None,
            started=now(),
            warnings=[],
        )

    def _report(self, text: str, done: int, total: int | None) -> None:
        self._job = {"text": text, "done": done, "total": total}

    def _changed(self) -> None:
        with self._lock:
            self.version += 1

    # --- Requests

    def data(self) -> dict[str, Any]:
        """Return the content of the page."""
        return page_data(self.session)

    def state(self) -> dict[str, Any]:
        """Return the version of the page, and the task in progress."""
        return {"version": self.version, "job": self._job, "error": self._error}

    def set_labels(self, labels: dict[str, str | None]) -> None:
        """Store labels of pictures. ``None`` removes one.

        Raises:
            ArgumentError: If a picture is unknown, or if a label is neither good nor bad.
        """
        if not isinstance(labels, dict):
            msg = f"Labels must be an object with a label for each path, got {labels!r}."
            raise ArgumentError(msg)
        for path, label in labels.items():
            if path not in self.session.run.entries or label not in {*KINDS, None}:
                msg = f"Labels must be good or bad and belong to a picture of the run, got {label!r} for {path!r}."
                raise ArgumentError(msg)
        with self._lock:
            self.session.set_labels(labels)
        self._changed()

    def set_thresholds(self, thresholds: Mapping[str, float | None] | None) -> None:
        """Change the thresholds of the run, or restore the calibrated ones.

        Raises:
            ArgumentError: If they are not valid, or if a task is in progress.
        """

        def work() -> None:
            self.session.set_thresholds({} if thresholds is None else thresholds)
            self.session.write()

        self._wait_for(work)

    def set_ignored(self, name: str, rectangles: list[Rectangle]) -> None:
        """Store the region to ignore from the next training on. Without rectangles, that of this run remains.

        Raises:
            ArgumentError: If the picture is unknown, or if a rectangle is not valid.
        """
        entry = self.session.run.entries.get(name)
        if entry is None:
            msg = f"The picture must belong to the run, got {name!r}."
            raise ArgumentError(msg)
        path = self.session.run.path / NEXT_MASK  # the current model was trained without it
        if rectangles:
            write_mask(path, (entry.width, entry.height), rectangles)
        else:
            path.unlink(missing_ok=True)
        self._changed()

    def train(self) -> None:
        """Train again with the marks.

        Raises:
            ArgumentError: If a task is in progress.
        """
        with self._lock:  # two tabs start one training
            self._check_idle()
            self._job = {"text": "Training", "done": 0, "total": None}
        self._tasks.put(lambda: self._do("Training", self._train))

    def _check_idle(self) -> None:
        if self._job is not None:
            msg = f"{self._job['text']} is in progress. Wait until it has ended."
            raise ArgumentError(msg)

    def _wait_for(self, work: Callable[[], None]) -> None:
        """Do a short task in the main thread and wait for it."""
        self._check_idle()
        done: Future[None] = Future()

        def task() -> None:
            try:
                work()
            except Exception as error:  # noqa: BLE001  the request reports it
                done.set_exception(error)
            else:
                self._changed()
                done.set_result(None)

        self._tasks.put(task)
        done.result(TIMEOUT)
