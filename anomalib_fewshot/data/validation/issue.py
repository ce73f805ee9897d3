# Copyright (C) 2026 anomalib-fewshot contributors
# SPDX-License-Identifier: Apache-2.0

"""What is wrong with files: errors by file, warnings by kind."""

import logging
import os
from collections import defaultdict
from collections.abc import Collection, Generator, Iterable, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path

from anomalib_fewshot.errors import DataValidationError

logger = logging.getLogger(__name__)

NUM_SHOWN = 20  # errors in a message
NUM_NAMES = 3  # names in a warning of several files
ERROR, WARNING = "error", "warning"


@dataclass(frozen=True)
class DataIssue:
    """A fault of a file, or of the files of a folder.

    Args:
        path (Path): The file or folder.
        severity (str): ``"error"``: it cannot be used. ``"warning"``: it can, and is perhaps not as it is meant.
        message (str): What is wrong and what to do.
        kind (str): The same of several files, without figures: ``"images are grey. Take all in one way"``. Issues of
            one kind become one warning. Defaults to ``""``: those with equal messages do.
        detail (str): Figures of this file, such as its size. Defaults to ``""``.
    """

    path: Path
    severity: str
    message: str
    kind: str = ""
    detail: str = ""

    def __str__(self) -> str:
        """Return one line."""
        return f"{self.path}: {self.message}"


def report(issues: Iterable[DataIssue], known: Collection[DataIssue] = ()) -> None:
    """Log one warning for each kind of issues, and refuse errors.

    Args:
        issues (Iterable[DataIssue]): Issues of one check.
        known (Collection[DataIssue]): Those that were logged before. Defaults to none.

    Raises:
        DataValidationError: If there is an error. It names them all.
    """
    issues = [issue for issue in dict.fromkeys(issues) if issue not in known]
    errors = [str(issue) for issue in issues if issue.severity == ERROR]
    if errors:
        msg = f"{len(errors)} files or folders cannot be read correctly by anomalib:"
        raise DataValidationError("\n  ".join([msg, *_shortened(errors)]))
    waiting = _waiting.get()
    if waiting is not None:
        waiting += issues
        return
    for line in summarize(issues):
        logger.warning(line)


@contextmanager
def report_together() -> Generator[None]:
    """Log the warnings of all checks within the block at its end: one for each kind, with the files of all."""
    found: list[DataIssue] = []
    token = _waiting.set(found)
    try:
        yield
    finally:
        _waiting.reset(token)
    report(found)


def summarize(issues: Iterable[DataIssue]) -> list[str]:
    """Return one line for each kind: the number of files, what is wrong and the first three names.

    Example:
        >>> kind = "images are grey. Take all in one way"
        >>> for line in summarize([DataIssue(Path(f"test/{name}"), WARNING, "is grey.", kind) for name in "abcd"]):
        ...     print(line)
        4 images are grey. Take all in one way: a, b, c, ..., in test
    """
    groups: defaultdict[tuple[str, str], dict[Path, DataIssue]] = defaultdict(dict)
    for issue in issues:
        groups[issue.severity, issue.kind or issue.message].setdefault(issue.path, issue)
    return [_line(list(group.values())) for group in groups.values()]


def _line(group: Sequence[DataIssue]) -> str:
    if len(group) == 1:
        return str(group[0])
    paths = [issue.path for issue in group]
    folder = _common_folder(paths)
    names = []
    for issue in group[:NUM_NAMES]:
        name = str(issue.path if folder is None else issue.path.relative_to(folder))
        names.append(f"{name} ({issue.detail})" if issue.detail else name)
    more = ", ..." if len(group) > NUM_NAMES else ""
    where = "" if folder is None else f", in {folder}"
    what = group[0].kind or f"times {group[0].message}".rstrip(".")
    return f"{len(group)} {what}: {', '.join(names)}{more}{where}"


def _common_folder(paths: Sequence[Path]) -> Path | None:
    try:
        folder = Path(os.path.commonpath([path.parent for path in paths]))
    except ValueError:  # relative and absolute ones, or several drives
        return None
    return None if folder == Path() else folder


def _shortened(lines: list[str]) -> list[str]:
    more = [f"... and {len(lines) - NUM_SHOWN} more."] if len(lines) > NUM_SHOWN else []
    return [*lines[:NUM_SHOWN], *more]


_waiting: ContextVar[list[DataIssue] | None] = ContextVar("waiting", default=None)
