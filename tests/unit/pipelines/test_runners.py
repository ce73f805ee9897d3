# Copyright (C) 2026 anomalib-fewshot contributors
# SPDX-License-Identifier: Apache-2.0

"""Which share of a machine a worker gets, how long a run is claimed, and who gets Ctrl-C."""

import os
import signal
import time
from concurrent.futures import BrokenExecutor, CancelledError, Future
from contextlib import AbstractContextManager, closing
from multiprocessing import current_process
from typing import Any

import pytest
import torch

from anomalib_fewshot import benchmark
from anomalib_fewshot.pipelines.run.runners import Task, _run_parallel, ray_shares, visible_gpus
from anomalib_fewshot.pipelines.run.subprocess import Subprocess


@pytest.mark.parametrize(
    ("names", "expected"),
    [(None, ["0", "1"]), ("2, 3", ["2", "3"]), ("GPU-a,GPU-b", ["GPU-a", "GPU-b"])],
)
def test_workers_get_gpus_that_this_process_may_use(
    names: str | None,
    expected: list[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if names is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", names)
    assert visible_gpus() == expected


@pytest.mark.parametrize("workers", [None, 1, 2, 3, 4, 7, 100])
@pytest.mark.parametrize(("cpus", "gpus"), [([2], 0), ([5, 5], 4), ([16], 4), ([1, 1, 8], 2), ([0, 6], 1)])
def test_all_ray_workers_have_room(workers: int | None, cpus: list[int], gpus: int) -> None:
    """Ray takes a share of a GPU, or whole ones, and never stops waiting for what no machine has."""
    count, resources = ray_shares(workers, cpus, gpus)
    assert 1 <= count <= sum(cpus)
    assert sum(own // resources["num_cpus"] for own in cpus) >= count
    assert resources["num_cpus"] >= 1
    if gpus:
        assert gpus * int(1 / resources["num_gpus"]) >= count
        assert resources["num_gpus"] <= 1
    else:
        assert resources["num_gpus"] == 0


class _Slot:
    """A place whose process dies after the first run, and that notes what happens."""

    def __init__(self) -> None:
        self.dead = False

    def submit(self, job: str, save_examples: bool) -> Future:
        if self.dead:
            raise BrokenExecutor
        self.dead = job == "first"
        done: Future = Future()
        done.set_result((job, save_examples))
        return done

    def restart(self) -> None:
        self.dead = False

    def close(self) -> None:
        self.dead = True


class _Claim(AbstractContextManager):
    """Counts how often it is released."""

    def __init__(self) -> None:
        self.released = 0

    def __exit__(self, *_: object) -> None:
        self.released += 1


def make_tasks(*names: str) -> list[Any]:
    return [Task(name, number > 0, _Claim()) for number, name in enumerate(names)]  # type: ignore[arg-type]


def test_worker_that_dies_between_runs_is_restarted() -> None:
    tasks = make_tasks("first", "second")
    assert list(_run_parallel(tasks, [_Slot()])) == [(job, (job, examples)) for job, examples, _ in tasks]


def test_a_claim_holds_until_the_outcome_is_stored() -> None:
    tasks = make_tasks("a", "b", "c")
    for number, _ in enumerate(_run_parallel(tasks, [_Slot()])):
        assert [task.claim.released for task in tasks] == [int(i < number) for i in range(3)]
    assert [task.claim.released for task in tasks] == [1, 1, 1]


def test_claims_of_runs_that_are_ended_are_released_once() -> None:
    tasks = make_tasks("a", "b", "c")
    slots = [_Slot(), _Slot()]
    outcomes = _run_parallel(tasks, slots)
    next(outcomes)
    outcomes.close()
    assert [task.claim.released for task in tasks] == [1, 1, 0]  # the third was not taken
    assert all(slot.dead for slot in slots)


def test_subprocess_does_not_get_ctrl_c_and_can_be_ended() -> None:
    with closing(Subprocess()) as process:
        assert process.submit(os.getpid).result() != os.getpid()
        blocked = process.submit(signal.pthread_sigmask, signal.SIG_BLOCK, []).result()
        assert signal.SIGINT in blocked
        waiting = process.submit(time.sleep, 600)
    with pytest.raises((BrokenExecutor, CancelledError)):
        waiting.result(timeout=30)
    assert signal.SIGINT not in signal.pthread_sigmask(signal.SIG_BLOCK, [])


def test_script_without_a_guard_is_told_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its workers run it again while they start."""
    monkeypatch.setattr(current_process(), "_inheriting", True, raising=False)
    with pytest.raises(RuntimeError, match="under `if __name__ == '__main__':`"):
        benchmark({"A": {"class_path": "Padim"}}, {"parts": {"class_path": "ELPV"}})
