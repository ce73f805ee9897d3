# Copyright (C) 2026 anomalib-fewshot contributors
# SPDX-License-Identifier: Apache-2.0

"""Errors are reported by file, warnings by kind."""

from pathlib import Path

import pytest

from anomalib_fewshot.data.validation.issue import (
    ERROR,
    WARNING,
    Comparison,
    DataIssue,
    report,
    report_together,
    summarize,
)
from anomalib_fewshot.errors import DataValidationError

KIND = "images are grey. Take all in one way"


def grey(path: Path, detail: str = "") -> DataIssue:
    return DataIssue(path, WARNING, "is grey.", KIND, detail)


def test_report_names_all_errors_and_logs_warnings(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    warnings = [DataIssue(tmp_path / "a.png", WARNING, "is grey.")]
    errors = [DataIssue(tmp_path / f"{number}.png", ERROR, "is empty.") for number in range(23)]
    report([])
    report(warnings * 2)
    report(warnings, known=warnings)
    assert caplog.messages == [f"{tmp_path / 'a.png'}: is grey."]
    with pytest.raises(DataValidationError, match=r"^2 files .*:\n  .*/0.png: is empty.\n  .*/1.png: is empty.$"):
        report([*warnings, *errors[:2], *errors[:2]])
    with pytest.raises(DataValidationError, match=r"^23 files[^.](.*\n)*  \.\.\. and 3 more\.$"):
        report(errors)


def test_warnings_of_one_kind_are_one_line(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    files = [grey(tmp_path / "test" / f"{number}.png", f"{number} px") for number in range(338)]
    report([*files, DataIssue(tmp_path / "x.png", WARNING, "is rotated.")])
    line, other = caplog.messages
    names = "0.png (0 px), 1.png (1 px), 2.png (2 px), ..."
    assert line == f"338 {KIND}: {names}, in {tmp_path / 'test'}"
    assert other.endswith("x.png: is rotated.")


@pytest.mark.parametrize(
    ("paths", "names"),
    [
        (["a/0.png", "a/1.png"], "0.png, 1.png, in a"),
        (["a/0.png", "b/0.png"], "a/0.png, b/0.png"),  # no folder in common
        (["/a/0.png", "b/0.png"], "/a/0.png, b/0.png"),
        (["/a/b/0.png", "/a/c/0.png", "/a/b/0.png"], "b/0.png, c/0.png, in /a"),  # one of them twice
    ],
)
def test_names_of_files_in_several_folders_are_unique(paths: list[str], names: str) -> None:
    assert summarize(grey(Path(path)) for path in paths) == [f"2 {KIND}: {names}"]


def test_equal_messages_are_one_kind() -> None:
    (line,) = summarize(DataIssue(Path("a") / name, WARNING, "is grey.") for name in "bc")
    assert line.startswith("2 ")
    assert line.endswith("b, c, in a")


def test_images_of_several_support_sets_have_their_own_medians() -> None:
    issues = []
    for category, median in (("a", "1.00"), ("b", "2.00")):
        comparison = Comparison(Path(category) / "good", 12, f"median {median}")
        path = Path(category) / "0.png"
        issues.append(DataIssue(path, WARNING, "is wide.", "images are wide. Crop them", "9", comparison))
    names = "a/0.png (9; support set: median 1.00), b/0.png (9; support set: median 2.00)"
    assert summarize(issues) == [f"2 images are wide. Crop them: {names}"]


def test_warnings_of_several_checks_are_logged_together(caplog: pytest.LogCaptureFixture) -> None:
    with report_together():
        for category in "abcd":
            report([grey(Path(category) / "0.png")])
        assert caplog.messages == []
    assert len(caplog.messages) == 1
    report([grey(Path("e/0.png"))])
    assert len(caplog.messages) == 2


def test_errors_of_several_checks_are_raised_at_once() -> None:
    with pytest.raises(DataValidationError, match=r"b\.png"), report_together():
        report([DataIssue(Path("b.png"), ERROR, "is empty.")])
    with pytest.raises(DataValidationError):  # the block is over
        report([DataIssue(Path("c.png"), ERROR, "is empty.")])
