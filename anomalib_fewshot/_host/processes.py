# Copyright (C) 2026 anomalib-fewshot contributors
# SPDX-License-Identifier: Apache-2.0

"""Processes of ``multiprocessing`` and ``concurrent.futures``."""

from concurrent.futures import ProcessPoolExecutor
from multiprocessing import current_process


def is_starting_process() -> bool:
    """Return whether this process is a child that is still importing the script of its parent.

    Undocumented: the flag of ``multiprocessing``, which uses it for an error. Without the flag the result is ``False``.
    """
    return getattr(current_process(), "_inheriting", False)


def kill_processes(pool: ProcessPoolExecutor) -> None:
    """Kill the processes of a pool. Undocumented: the attribute of the processes (Python 3.14 has a public method)."""
    for process in list((pool._processes or {}).values()):  # noqa: SLF001
        process.kill()
