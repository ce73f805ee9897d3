# Copyright (C) 2026 anomalib-fewshot contributors
# SPDX-License-Identifier: Apache-2.0

"""Processes of the standard library."""

from concurrent.futures import ProcessPoolExecutor
from multiprocessing import current_process


def is_starting_process() -> bool:
    """Return whether this process is being started, and is running the script of its parent.

    Undocumented: the flag of ``multiprocessing``, which raises an error of its own from it. Without the flag the answer
    is ``False``.
    """
    return getattr(current_process(), "_inheriting", False)


def kill_processes(pool: ProcessPoolExecutor) -> None:
    """Kill the processes of a pool at once. Undocumented: where the pool keeps them (public from Python 3.14 on)."""
    for process in list((pool._processes or {}).values()):  # noqa: SLF001
        process.kill()
