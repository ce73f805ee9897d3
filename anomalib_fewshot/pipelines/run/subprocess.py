# Copyright (C) 2026 anomalib-fewshot contributors
# SPDX-License-Identifier: Apache-2.0

"""A process that calls functions for this one, and that ends with it."""

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
    """A process that calls functions. It ends with this one, which alone gets Ctrl-C.

    Args:
        initializer (Callable | None): Function that is called when it starts. Defaults to ``None``.
        *arguments: Arguments of the initializer.
    """

    def __init__(self, initializer: Callable[..., None] | None = None, *arguments: Any) -> None:  # noqa: ANN401
        self._start = (initializer, arguments)
        self.restart()

    def restart(self) -> None:
        """Use a new process from now on."""
        self._pool = ProcessPoolExecutor(
            1,
            mp_context=get_context("spawn"),
            initializer=_start_process,
            initargs=self._start,
        )

    def submit(self, function: Callable[..., Result], *arguments: Any) -> "Future[Result]":  # noqa: ANN401
        """Call a function in the process, which starts with the first call."""
        with _blocked_interrupts():
            return self._pool.submit(function, *arguments)

    def close(self) -> None:
        """End the process."""
        kill_processes(self._pool)  # Lightning has a fit ignore SIGTERM
        self._pool.shutdown(wait=False, cancel_futures=True)


@contextmanager
def _blocked_interrupts() -> Generator[None, None, None]:
    """Hold Ctrl-C back in this thread. A process that is started meanwhile never gets it."""
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _start_process(initializer: Callable[..., None] | None, arguments: Sequence[Any]) -> None:
    Thread(target=_exit_with_parent, daemon=True).start()
    if initializer is not None:
        initializer(*arguments)


def _exit_with_parent() -> None:
    """End this process when its parent is killed: it would wait for work without end."""
    parent = parent_process()
    if parent is not None:
        connection.wait([parent.sentinel])
        os._exit(1)
