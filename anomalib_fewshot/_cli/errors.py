# Copyright (C) 2026 anomalib-fewshot contributors
# SPDX-License-Identifier: Apache-2.0

"""Errors of this package end the command line of anomalib with one line and exit code 1, without a traceback.

Other programs get the exceptions as they are, and other exceptions are printed as before.
"""

import sys
from collections.abc import Iterator
from traceback import walk_tb
from types import TracebackType
from typing import Any

from anomalib_fewshot._cli.signals import is_ending
from anomalib_fewshot._host import explain_checkpoint_error, is_anomalib_command
from anomalib_fewshot.errors import FewShotError

_UNION = (
    "raise_union_unexpected_value"  # jsonargparse: its frame is the only place that holds the errors of a constructor
)
_PACKAGE = "anomalib_fewshot."  # in the class paths of a command that uses this package


def install_hook() -> None:
    """Print errors of this package as one line if the running program is anomalib's command line."""
    if not is_anomalib_command():
        return
    previous = sys.excepthook

    def print_error(kind: type[BaseException], error: BaseException, traceback: TracebackType | None) -> None:
        if is_ending():  # by a signal, of which one line tells at the end
            return
        message = explain(error)
        if message is None:
            previous(kind, error, traceback)
        else:
            sys.stdout.flush()
            print(f"Error: {message}", file=sys.stderr)

    sys.excepthook = print_error


def explain(error: BaseException) -> str | None:
    """Return the message to print instead of a traceback. ``None`` for errors that are not of this package.

    Args:
        error (BaseException): Error that ends the command. jsonargparse raises one of its own for an error of a
            constructor.
    """
    if isinstance(error, FewShotError):
        return str(error)
    hidden = list(_hidden_errors(error))
    for each in hidden:
        if isinstance(each, FewShotError):
            return str(each)
    checkpoints = explain_checkpoint_error(error)
    if checkpoints is not None and _uses_package(error):
        return checkpoints
    missing = [each for each in hidden if isinstance(each, ImportError)]
    if missing and _uses_package(error):
        return f"An optional package is not installed. {missing[0]}"
    return None


def _hidden_errors(error: BaseException) -> Iterator[BaseException]:
    """Yield the errors that jsonargparse caught while it tried the types of an argument, causes first."""
    for frame, _ in walk_tb(error.__traceback__):
        if frame.f_code.co_name == _UNION:
            for each in frame.f_locals.get("exceptions", []):
                yield from _hidden_errors(each)
                yield each
    if error.__cause__ is not None:
        yield from _hidden_errors(error.__cause__)
        yield error.__cause__


def _uses_package(error: BaseException) -> bool:
    for frame, _ in walk_tb(error.__traceback__):
        command: Any = frame.f_locals.get("self")
        if type(command).__name__ == "AnomalibCLI":
            return _PACKAGE in str(getattr(command, "config", ""))
    return False
