# Copyright (C) 2026 anomalib-fewshot contributors
# SPDX-License-Identifier: Apache-2.0

"""Ctrl-C and SIGTERM end anomalib's command line within five seconds, with one line and exit status 130 or 143.

While anomalib is imported, a signal ends the process at once. As soon as a command of this package runs, or a model or
data module of this package is made, a signal raises ``KeyboardInterrupt``, so that the run can complete its files and
end its workers. If that takes too long, a thread ends the process. Other programs, and commands of anomalib without
this package, keep their handlers. The start-up hook imports this file, so it needs the standard library alone.
"""

# ruff: noqa: ANN001, ANN202  annotations would need imports

import os
import signal
import sys
import time
from contextlib import contextmanager

GRACE = 4.0  # seconds from a signal to the end of the process, whatever it does
REPEAT = 1.0  # seconds after which a second signal ends it at once; some programs send each signal twice
_WORDS = {signal.SIGINT: "interrupted", signal.SIGTERM: "terminated"}

_received = 0  # signal that ends the command
_received_at = 0.0  # when it was handled
_raises = False  # whether a signal raises an exception, or ends the process at once
_continues = False
_hint = ""


def exit_on_signals() -> None:
    """End the process at once when a signal arrives. A process that ignores Ctrl-C continues to do so."""
    for signum in _WORDS:
        if signal.getsignal(signum) in {signal.SIG_DFL, signal.default_int_handler}:
            signal.signal(signum, _handle)


def raise_on_signals() -> None:
    """Raise ``KeyboardInterrupt`` when a signal arrives, if this is anomalib's command line."""
    global _raises  # noqa: PLW0603  the handlers of a process
    import atexit
    import threading
    from multiprocessing import parent_process

    from anomalib_fewshot._host.program import is_anomalib_command

    if _raises or not is_anomalib_command() or parent_process() is not None:
        return
    if threading.current_thread() is not threading.main_thread():  # other threads cannot set handlers
        return
    _raises = True
    exit_on_signals()
    atexit.register(_exit_if_received)  # Lightning ends an interrupted fit with exit status 1
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    threading.Thread(target=_enforce, args=(reader,), daemon=True).start()
    signal.set_wakeup_fd(writer, warn_on_full_buffer=False)  # reaches the thread while the main thread computes
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=_leave_to_parent)


def restore_handler() -> None:
    """Handle SIGTERM again after another package, such as Ray, has replaced the handler."""
    if _raises:
        signal.signal(signal.SIGTERM, _handle)


def set_hint(hint: str) -> None:
    """Set what the last line says after the reason of the end, for example how to resume."""
    global _hint  # noqa: PLW0603
    _hint = hint


def is_ending() -> bool:
    """Return whether a signal is ending the command."""
    return bool(_received) and not _continues


def last_line(name: str, signum: int = signal.SIGINT) -> str:
    """Return the line with which a command reports that a signal has ended it.

    Args:
        name (str): Name of the command.
        signum (int): The signal. Defaults to ``signal.SIGINT``.

    Example:
        >>> last_line("inspect")
        'anomalib inspect: interrupted.'
    """
    return f"{f'anomalib {name}'.rstrip()}: {_WORDS[signal.Signals(signum)]}. {_hint}".rstrip()


def continue_after_interrupt() -> None:
    """Let a command that runs until Ctrl-C end as usual."""
    global _continues  # noqa: PLW0603
    _continues = _received == signal.SIGINT


@contextmanager
def interruptible():
    """Let Ctrl-C be a ``KeyboardInterrupt``: Lightning makes it a ``SystemExit``, and ignores the next one."""
    handler = signal.getsignal(signal.SIGINT)
    try:
        yield
    except SystemExit as error:
        if isinstance(error.__context__, KeyboardInterrupt):
            signal.signal(signal.SIGINT, handler)
            raise KeyboardInterrupt from error
        raise


def _handle(signum, _frame):
    global _received, _received_at
    now = time.monotonic()
    if not _raises or (_received_at and now - _received_at > REPEAT):
        _exit(signum)
    if not _received_at:
        _received, _received_at = signum, now
        raise KeyboardInterrupt


def _enforce(reader):
    """End the process some seconds after a signal, even if the main thread has not handled it."""
    global _received  # noqa: PLW0603
    while True:
        (signum,) = os.read(reader, 1)
        if signum in _WORDS:
            _received = _received or signum  # another handler may have replaced this module's
            time.sleep(GRACE)
            if not _continues:
                _exit(signum)


def _exit_if_received():
    if is_ending():
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        _exit(_received)


def _exit(signum):
    """End the process and its workers, with a line on stderr."""
    processes = sys.modules.get("multiprocessing.process")
    if processes is not None:
        for child in processes.active_children():
            child.kill()
    if os.environ.get("LOCAL_RANK", "0") == "0":  # of the processes of one training, the first reports
        name = "".join(word for word in sys.argv[1:2] if not word.startswith("-"))
        show_cursor = "\x1b[?25h" if os.isatty(2) else ""  # a progress bar hides it
        os.write(2, f"{show_cursor}{last_line(name, signum)}\n".encode(errors="replace"))
    os._exit(128 + signum)


def _leave_to_parent():
    """Leave signals to the parent in a forked process, such as a worker of a data loader: the parent ends it."""
    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
