# Copyright (C) 2026 anomalib-fewshot contributors
# SPDX-License-Identifier: Apache-2.0

"""Which commands of anomalib use this package, and what they do not print while they start."""

import logging
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest

from anomalib_fewshot._cli.own_command import names_in_command, suppress_import_messages

LOGGERS = ("anomalib.cli", "anomalib.cli.pipelines")


@pytest.fixture(autouse=True)
def _restored() -> Iterator[None]:
    levels = [logging.getLogger(name).level for name in LOGGERS]
    yield
    for name, level in zip(LOGGERS, levels, strict=True):
        logging.getLogger(name).setLevel(level)


@pytest.mark.parametrize(
    ("command", "names"),
    [
        ("anomalib train --model CoftAD --data=FewShot", {"CoftAD", "FewShot"}),
        ("anomalib fit --model anomalib_fewshot.CoftAD", {"anomalib_fewshot.CoftAD"}),
        ("/bin/anomalib inspect --good folder", {"inspect"}),
        ("anomalib train --model Patchcore --data MVTecAD --data.root data/CoftAD", set()),
        ("anomalib train --model Patchcore --data.root inspect", set()),
        ("anomalib", set()),
        ("other.py inspect --model CoftAD", set()),
    ],
)
def test_names_in_arguments(command: str, names: set[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", command.split())
    assert names_in_command() == names


@pytest.mark.parametrize("argument", ["--config run.yaml", "--config=run.yaml"])
@pytest.mark.parametrize(
    ("text", "names"),
    [
        (b"model:\n  class_path: CoftAD  # a comment\ndata:\n  class_path: 'FewShot'\n", {"CoftAD", "FewShot"}),
        (b'{"model": {"class_path": "CoftAD"}}', {"CoftAD"}),
        (b"model: {class_path: CoftAD, init_args: {}}", {"CoftAD"}),
        (b"model: Patchcore\ndata:\n  class_path: MVTecAD\n  init_args: {root: data/CoftAD}\n# FewShot", set()),
        (b"\xff\xfe", set()),
        (None, set()),
    ],
)
def test_names_in_configuration_file(
    argument: str,
    text: bytes | None,
    names: set[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    if text is not None:
        Path("run.yaml").write_bytes(text)
    monkeypatch.setattr(sys, "argv", ["anomalib", "train", *argument.split()])
    assert names_in_command() == names


@pytest.mark.parametrize(("name", "seen"), [("CoftAD", ["user"]), ("inspect", [])])
def test_deprecations_of_anomalib_s_imports_are_suppressed(name: str, seen: list[str]) -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        suppress_import_messages(frozenset({name}))
        for module in ("anomalib.models", "timm.models.layers", "user"):
            warnings.warn_explicit(module, FutureWarning, "file.py", 1, module=module)
    assert [str(each.message) for each in caught] == seen
    assert not logging.getLogger("anomalib.cli.utils.openvino").isEnabledFor(logging.INFO)
    assert logging.getLogger("anomalib.cli.pipelines").isEnabledFor(logging.WARNING) is (name != "inspect")
