# Copyright (C) 2026 anomalib-fewshot contributors
# SPDX-License-Identifier: Apache-2.0

"""Time and memory: known times are measured, and validation is no part of a fit."""

import signal
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from anomalib_fewshot import FewShot, ImageStatistic, MVTecFolder
from anomalib_fewshot._cli.signals import interruptible
from anomalib_fewshot.pipelines.run.resources import (
    WARM_UP,
    PeakMemory,
    TimedEngine,
    latencies,
    weights_hash,
)


class _Sleeping(nn.Module):
    """Takes a known time, and notes its turns."""

    turns: list[str] = []  # noqa: RUF012

    def __init__(self, name: str, seconds: float) -> None:
        super().__init__()
        self.name, self.seconds = name, seconds

    def forward(self, batch: torch.Tensor) -> torch.Tensor:
        self.turns.append(self.name)
        time.sleep(self.seconds)
        return batch


def test_latencies_are_taken_in_turns_after_a_warm_up() -> None:
    batch = torch.zeros(1, 3, 2, 2)
    found = latencies({name: (_Sleeping(name, ms / 1000), batch) for name, ms in (("a", 2), ("b", 6))}, rounds=4)
    assert "".join(_Sleeping.turns) == "ab" * (WARM_UP + 4)
    assert {name: len(values) for name, values in found.items()} == {"a": 4, "b": 4}
    assert 2 <= np.median(found["a"]) < 6 <= np.median(found["b"]) < 20


class _Slow(ImageStatistic):
    """Takes 50 ms for each validation batch, and 20 ms before the first of them, which is part of a fit."""

    num_steps = 7

    def on_validation_start(self) -> None:
        time.sleep(0.02)

    def validation_step(self, *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401
        time.sleep(0.05)
        return super().validation_step(*args, **kwargs)


def test_validation_is_no_part_of_a_fit(mvtec_root: Path, tmp_path: Path) -> None:
    source = MVTecFolder(mvtec_root, "bolt", eval_batch_size=1, num_workers=0)
    datamodule = FewShot(source, k_shot=1, validation="source")
    model = _Slow("mean", image_size=64)
    engine = TimedEngine(tmp_path, "cpu")
    start = time.perf_counter()
    seconds = engine.timed_fit(model, datamodule)
    assert 0.02 < seconds < time.perf_counter() - start - 8 * 0.05
    assert engine.num_steps(model) == 7
    assert engine.num_steps(ImageStatistic("mean")) == 0


def test_steps_of_a_training_are_those_of_lightning(mvtec_root: Path, tmp_path: Path) -> None:
    class _Trained(_Slow):
        def configure_optimizers(self) -> torch.optim.Optimizer:
            self.weight = nn.Parameter(torch.ones(1))
            return torch.optim.SGD(self.parameters(), lr=0.1)

        def training_step(self, *args: Any, **kwargs: Any) -> torch.Tensor:  # noqa: ANN401
            super().training_step(*args, **kwargs)
            return self.weight.sum()

        @property
        def trainer_arguments(self) -> dict[str, Any]:
            return {"max_epochs": 3}

    model, engine = _Trained("mean", image_size=64), TimedEngine(tmp_path, "cpu", limit_val_batches=0)
    engine.timed_fit(model, FewShot(MVTecFolder(mvtec_root, "bolt", num_workers=0), k_shot=1))
    assert engine.num_steps(model) == 3


def test_ctrl_c_is_an_interrupt_although_lightning_makes_it_an_exit() -> None:
    def lightning() -> None:
        try:
            signal.raise_signal(signal.SIGINT)
        except KeyboardInterrupt:
            signal.signal(signal.SIGINT, signal.SIG_IGN)
            sys.exit(1)

    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell may have its background jobs ignore it
    try:
        with pytest.raises(KeyboardInterrupt), interruptible():
            lightning()
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, before)
    with pytest.raises(SystemExit, match="3"), interruptible():
        sys.exit(3)


def test_weights_hash_follows_the_weights() -> None:
    first, same, other = nn.Linear(3, 2), nn.Linear(3, 2), nn.Linear(3, 2)
    same.load_state_dict(first.state_dict())
    assert weights_hash(first) == weights_hash(same) != weights_hash(other)
    assert len(weights_hash(first.half())) == 8


@pytest.mark.skipif(sys.platform != "linux", reason="other systems do not let a process set its peak back")
def test_peak_memory_sees_what_is_freed_again() -> None:
    mib = 200
    with PeakMemory() as memory:
        torch.ones(mib * 2**18).sum()
    if not np.isnan(memory.host_mib):  # a container may forbid it
        assert mib * 0.95 < memory.host_mib < mib * 1.5
    with PeakMemory() as later:
        torch.ones(2**18).sum()
    assert not later.host_mib > mib / 2
