# Copyright (C) 2026 anomalib-fewshot contributors
# SPDX-License-Identifier: Apache-2.0

"""Which commands the handlers of signals are for. What they do is in `tests/integration/test_signals.py`."""

import os
import signal
import sys

import pytest

from anomalib_fewshot import _autoload
from anomalib_fewshot._cli import signals


@pytest.mark.parametrize(
    ("arguments", "policy"),
    [(["fewshot"], "PASSIVE"), (["fit", "--model", "CoftAD"], "PASSIVE"), (["train"], None), ([], None)],
)
def test_threads_wait_without_a_loop(
    arguments: list[str],
    policy: str | None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(signals, "exit_on_signals", lambda: None)
    monkeypatch.setattr(os, "environ", {})
    monkeypatch.setattr(sys, "argv", ["anomalib", *arguments])
    _autoload._prepare_command_line()  # noqa: SLF001
    assert os.environ.get("OMP_WAIT_POLICY") == policy
    monkeypatch.setattr(os, "environ", {"OMP_WAIT_POLICY": "ACTIVE"})
    _autoload._prepare_command_line()  # noqa: SLF001
    assert os.environ == {"OMP_WAIT_POLICY": "ACTIVE"}


@pytest.mark.parametrize("program", ["train.py", "-c", ""])
def test_other_programs_keep_their_handlers(program: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", [program, "fewshot"])
    before = signal.getsignal(signal.SIGINT)
    signals.raise_on_signals()
    _autoload._prepare_command_line()  # noqa: SLF001
    assert signal.getsignal(signal.SIGINT) is before


@pytest.mark.parametrize("program", ["/bin/anomalib", "anomalib.exe"])
def test_command_line_replaces_the_handler_before_anomalib_is_imported(
    program: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    handlers = {}
    monkeypatch.setattr(sys, "argv", [program, "fewshot"])
    monkeypatch.setattr(signal, "getsignal", lambda _: signal.SIG_DFL)  # a job in the background ignores SIGINT
    monkeypatch.setattr(signal, "signal", handlers.setdefault)
    _autoload._prepare_command_line()  # noqa: SLF001
    assert signal.SIGINT in handlers
