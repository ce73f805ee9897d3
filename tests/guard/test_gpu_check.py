# Copyright (C) 2026 anomalib-fewshot contributors
# SPDX-License-Identifier: Apache-2.0

"""The checks of a GPU, run on the CPU."""

import pytest
import torch
from gpu_check import Checks, main


def test_coft_ad_on_the_cpu(capsys: pytest.CaptureFixture) -> None:
    assert main(["--models", "CoftAD", "--device", "cpu", "--small"]) == 0, capsys.readouterr().out
    assert capsys.readouterr().out.endswith("\n6 of 6 checks agree\n")


def test_failed_check_does_not_stop_the_others(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:
    for number, name in enumerate(("fit", "predict", "load", "export", "latency")):
        monkeypatch.setattr(Checks, name, lambda _, value=float(number): 1 / value)
    monkeypatch.setattr(Checks, "mixed", lambda *_: 0.0)
    assert main(["--models", "CoftAD", "--device", "cpu", "--small"]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert "ZeroDivisionError" in lines[1]
    assert lines[-1] == "Failed: CoftAD, fit; CoftAD, predict; CoftAD, checkpoint; CoftAD, export"


def test_no_gpu(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert main([]) == 2
    assert capsys.readouterr().err.startswith("No CUDA device was found.")


@pytest.mark.slow
def test_all_models_on_the_cpu(capsys: pytest.CaptureFixture) -> None:
    assert main(["--device", "cpu", "--small"]) == 0, capsys.readouterr().out
