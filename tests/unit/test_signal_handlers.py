# Copyright (C) 2026 anomalib-fewshot contributors
# SPDX-License-Identifier: Apache-2.0

"""Which commands the handlers of signals are for. What they do is in `tests/integration/test_signals.py`."""

import os
import signal
import sys
from pathlib import Path

import pytest

from anomalib_fewshot import _autoload
from anomalib_fewshot._cli import signals

ENTRY_POINTS = Path(__file__).parents[2] / "pyproject.toml"


def entry_points(group: str) -> set[str]:
    section = ENTRY_POINTS.read_text(encoding="utf-8").split(f'[project.entry-points."{group}"]\n')[1].split("\n\n")[0]
    return {line.split(" = ")[0] for line in section.splitlines()}


def test_hook_has_the_names_of_the_package() -> None:
    assert set(_autoload._COMMANDS) == entry_points("anomalib.pipelines")  # noqa: SLF001
    assert set(_autoload._CLASSES) == entry_points("anomalib.models") | entry_points("anomalib.data")  # noqa: SLF001


@pytest.mark.parametrize(
    ("arguments", "names"),
    [
        ("inspect --good good", True),
        ("fit --model CoftAD --data MVTecAD", True),
        ("fit --model=Padim --data=FewShot", True),
        ("fit --model anomalib_fewshot.models.CoftAD", True),
        ("fit --config ours.yaml", True),
        ("fit --config=ours.yaml", True),
        ("predict --model flow.json", True),
        ("fit --model Padim --data MVTecAD", False),
        ("fit --config others.yaml", False),
        ("fit --config missing.yaml", False),
        ("fit --config binary.yaml", False),
        ("benchmark --config others.yaml", False),
        ("fit --model Padim --data.root inspect/CoftAD-parts", False),
        ("", False),
    ],
)
def test_commands_that_use_the_package(
    arguments: str,
    *,
    names: bool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("ours.yaml").write_text("model:\n  class_path: CoftAD\n", encoding="utf-8")
    Path("flow.json").write_text('{"class_path": "RegAD"}', encoding="utf-8")
    Path("others.yaml").write_text("model:\n  class_path: Padim\n", encoding="utf-8")
    Path("binary.yaml").write_bytes(b"\xff\xfe")
    assert _autoload._names_package(arguments.split()) is names  # noqa: SLF001


@pytest.mark.parametrize(
    ("arguments", "policy"),
    [(["inspect"], "PASSIVE"), (["fit", "--model", "CoftAD"], None), (["train"], None), ([], None)],
)
def test_threads_of_inspect_wait_without_a_loop(
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
    monkeypatch.setattr(sys, "argv", [program, "inspect"])
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
    monkeypatch.setattr(sys, "argv", [program, "inspect"])
    monkeypatch.setattr(signal, "signal", handlers.setdefault)
    _autoload._prepare_command_line()  # noqa: SLF001
    assert signal.SIGINT in handlers
