# Copyright (C) 2026 anomalib-fewshot contributors
# SPDX-License-Identifier: Apache-2.0

"""Scoring of pictures that arrive in a folder. The model is trained again when the pool has grown enough."""

import time
from collections.abc import Sequence
from pathlib import Path

from rich.progress import MofNCompleteColumn

from anomalib_fewshot.data.validation.issue import WARNING, DataIssue
from anomalib_fewshot.errors import DataValidationError

from .page import PAGE
from .picture_files import file_state, list_pictures
from .pool import Pool, next_pool_size
from .session import Session, UpdateProgress
from .summary import count_pictures

WATCH_INTERVAL = 1.0  # seconds between two scans of the folder


class Watcher:
    """Watch the folder of new pictures.

    Args:
        session (Session): Session with a fitted model.
    """

    def __init__(self, session: Session) -> None:
        self.session = session
        self._num_tried = 0  # number of scored pictures when the last training with a larger pool was tried
        self._states: dict[Path, tuple[int, int]] = {}  # of pictures that another program may still be writing

    def run(self) -> None:
        """Score pictures until Ctrl-C."""
        with self.session.progress("Scoring", MofNCompleteColumn()) as update:
            while True:
                self.step(update)
                time.sleep(WATCH_INTERVAL)

    def step(self, update: UpdateProgress) -> bool:
        """Score the pictures that have arrived, and train again if the pool has grown enough.

        Args:
            update (UpdateProgress): Called with the number of scored pictures and the total.

        Returns:
            bool: Whether there are new results.
        """
        session, pool = self.session, self.session.pool
        states = {path: file_state(path) for path in session.pending()}
        complete = [path for path, state in states.items() if self._states.get(path) == state]
        self._states = states  # a file that still changes is scored later: another program is writing it
        session.score_paths(complete, update)
        if pool is not None:
            pool.num_found = len(session.run.entries) + len(pool.older)
        if complete or not (session.run.path / PAGE).is_file():
            session.write()
        if pool is not None and self._is_pool_enlarged(pool) and self._retrain(pool.chosen):
            update(0, None)
        return bool(complete)

    def _is_pool_enlarged(self, pool: Pool) -> bool:
        """Choose a new pool if there are twice as many pictures as in the pool of the model."""
        session = self.session
        size, num_scored = next_pool_size(session.pool_size), len(session.run.entries)
        if size is None or num_scored + len(pool.older) < size:
            return False
        if num_scored == self._num_tried or not session.pictures.good:
            return False
        self._num_tried = num_scored
        pending = set(session.pending())
        new = [path for path in list_pictures(session.pictures.new) if session.pictures.is_candidate(path)]
        session.choose_pool(pool, [path for path in new if path not in pending])
        return len(pool.chosen) >= size

    def _retrain(self, unlabeled: Sequence[Path]) -> bool:
        """Train again with a larger pool. Return whether it succeeded, so that all pictures must be scored again."""
        session = self.session
        try:
            session.train(unlabeled)
        except (FileNotFoundError, DataValidationError) as error:  # a picture has been removed or replaced
            session.console.print(f"The training failed, and the earlier model is kept: {error}", markup=False)
            return False
        session.num_scored = 0
        count = count_pictures(len(unlabeled), "unlabeled")
        session.console.print(f"Trained again with {count}. All pictures are scored again.")
        message = "no longer exists, so it keeps the score of an earlier model with fewer unlabeled pictures."
        kind = "pictures no longer exist, so they keep the scores of an earlier model"
        missing = [path for path in map(session.pictures.path, session.run.entries) if not path.is_file()]
        session.pictures.add_issues([DataIssue(path, WARNING, message, kind) for path in missing])
        return True
