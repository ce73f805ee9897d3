# Copyright (C) 2026 anomalib-fewshot contributors
# SPDX-License-Identifier: Apache-2.0

"""Findings are reported at once."""

from pathlib import Path

import pytest

from anomalib_fewshot.data.finding import Finding, report


def test_report_names_all_errors_and_logs_warnings(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    warnings = [Finding(tmp_path / "a.png", "warning", "is grey.")]
    errors = [Finding(tmp_path / f"{number}.png", "error", "is empty.") for number in range(23)]
    report([])
    report(warnings * 2)
    report(warnings, known=warnings)
    assert caplog.messages == [f"{tmp_path / 'a.png'}: is grey."]
    with pytest.raises(ValueError, match="got 2 that are not:\n  .*/0.png: is empty.\n  .*/1.png: is empty.$"):
        report([*warnings, *errors[:2], *errors[:2]])
    with pytest.raises(ValueError, match=r"got 23 that are not:[^.](.*\n)*  \.\.\. and 3 more\.$"):
        report(errors)
