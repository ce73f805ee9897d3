# Copyright (C) 2026 anomalib-fewshot contributors
# SPDX-License-Identifier: Apache-2.0

"""What is wrong with a file: a line each, all at once."""

import logging
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from pathlib import Path

logger = logging.getLogger(__name__)

NUM_SHOWN = 20  # findings in a message
ERROR, WARNING = "error", "warning"


@dataclass(frozen=True)
class Finding:
    """A fault of a file, or of the files of a folder.

    Args:
        path (Path): The file or folder.
        severity (str): ``"error"``: it cannot be used. ``"warning"``: it can, and is perhaps not as it is meant.
        message (str): What is wrong and what to do.
    """

    path: Path
    severity: str
    message: str

    def __str__(self) -> str:
        """Return one line."""
        return f"{self.path}: {self.message}"


def report(findings: Iterable[Finding], known: Collection[Finding] = ()) -> None:
    """Log the warnings and refuse the errors.

    Args:
        findings (Iterable[Finding]): Findings of one check.
        known (Collection[Finding]): Those that were logged before. Defaults to none.

    Raises:
        ValueError: If there is an error. It names them all.
    """
    findings = [finding for finding in dict.fromkeys(findings) if finding not in known]
    errors = [str(finding) for finding in findings if finding.severity == ERROR]
    if errors:
        msg = f"Pictures must be such that anomalib reads them as they are meant, got {len(errors)} that are not:"
        raise ValueError("\n  ".join([msg, *_shortened(errors)]))
    for line in _shortened([str(finding) for finding in findings]):
        logger.warning(line)


def _shortened(lines: list[str]) -> list[str]:
    more = [f"... and {len(lines) - NUM_SHOWN} more."] if len(lines) > NUM_SHOWN else []
    return [*lines[:NUM_SHOWN], *more]
