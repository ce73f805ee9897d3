# Copyright (C) 2026 anomalib-fewshot contributors
# SPDX-License-Identifier: Apache-2.0

"""The comparison of the quality guard, and a broken model that it detects."""

import time
from pathlib import Path
from typing import Any

import bench_smoke
import pytest
import yaml
from bench_smoke import CASES, Result, compare, cpu_clock, main, updated

from anomalib_fewshot.models.coft_ad.torch_model import CoftADModel
from anomalib_fewshot.pipelines.run import resources
from anomalib_fewshot.pipelines.run.resources import measure_interleaved

VALUES = {"image_AUROC": 0.9, "fit_ratio": 100.0, "latency_ratio": 2.0}
EXPECTED: dict[str, Any] = {"auroc_tolerance": 0.01, "ratio_factor": 3.0, "models": {"CoftAD": VALUES}}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Return a file of expected values."""
    path = tmp_path / "expected.yaml"
    path.write_text(yaml.safe_dump(EXPECTED), encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("result", "failure", "better"),
    [
        (Result(0.89, 300, 6), None, False),
        (Result(0.91, 100, 2), None, False),
        (Result(0.912, 100, 2), None, True),
        (Result(0.889, 100, 2), "image_AUROC expected 0.9, got 0.889", False),
        (Result(float("nan"), 100, 2), "image_AUROC expected 0.9, got nan", False),
        (Result(0.9, 301, 2), "fit_ratio expected 100.0, at most 300, got 301", False),
        (Result(0.9, 100, 6.1), "latency_ratio expected 2.0, at most 6, got 6.1", False),
        ("RuntimeError: broken", "RuntimeError: broken", False),
    ],
)
def test_compare(result: Result | str, failure: str | None, better: bool) -> None:
    expected = [] if failure is None else [f"CoftAD: {failure}"]
    assert compare("CoftAD", result, EXPECTED) == (expected, better)


def test_small_ratios_are_compared_with_the_floor() -> None:
    expected = EXPECTED | {"models": {"CoftAD": VALUES | {"latency_ratio": 0.01}}}
    assert compare("CoftAD", Result(0.9, 100, 3), expected) == ([], False)
    failures = ["CoftAD: latency_ratio expected 0.01, at most 3, got 3.1"]
    assert compare("CoftAD", Result(0.9, 100, 3.1), expected) == (failures, False)


def test_the_benchmark_measures_cpu_time() -> None:
    before = resources.time
    with cpu_clock():
        waited = measure_interleaved({"sleep": lambda: time.sleep(0.02)}, 3)["sleep"]
    assert waited.max() < 10
    assert resources.time is before


def test_missing_model() -> None:
    assert compare("UniAD", Result(0.9, 1, 1), EXPECTED) == (["UniAD: no expected value, run --update"], False)


def test_update_keeps_the_order_and_other_models() -> None:
    before = EXPECTED | {"models": {"UniAD": VALUES, "CoftAD": VALUES}}
    after = updated(before, {"RegAD": Result(0.5, 1, 1), "UniAD": Result(0.6, 1, 1)})
    assert list(after["models"]) == ["CoftAD", "RegAD", "UniAD"]
    assert after["models"]["CoftAD"] == VALUES
    assert after["models"]["UniAD"] == {"image_AUROC": 0.6, "fit_ratio": 1, "latency_ratio": 1}


def test_exit_codes(path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    monkeypatch.setattr(bench_smoke, "measure", lambda _: Result(0.9, 100, 2))
    assert main(["--models", "CoftAD"], path) == 0
    assert capsys.readouterr().out.endswith("\n1 of 1 models agree\n")
    assert main([], path) == 1
    assert main(["--update"], path) == 0
    assert list(yaml.safe_load(path.read_text(encoding="utf-8"))["models"]) == list(CASES)
    assert main([], path) == 0
    monkeypatch.setattr(bench_smoke, "measure", lambda _: 1 / 0)
    assert main(["--models", "RegAD"], path) == 1
    assert "ZeroDivisionError" in capsys.readouterr().out.splitlines()[-1]


def test_unknown_name(capsys: pytest.CaptureFixture) -> None:
    assert main(["--models", "Coft"]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1


@pytest.mark.slow
def test_inverted_score_fails(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    forward = CoftADModel.forward

    def invert(self: CoftADModel, *arguments: Any) -> Any:  # noqa: ANN401
        output = forward(self, *arguments)
        return output if self.training else output._replace(pred_score=-output.pred_score)

    monkeypatch.setattr(CoftADModel, "forward", invert)
    assert main(["--models", "CoftAD"]) == 1
    assert "CoftAD: image_AUROC expected" in capsys.readouterr().out.splitlines()[-1]
