# Copyright (C) 2026 anomalib-fewshot contributors
# SPDX-License-Identifier: Apache-2.0

"""Signal handling: Ctrl-C and SIGTERM end an anomalib command within five seconds, without a traceback.

The exit status is 130 after Ctrl-C and 143 after SIGTERM. During the import of anomalib, a signal ends the process at
once. Afterwards it raises ``KeyboardInterrupt``, so that the run can complete its files and end its workers. If this
takes too long, a thread ends the process.

Other programs, and anomalib commands that do not use this package, keep their handlers. The start-up hook imports this
file, so it imports only the standard library.
"""

# ruff: noqa: ANN001, ANN202  annotations would require imports

import os
import signal
import sys
import time
from contextlib import contextmanager

GRACE = 4.0  # seconds from a signal until the process is ended
REPEAT = 1.0  # a second signal after these seconds ends the process at once; some programs send each signal twice
_MESSAGES = {signal.SIGINT: "interrupted", signal.SIGTERM: "terminated"}

_received = 0  # the signal that ends the command, 0 if there is none
_received_at = 0.0  # time of its handler
_raises = False  # False: a signal ends the process at once
_continues = False  # True: the command handles Ctrl-C itself
_hint = ""


def exit_on_signals() -> None:
    """End the process at once when a signal arrives. A process that ignores Ctrl-C continues to ignore it."""
    for signum in _MESSAGES:
        if signal.getsignal(signum) in {signal.SIG_DFL, signal.default_int_handler}:
            signal.signal(signum, _handle)


def raise_on_signals() -> None:
    """Raise ``KeyboardInterrupt`` when a signal arrives, if this is anomalib's command line."""
    global _raises  # noqa: PLW0603  signal handlers are global
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
    signal.set_wakeup_fd(writer, warn_on_full_buffer=False)  # also works while the main thread is in native code
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=_leave_to_parent)


def restore_handler() -> None:
    """Handle SIGTERM again after another package, such as Ray, has replaced the handler."""
    if _raises:
        signal.signal(signal.SIGTERM, _handle)


def set_hint(hint: str) -> None:
    """Set the text at the end of the last line, for example how to resume."""
    global _hint  # noqa: PLW0603
    _hint = hint


def is_ending() -> bool:
    """Return whether a signal is ending the command."""
    return bool(_received) and not _continues


def last_line(name: str, signum: int = signal.SIGINT) -> str:
    """Return the message of a command that a signal has ended.

    Args:
        name (str): Name of the command.
        signum (int): The signal. Defaults to ``signal.SIGINT``.
    """
    return f"{f'anomalib {name}'.rstrip()}: {_MESSAGES[signal.Signals(signum)]}. {_hint}".rstrip()


def continue_after_interrupt() -> None:
    """Treat Ctrl-C as the regular end of a command that runs until Ctrl-C."""
    global _continues  # noqa: PLW0603
    _continues = _received == signal.SIGINT


@contextmanager
def interruptible():
    """Raise ``KeyboardInterrupt`` for Ctrl-C within the block.

    Lightning raises ``SystemExit`` instead, and ignores the next Ctrl-C.
    """
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
    """End the process ``GRACE`` seconds after a signal, even if the main thread has not handled it."""
    global _received  # noqa: PLW0603
    while True:
        (signum,) = os.read(reader, 1)
        if signum in _MESSAGES:
            _received = _received or signum  # if another handler has replaced the handler of this module
            time.sleep(GRACE)
            if not _continues:
                _exit(signum)


def _exit_if_received():
    if is_ending():
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        _exit(_received)


def _exit(signum):
    """Print the last line on stderr, and end the process and its workers."""
    processes = sys.modules.get("multiprocessing.process")
    if processes is not None:
        for child in processes.active_children():
            child.kill()
    if os.environ.get("LOCAL_RANK", "0") == "0":  # only the main process of a distributed training prints
        name = "".join(word for word in sys.argv[1:2] if not word.startswith("-"))
        show_cursor = "\x1b[?25h" if os.isatty(2) else ""  # a progress bar hides it
        os.write(2, f"{show_cursor}{last_line(name, signum)}\n".encode(errors="replace"))
    os._exit(128 + signum)


def _leave_to_parent():
    """Ignore Ctrl-C in a forked process, such as a data loader worker, because the parent ends it."""
    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
