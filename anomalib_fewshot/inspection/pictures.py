# Copyright (C) 2026 anomalib-fewshot contributors
# SPDX-License-Identifier: Apache-2.0

"""The pictures of a run: which can be used, and the issues of the others."""

import os
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from anomalib_fewshot.data.validation.image_check import SAME_STEM, check_images, find_skipped_files
from anomalib_fewshot.data.validation.issue import ERROR, DataIssue, report, summarize

from .picture_files import file_state, list_pictures
from .settings import Settings

MAX_NAME_BYTES = 251  # output files append a suffix of four bytes
MAX_PRINTED_ERRORS = 5  # the page and findings.csv list all of them


class Pictures:
    """Good and new pictures of a run.

    Args:
        settings (Settings): Settings of the run.
        console (Console): Issues are printed there.
        strict (bool): Raise an error if a picture cannot be used.

    Attributes:
        good (list[Path]): Usable good pictures, those that were marked good last.
        marked_good (set[Path]): Good pictures that do not set the thresholds.
        good_realpaths (set[str]): Real paths of all good pictures. They are not scored.
        bad_realpaths (set[str]): Real paths of the pictures that the model must not learn from.
        issues (dict[DataIssue, None]): All issues, in order.
        skipped (dict[Path, int]): Modification time of each new picture that cannot be used.
    """

    def __init__(self, settings: Settings, console: Console, *, strict: bool) -> None:
        self.settings = settings
        self.console = console
        self.strict = strict
        self.good: list[Path] = []
        self.marked_good: set[Path] = set()
        self.good_realpaths: set[str] = set()
        self.bad_realpaths: set[str] = set()
        self.issues: dict[DataIssue, None] = {}
        self.skipped: dict[Path, int] = {}

    @property
    def new(self) -> Path:
        """Folder of new pictures, or a single picture."""
        return Path(self.settings.new)

    def name(self, path: Path) -> str:
        """Return the path of a new picture relative to the folder of new pictures."""
        return path.relative_to(self.new).as_posix() if self.new.is_dir() else path.name

    def path(self, name: str) -> Path:
        """Return the file of a new picture."""
        return self.new / name if self.new.is_dir() else self.new

    def find_good(self) -> None:
        """Find the usable good pictures without duplicates, and record the issues of the others."""
        parts = [*self.settings.good, *self.settings.marked_good]
        if not self.settings.trains:  # the pictures of the earlier run may have been moved
            parts = [part for part in parts if Path(part).exists()]
        unusable = self.add_issues(check_images(parts, upright=True))
        files = _list_all(parts)
        self.good_realpaths = {os.path.realpath(path) for path in files}
        self.bad_realpaths = {os.path.realpath(path) for path in _list_all(self.settings.bad)}
        self.good = [path for path in files if path not in unusable]
        self.marked_good = set(_list_all(self.settings.marked_good)) - set(_list_all(self.settings.good))

    def find_unusable(self, paths: Sequence[Path], *, decode: bool) -> set[Path]:
        """Record the issues of unlabeled pictures, and return those that cannot be used."""
        return self.add_issues(check_images(self.good, paths, decode=decode, upright=True))

    def skip_unusable(self, paths: Sequence[Path]) -> list[Path]:
        """Return the new pictures that can be used. The others are skipped until they change."""
        if not paths:
            return []
        too_long = f"has a name of more than {MAX_NAME_BYTES} bytes, which is too long for its heat map. Rename it."
        issues = [DataIssue(path, ERROR, too_long) for path in paths if len(os.fsencode(path.name)) > MAX_NAME_BYTES]
        unusable = self.add_issues([*issues, *check_images(self.good, paths, decode=False, upright=True)])
        self.skip([path for path in paths if path in unusable])
        return [path for path in paths if path not in unusable]

    def skip(self, paths: Sequence[Path]) -> None:
        """Skip new pictures until they change."""
        for path in paths:
            self.skipped[path] = file_state(path)[1]

    def forget_errors(self, path: Path) -> None:
        """Forget the errors of a skipped picture that has been replaced by a usable one."""
        if self.skipped.pop(path, None) is not None:
            self.issues = {each: None for each in self.issues if (each.path, each.severity) != (path, ERROR)}

    def is_candidate(self, path: Path) -> bool:
        """Return whether a new picture is neither a good one nor a skipped one that has not changed."""
        if self.skipped.get(path) == file_state(path)[1]:
            return False
        return os.path.realpath(path) not in self.good_realpaths

    def add_system_files(self, parts: Sequence[Path]) -> None:
        """Record the files in folders that are skipped because of their names."""
        for part in parts:
            self.add_issues(find_skipped_files(_subfolders(part)))

    def add_issues(self, issues: Sequence[DataIssue]) -> set[Path]:
        """Record and print new issues, and return the files that cannot be used.

        Raises:
            DataValidationError: If ``strict`` is set and a picture cannot be used.
        """
        issues = [issue for issue in issues if issue.kind != SAME_STEM]  # outputs keep the suffix of each picture
        new_issues = [issue for issue in issues if issue not in self.issues]
        if self.strict:
            report([issue for issue in new_issues if issue.severity == ERROR])
        self.issues |= dict.fromkeys(new_issues)
        errors = [issue for issue in new_issues if issue.severity == ERROR]
        for issue in errors[:MAX_PRINTED_ERRORS]:
            suffix = "" if issue.path.is_dir() else " Skipped."
            self.console.print(f"  {issue}{suffix}", markup=False)
        if len(errors) > MAX_PRINTED_ERRORS:
            self.console.print(f"  ... and {len(errors) - MAX_PRINTED_ERRORS} more, on the page and in findings.csv.")
        for line in summarize(issue for issue in new_issues if issue.severity != ERROR):
            self.console.print(f"  {line}", markup=False)
        return {issue.path for issue in issues if issue.severity == ERROR}


def _list_all(parts: Sequence[str]) -> list[Path]:
    """Return the pictures of folders and files without repetitions, in order."""
    return list(dict.fromkeys(path for part in parts for path in list_pictures(Path(part))))


def _subfolders(folder: Path) -> list[Path]:
    """Return a folder and its subfolders. None for a file."""
    return [folder, *(path for path in folder.rglob("*") if path.is_dir())] if folder.is_dir() else []
