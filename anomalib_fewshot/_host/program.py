# Copyright (C) 2026 anomalib-fewshot contributors
# SPDX-License-Identifier: Apache-2.0

"""Detection of anomalib's command line."""

import sys
from pathlib import PurePath


def is_anomalib_command() -> bool:
    """Return whether the running program is anomalib's command line.

    anomalib documents its console script ``anomalib``. Undocumented: ``python -m anomalib.cli.cli`` does the same.
    While Python imports the parent packages of a ``-m`` module, ``sys.argv[0]`` is ``-m``.
    """
    program = sys.argv[0] if sys.argv else ""
    if program == "-m":
        module = sys.orig_argv[sys.orig_argv.index("-m") + 1]
        return module.partition(".")[0] == "anomalib"
    path = PurePath(program)
    return path.stem == "anomalib" or path.parts[-3:] == ("anomalib", "cli", "cli.py")
