# Copyright (C) 2026 anomalib-fewshot contributors
# SPDX-License-Identifier: Apache-2.0

"""Check of the arguments of `anomalib inspect` before the imports of torch and anomalib, which take seconds.

The start-up hook imports this file, so it imports only the standard library.
"""

# ruff: noqa: ANN001, ANN202  annotations would require imports

import os

PATH_OPTIONS = {"--good", "--new", "--model", "--resume", "--marked_good", "--bad", "--ignore", "--unlabeled"}
PATH_OPTIONS |= {"--labels"}
SOURCES_MESSAGE = "`new` and one of `good` and `model` must be given. For example: --good good/ --new new/."


def missing_message(path):
    """Return the message for a folder or file that does not exist."""
    return f"Folders and files must exist, got {path}. Check the path."


def find_error(arguments):
    """Return an error message, or ``None`` if the arguments look right. A later check is complete.

    Args:
        arguments (list[str]): Arguments after `anomalib inspect`.

    Example:
        >>> find_error(["--good", "no/such/folder", "--new", "."])
        'Folders and files must exist, got no/such/folder. Check the path.'
        >>> find_error(["--new", "."])
        '`new` and one of `good` and `model` must be given. For example: --good good/ --new new/.'
    """
    values = _values_by_option(arguments)
    if not values.keys().isdisjoint({"-h", "--help", "-c", "--config", "--print_config"}):
        return None
    for option in PATH_OPTIONS & values.keys():
        for value in values[option]:
            if not value.startswith("[") and not os.path.exists(value):  # noqa: PTH110  pathlib is slow
                return missing_message(value)
    is_complete = "--new" in values and ("--good" in values) != ("--model" in values)
    return None if is_complete or "--resume" in values else SOURCES_MESSAGE


def _values_by_option(arguments):
    values, option = {}, ""
    for argument in arguments:
        if argument.startswith("-"):
            option, _, value = argument.partition("=")
            values.setdefault(option, [])
            if value:
                values[option].append(value)
        else:
            values.setdefault(option, []).append(argument)
    return values


def exit_on_error(arguments):
    """End the process with a message and exit status 1 if an argument is wrong."""
    message = find_error(arguments)
    if message is not None:
        os.write(2, f"anomalib inspect: {message}\n".encode(errors="replace"))
        os._exit(1)  # an exception here, while Python starts, would print a traceback
