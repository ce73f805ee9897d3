# Copyright (C) 2026 anomalib-fewshot contributors
# SPDX-License-Identifier: Apache-2.0

"""Errors of this package end anomalib's command line with one line."""

import sys
from pathlib import Path

import pytest
from anomalib.cli.cli import AnomalibCLI
from fresh_python import FreshPython

from anomalib_fewshot._cli.errors import explain, install_hook
from anomalib_fewshot.errors import ArgumentError, FewShotError, MissingDependencyError, NotFittedError

MODEL = ["--model", "ImageStatistic", "--model.image_size", "32", "--trainer.accelerator", "cpu"]


def command(root: Path, category: str = "bolt") -> list[str]:
    source = ["--data.source", "MVTecFolder", "--data.source.root", str(root), "--data.source.category", category]
    return ["train", *MODEL, "--data", "FewShot", *source, "--data.source.num_workers", "0"]


def message_of(arguments: list[str]) -> str | None:
    with pytest.raises(Exception) as error:  # noqa: PT011  which one is up to anomalib and jsonargparse
        AnomalibCLI(arguments)
    return explain(error.value)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--data.seed", "null"], ["`seed`", "None"]),
        (["--data.k_shot", "0"], ["`k_shot`", "got 0"]),
        (["--data.k_shot", "99"], ["`k_shot`", "got 99"]),
        (["--data.validation", "typo"], ["`validation`", "typo"]),
        (["--data.support", "missing.json"], ["`support`", "missing.json"]),
        (["--data.source.category", "typo"], ["`category`", "typo"]),
        (["--data.source.root", "missing"], ["`root`", "missing"]),
    ],
)
def test_wrong_argument_has_a_message_and_writes_nothing(
    arguments: list[str],
    words: list[str],
    mvtec_root: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    message = message_of([*command(mvtec_root), *arguments])
    assert message is not None
    assert "\n" not in message
    assert all(word in message for word in words)
    assert not list(tmp_path.rglob("support.json"))
    assert not list(tmp_path.rglob("*.ckpt"))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--data.target", "typo"], ["`target`", "typo"]),
        (["--data.seed", "null"], ["`seed`"]),
        (["--data.k_shot", "0"], ["`k_shot`"]),
        (["--data.categories", "[bolt]"], ["`categories`", "bolt"]),
    ],
)
def test_wrong_argument_of_several_categories(
    arguments: list[str],
    words: list[str],
    mvtec_root: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    source = ["--data.source", "MVTecFolder", "--data.source.root", str(mvtec_root)]
    message = message_of(["train", *MODEL, "--data", "MultiCategory", *source, *arguments])
    assert message is not None
    assert all(word in message for word in words)


def test_missing_package_of_a_logger(mvtec_root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def raise_error(*_: object, **__: object) -> None:
        msg = "Requirement 'mlflow' not met. HINT: Try running `pip install -U 'mlflow'`"
        raise ModuleNotFoundError(msg)

    monkeypatch.setattr("lightning.pytorch.loggers.MLFlowLogger.__init__", raise_error)
    message = message_of([*command(mvtec_root), "--trainer.logger", "MLFlowLogger"])
    assert message is not None
    assert "pip install -U 'mlflow'" in message
    others = ["train", "--model", "Padim", "--data", "MVTecAD", "--trainer.logger", "MLFlowLogger"]
    assert message_of(others) is None  # a run without this package ends as without it


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (["--trainer.enable_checkpointing", "false"], "enable_checkpointing"),
        (["--trainer.callbacks", "lightning.pytorch.callbacks.ModelCheckpoint"], "callbacks"),
    ],
)
def test_checkpoint_callbacks_that_anomalib_rejects(
    arguments: list[str],
    word: str,
    mvtec_root: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    message = message_of([*command(mvtec_root), *arguments])
    assert message is not None
    assert f"`{word}`" in message
    assert "\n" not in message


def test_missing_checkpoint(mvtec_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    missing = tmp_path / "v0/weights/lightning/model.ckpt"
    message = message_of(["test", *command(mvtec_root)[1:], "--ckpt_path", str(missing)])
    assert message == f"`ckpt_path` must exist, got {missing}. The run may have failed. Train a model first."


def test_training_without_a_checkpoint(mvtec_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The arguments that the message advises."""
    monkeypatch.chdir(tmp_path)
    advised = ["--trainer.callbacks", "anomalib.callbacks.ModelCheckpoint", "--trainer.callbacks.save_top_k", "0"]
    AnomalibCLI([*command(mvtec_root), *advised])
    assert not list(tmp_path.rglob("*.ckpt"))
    assert len(list(tmp_path.rglob("support.json"))) == 1


def test_other_errors_are_not_explained() -> None:
    for error in (ValueError("x"), RuntimeError("x"), KeyboardInterrupt(), ModuleNotFoundError("x")):
        assert explain(error) is None
    for kind in (FewShotError, ArgumentError, NotFittedError, MissingDependencyError):
        assert explain(kind("x")) == "x"


@pytest.mark.parametrize(
    ("program", "is_cli"),
    [("/bin/anomalib", True), ("anomalib.exe", True), ("train.py", False), ("-c", False), ("", False)],
)
def test_hook_only_acts_in_the_command_line(
    program: str,
    *,
    is_cli: bool,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:
    passed = []
    monkeypatch.setattr(sys, "argv", [program])
    monkeypatch.setattr(sys, "excepthook", lambda *error: passed.append(error[0]))
    install_hook()
    for error in (ArgumentError("`seed` must be an integer."), ValueError("x")):
        sys.excepthook(type(error), error, None)
    assert passed == ([ValueError] if is_cli else [ArgumentError, ValueError])
    assert capsys.readouterr().err == ("Error: `seed` must be an integer.\n" if is_cli else "")


def test_command_ends_with_one_line_and_status_1(fresh_python: FreshPython, mvtec_root: Path, tmp_path: Path) -> None:
    lines = ["from anomalib_fewshot._autoload import install", "install()", "from anomalib.cli.cli import main"]
    code = "\n".join([*lines, "main()"])  # as the entry point of a console script is
    result = fresh_python(code, *command(mvtec_root), "--data.seed", "null", program="anomalib", cwd=tmp_path)
    assert result.returncode == 1
    assert result.stderr.splitlines()[-1].startswith("Error: `seed` must be an integer")
    assert "Traceback" not in result.stderr + result.stdout
