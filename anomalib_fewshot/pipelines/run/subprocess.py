# Copyright (C) 2026 anomalib-fewshot contributors
# SPDX-License-Identifier: Apache-2.0

"""A child process that executes functions and stops with its parent."""

import os
import signal
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing import connection, get_context, parent_process
from threading import Thread
from typing import Any, TypeVar

from anomalib_fewshot._host import kill_processes

Result = TypeVar("Result")


class Subprocess:
    """A child process that executes functions. It stops with this process and ignores Ctrl-C.

    Args:
        initializer (Callable | None): Function to call when the process starts. Defaults to ``None``.
        *arguments: Arguments of ``initializer``.
    """

    def __init__(self, initializer: Callable[..., None] | None = None, *arguments: Any) -> None:  # noqa: ANN401
        self._start = (initializer, arguments)
        self.restart()

    def restart(self) -> None:
        """Replace the process with a new one."""
        self._pool = ProcessPoolExecutor(
            1,
            mp_context=get_context("spawn"),
            initializer=_start_process,
            initargs=self._start,
        )

    def submit(self, function: Callable[..., Result], *arguments: Any) -> "Future[Result]":  # noqa: ANN401
        """Call a function in the process. The first call starts the process."""
        with _blocked_interrupts():
            return self._pool.submit(function, *arguments)

    def close(self) -> None:
        """Stop the process."""
        kill_processes(self._pool)  # SIGTERM has no effect, because Lightning ignores it during a fit
        self._pool.shutdown(wait=False, cancel_futures=True)


@contextmanager
def _blocked_interrupts() -> Generator[None, None, None]:
    """Block SIGINT in this thread. A child process that starts in this context inherits the block."""
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _start_process(initializer: Callable[..., None] | None, arguments: Sequence[Any]) -> None:
    """Watch the parent process, then call the initializer."""
    Thread(target=_exit_with_parent, daemon=True).start()
    if initializer is not None:
        initializer(*arguments)


def _exit_with_parent() -> None:
    """Exit when the parent is killed. Otherwise this process would wait for work forever."""
    parent = parent_process()
    if parent is not None:
        connection.wait([parent.sentinel])
        os._exit(1)
