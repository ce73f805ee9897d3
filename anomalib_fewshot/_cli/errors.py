# Copyright (C) 2026 anomalib-fewshot contributors
# SPDX-License-Identifier: Apache-2.0

"""One-line error messages in anomalib's command line, for errors of this package.

The command ends with exit code 1 and without a traceback. Other programs and other exceptions are not affected.
"""

import sys
from collections.abc import Iterator
from traceback import walk_tb
from types import TracebackType
from typing import Any

from anomalib_fewshot._cli.signals import is_ending
from anomalib_fewshot._host import explain_checkpoint_error, is_anomalib_command
from anomalib_fewshot.errors import FewShotError

# Function of jsonargparse. Only its stack frame has the original errors of a constructor.
_UNION = "raise_union_unexpected_value"
_PACKAGE = "anomalib_fewshot."  # prefix of the class paths in the configuration of a command


def install_hook() -> None:
    """Print errors of this package as one line, if the running program is anomalib's command line."""
    if not is_anomalib_command():
        return
    previous = sys.excepthook

    def print_error(kind: type[BaseException], error: BaseException, traceback: TracebackType | None) -> None:
        if is_ending():  # the signal handler prints a message at the end
            return
        message = explain(error)
        if message is None:
            previous(kind, error, traceback)
        else:
            sys.stdout.flush()
            print(f"Error: {message}", file=sys.stderr)

    sys.excepthook = print_error


def explain(error: BaseException) -> str | None:
    """Return the message to print instead of a traceback. ``None`` for other errors.

    Args:
        error (BaseException): Error that ends the command. For an error in a constructor, this is an error of
            jsonargparse.
    """
    if isinstance(error, FewShotError):
        return str(error)
    hidden = list(_hidden_errors(error))
    for each in hidden:
        if isinstance(each, FewShotError):
            return str(each)
    checkpoint_message = explain_checkpoint_error(error)
    if checkpoint_message is not None and _uses_package(error):
        return checkpoint_message
    missing = [each for each in hidden if isinstance(each, ImportError)]
    if missing and _uses_package(error):
        return f"An optional package is not installed. {missing[0]}"
    return None


def _hidden_errors(error: BaseException) -> Iterator[BaseException]:
    """Yield the errors that jsonargparse caught while it tried the types of an argument, and their causes first."""
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
