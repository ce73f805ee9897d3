# Copyright (C) 2026 anomalib-fewshot contributors
# SPDX-License-Identifier: Apache-2.0

"""Fixtures: a finished run on synthetic images."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import pytest
from weave import draw, small_model

from anomalib_fewshot import CoftAD, inspect
from anomalib_fewshot.inspection import training


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> Callable[[], CoftAD]:
    """Train small models."""
    monkeypatch.setattr(training, "new_model", small_model)
    return small_model


@pytest.fixture(scope="session")
def part(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with four good and four new images, one with a hole and special characters in its name."""
    root = tmp_path_factory.mktemp("part")
    for seed in range(4):
        draw(root / "good" / f"{seed}.png", seed)
    for seed, name in enumerate(("a/0.png", "b/0.png", "b/0.jpg"), start=10):
        draw(root / "new" / name, seed)
    draw(root / "new" / "hole ä#1 'x'.png", 20, hole=True)
    return root


@pytest.fixture(scope="session")
def trained(part: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a finished run. Its path has a letter that anomalib's datasets refuse."""
    root = tmp_path_factory.mktemp("Läufe")
    with mock.patch.object(training, "new_model", small_model):
        inspect(part / "good", part / "new", out=root, progress=False)
    return root / "v0"


@pytest.fixture
def run(trained: Path, part: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a copy of a finished run, whose pictures are in the folders good and new of the working directory."""
    for name in ("good", "new"):
        shutil.copytree(part / name, tmp_path / name)
    monkeypatch.chdir(tmp_path)
    copy = Path(shutil.copytree(trained, "runs/v0"))
    settings = json.loads((copy / "run.json").read_text(encoding="utf-8"))
    (copy / "run.json").write_text(json.dumps(settings | {"good": ["good"], "new": "new"}), encoding="utf-8")
    return copy
