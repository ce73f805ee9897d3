# Copyright (C) 2026 anomalib-fewshot contributors
# SPDX-License-Identifier: Apache-2.0

"""The checks of a GPU, run on the CPU."""

import pytest
import torch
from gpu_check import Checks, DeviceTrial, difference, main

from anomalib_fewshot.testing.trial import Outputs

SCORES = torch.tensor([1.0, 3.0])
MAPS = torch.tensor([0.0, 10.0]).expand(2, 1, 3, 2)


@pytest.mark.parametrize(
    ("scores", "maps", "expected"),
    [
        (0.0, 0.0, 0.0),
        (0.2, 0.0, 0.1),
        (0.2, 2.0, 0.2),
        (float("nan"), 2.0, float("nan")),
        (0.2, float("nan"), float("nan")),
    ],
)
def test_difference_is_relative_to_the_range(scores: float, maps: float, expected: float) -> None:
    found = difference(Outputs(SCORES + scores, MAPS + maps, (0, 0)), Outputs(SCORES, MAPS, (0, 0)))
    assert found == pytest.approx(expected, nan_ok=True)


@pytest.mark.parametrize(("scores", "maps"), [(SCORES[:1], MAPS), (SCORES, MAPS[..., :1] + 1)])
def test_constant_reference(scores: torch.Tensor, maps: torch.Tensor) -> None:
    outputs = Outputs(scores, maps, (0, 0))
    with pytest.raises(ValueError, match="must vary"):
        difference(outputs, outputs)


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
def test_the_pool_is_used() -> None:
    trial = DeviceTrial("CoftAD, pool", "cpu", small=True)
    assert trial.trained.model.model.has_pool
    assert trial.outputs.scores.shape == (6,)


@pytest.mark.slow
def test_changed_weights_exceed_every_tolerance() -> None:
    trial = DeviceTrial("CoftAD", "cpu", small=True)
    before, model = trial.outputs, trial.trained.model
    rng = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weights in model.model.backbone.parameters():
            weights.mul_(1 + 0.05 * torch.randn(weights.shape, generator=rng))
    assert difference(trial.predict(model), before) > 0.1  # 0.2 measured, and 0.05 is the largest tolerance


@pytest.mark.slow
def test_all_models_on_the_cpu(capsys: pytest.CaptureFixture) -> None:
    assert main(["--device", "cpu", "--small"]) == 0, capsys.readouterr().out
