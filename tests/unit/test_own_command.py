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
    names_in_command.cache_clear()
    levels = [logging.getLogger(name).level for name in LOGGERS]
    yield
    names_in_command.cache_clear()
    for name, level in zip(LOGGERS, levels, strict=True):
        logging.getLogger(name).setLevel(level)


@pytest.mark.parametrize(
    ("arguments", "names"),
    [
        (["anomalib", "train", "--model", "CoftAD", "--data=FewShot"], {"CoftAD", "FewShot"}),
        (["anomalib", "fit", "--model", "anomalib_fewshot.CoftAD"], {"anomalib_fewshot.CoftAD"}),
        (["anomalib", "inspect", "--good", "folder"], {"inspect"}),
        (["anomalib", "train", "--model", "Patchcore", "--data", "MVTecAD", "--data.root", "data/CoftAD"], set()),
        (["other.py", "inspect", "--model", "CoftAD"], set()),
    ],
)
def test_names_in_arguments(arguments: list[str], names: set[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", arguments)
    assert names_in_command() == names


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("model:\n  class_path: CoftAD  # a comment\ndata:\n  class_path: 'FewShot'\n", {"CoftAD", "FewShot"}),
        ('{"model": {"class_path": "CoftAD"}}', {"CoftAD"}),
        ("model: {class_path: CoftAD, init_args: {}}", {"CoftAD"}),
        ("model: Patchcore\ndata:\n  class_path: MVTecAD\n  init_args: {root: data/CoftAD}\n# FewShot", set()),
    ],
)
def test_names_in_configuration_file(
    text: str,
    names: set[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    file = tmp_path / "run.yaml"
    file.write_text(text, encoding="utf-8")
    monkeypatch.setattr(sys, "argv", ["anomalib", "train", "--config", str(file)])
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
