# Copyright (C) 2026 anomalib-fewshot contributors
# SPDX-License-Identifier: Apache-2.0

"""Warnings of a benchmark: each kind once, and the files of later runs at the end."""

from pathlib import Path

import pytest

from anomalib_fewshot.data.validation.issue import WARNING, DataIssue
from anomalib_fewshot.pipelines.run.progress import ProgressBar


def findings(category: str) -> list[DataIssue]:
    kind = "images are narrow. Crop them"
    return [DataIssue(Path(category) / f"{number}.png", WARNING, "is narrow.", kind) for number in range(5)]


def test_each_kind_is_printed_once_and_later_files_at_the_end(capsys: pytest.CaptureFixture) -> None:
    with ProgressBar(24) as bar:
        for _ in range(8):
            bar.print_issues(findings("bolt"))
        for _ in range(8):
            bar.print_issues(findings("cloth"))
        first = capsys.readouterr().out
    last = capsys.readouterr().out
    assert first.count("Warning:") == last.count("Warning:") == 1
    assert "in bolt" in first
    assert "in cloth" in last


def test_a_file_is_printed_once_for_each_kind(capsys: pytest.CaptureFixture) -> None:
    """Each support set has its own median, which the messages contain."""
    kind = "images are narrow. Crop them"
    with ProgressBar(5) as bar:
        for seed in range(5):
            paths = [Path("bolt") / f"{number}.png" for number in range(57)]
            bar.print_issues(DataIssue(path, WARNING, f"is narrow: median {seed}.", kind) for path in paths)
    out = capsys.readouterr().out
    assert out.count("Warning:") == 1
    assert "57 images are narrow" in out
