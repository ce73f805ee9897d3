# Copyright (C) 2026 anomalib-fewshot contributors
# SPDX-License-Identifier: Apache-2.0

"""Which share of a machine a worker gets."""

from concurrent.futures import BrokenExecutor, Future
from multiprocessing import current_process

import pytest
import torch

from anomalib_fewshot import benchmark
from anomalib_fewshot.pipelines.runners import _run_parallel, ray_shares, visible_gpus


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
    """Ray takes a share of a GPU, or whole ones, and waits for ever for what no machine has."""
    count, resources = ray_shares(workers, cpus, gpus)
    assert 1 <= count <= sum(cpus)
    assert sum(own // resources["num_cpus"] for own in cpus) >= count
    assert resources["num_cpus"] >= 1
    if gpus:
        assert gpus * int(1 / resources["num_gpus"]) >= count
        assert resources["num_gpus"] <= 1
    else:
        assert resources["num_gpus"] == 0


def test_worker_that_dies_between_runs_is_started_anew() -> None:
    class Slot:
        dead = False

        def submit(self, job: str, with_pictures: bool) -> Future:
            if self.dead:
                raise BrokenExecutor
            self.dead = job == "first"
            done: Future = Future()
            done.set_result((job, with_pictures))
            return done

        def restart(self) -> None:
            self.dead = False

        def close(self) -> None:
            self.dead = True

    tasks = [("first", False), ("second", True)]
    assert [outcome for _, outcome in _run_parallel(tasks, [Slot()])] == tasks


def test_script_without_a_guard_is_told_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its workers run it again while they start."""
    monkeypatch.setattr(current_process(), "_inheriting", True, raising=False)
    with pytest.raises(RuntimeError, match="under `if __name__ == '__main__':`"):
        benchmark({"A": {"class_path": "Padim"}}, {"parts": {"class_path": "ELPV"}})
