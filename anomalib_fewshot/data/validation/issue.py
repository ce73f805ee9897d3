# Copyright (C) 2026 anomalib-fewshot contributors
# SPDX-License-Identifier: Apache-2.0

"""Issues of image files and folders: one line for each error, one warning for each kind of issue."""

import logging
import os
from collections import defaultdict
from collections.abc import Collection, Generator, Iterable, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from pathlib import Path

from anomalib_fewshot.errors import DataValidationError

logger = logging.getLogger(__name__)

NUM_SHOWN = 20  # highest number of errors in a message
NUM_NAMES = 3  # highest number of file names in a warning
ERROR, WARNING = "error", "warning"


@dataclass(frozen=True)
class Comparison:
    """A comparison of images with the median of a support set.

    Args:
        folder (Path): Folder of the support set.
        num_images (int): Number of compared images.
        median (str): The compared quantity of the support set, for example ``"median 1.50, as 96 x 64 pixels"``.
    """

    folder: Path
    num_images: int
    median: str


@dataclass(frozen=True)
class DataIssue:
    """An issue of a file or folder.

    Args:
        path (Path): The file or folder.
        severity (str): ``"error"``: the file cannot be used. ``"warning"``: it can be used, but may be wrong.
        message (str): The issue and what to do about it.
        kind (str): Message for several files, without numbers, for example ``"images are gray. Convert them"``.
            Issues of one kind are logged as one warning. Defaults to ``""``: issues with equal messages are one kind.
        detail (str): Numbers of this file, such as its size. Defaults to ``""``.
        comparison (Comparison | None): What the image was compared with. Not part of the identity of an issue.
            Defaults to ``None``.
    """

    path: Path
    severity: str
    message: str
    kind: str = ""
    detail: str = ""
    comparison: Comparison | None = field(default=None, compare=False)

    def __str__(self) -> str:
        """Return the path and the message as one line."""
        return f"{self.path}: {self.message}"


def report(issues: Iterable[DataIssue], known: Collection[DataIssue] = ()) -> None:
    """Log one warning for each kind of issue, and raise an exception if there is an error.

    Args:
        issues (Iterable[DataIssue]): Issues of one check.
        known (Collection[DataIssue]): Issues that were already reported. Defaults to none.

    Raises:
        DataValidationError: If there is an error. The message lists the errors.
    """
    issues = [issue for issue in dict.fromkeys(issues) if issue not in known]
    errors = [str(issue) for issue in issues if issue.severity == ERROR]
    if errors:
        noun = "file or folder" if len(errors) == 1 else "files or folders"
        msg = f"{len(errors)} {noun} cannot be read correctly by anomalib:"
        raise DataValidationError("\n  ".join([msg, *_shortened(errors)]))
    collected = _collected.get()
    if collected is not None:
        collected += issues
        return
    for line in summarize(issues):
        logger.warning(line)


@contextmanager
def report_together() -> Generator[None]:
    """Log the warnings of all checks at the end of the block, one for each kind of issue."""
    collected: list[DataIssue] = []
    token = _collected.set(collected)
    try:
        yield
    finally:
        _collected.reset(token)
    report(collected)


def summarize(issues: Iterable[DataIssue]) -> list[str]:
    """Return one line for each kind of issue: the number of files, the issue and the first three names.

    Example:
        >>> kind = "images are gray. Convert them"
        >>> for line in summarize([DataIssue(Path(f"test/{name}"), WARNING, "is gray.", kind) for name in "abcd"]):
        ...     print(line)
        4 images are gray. Convert them: a, b, c, ..., in test
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
    comparisons = {issue.comparison for issue in group}
    common = comparisons.pop() if len(comparisons) == 1 else None
    names = []
    for issue in group[:NUM_NAMES]:
        name = str(issue.path if folder is None else issue.path.relative_to(folder))
        numbers = [issue.detail] if issue.detail else []
        if issue.comparison is not None and common is None:
            numbers.append(f"support set: {issue.comparison.median}")
        names.append(f"{name} ({'; '.join(numbers)})" if numbers else name)
    more = ", ..." if len(group) > NUM_NAMES else ""
    where = "" if folder is None else f", in {folder}"
    what = group[0].kind or f"times {group[0].message}".rstrip(".")
    if common is None:
        return f"{len(group)} {what}: {', '.join(names)}{more}{where}"
    rule, advice = what.split(". ", maxsplit=1)
    count = f"{len(group)} of {common.num_images}"
    return f"{count} {rule} ({common.median}). {advice}: {', '.join(names)}{more}{where}"


def _common_folder(paths: Sequence[Path]) -> Path | None:
    try:
        folder = Path(os.path.commonpath([path.parent for path in paths]))
    except ValueError:  # relative and absolute paths, or several drives
        return None
    return None if folder == Path() else folder


def _shortened(lines: list[str]) -> list[str]:
    more = [f"... and {len(lines) - NUM_SHOWN} more."] if len(lines) > NUM_SHOWN else []
    return [*lines[:NUM_SHOWN], *more]


_collected: ContextVar[list[DataIssue] | None] = ContextVar("collected", default=None)
