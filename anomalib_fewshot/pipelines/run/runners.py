# Copyright (C) 2026 anomalib-fewshot contributors
# SPDX-License-Identifier: Apache-2.0

"""Runners of a benchmark: serial, in several processes, or on Ray."""

import os
from collections.abc import Callable, Generator, Iterable, Sequence
from concurrent.futures import FIRST_COMPLETED, BrokenExecutor, Future, wait
from contextlib import AbstractContextManager
from dataclasses import replace
from math import ceil
from typing import Any, NamedTuple, Protocol

import torch

from anomalib_fewshot._cli.signals import restore_handler
from anomalib_fewshot._host import is_starting_process
from anomalib_fewshot.errors import MissingDependencyError
from anomalib_fewshot.pipelines.plan.job import Job
from anomalib_fewshot.pipelines.results.outcome import Outcome, failed_outcome

from .subprocess import Subprocess
from .worker import Settings, Worker

WORKER_DIED = "The worker process died, most likely because the machine ran out of memory. Use fewer workers."
MAIN_GUARD_ERROR = (
    "A script must call `benchmark` under `if __name__ == '__main__':`, because worker processes import the script."
)


class Task(NamedTuple):
    """A run, whether to save example images, and the claim to hold until the outcome is stored."""

    job: Job
    save_examples: bool
    claim: AbstractContextManager


Outcomes = Generator[tuple[Job, Outcome], None, None]
Runner = Callable[[Iterable[Task], Settings], Outcomes]


def run_serial(tasks: Iterable[Task], settings: Settings) -> Outcomes:
    """Execute runs one after the other in this process."""
    threads = torch.get_num_threads()
    try:
        worker = Worker(settings)
        for job, save_examples, claim in tasks:
            with claim:
                yield job, worker.run(job, save_examples)
    finally:
        torch.set_num_threads(threads)  # restore the setting of the caller


def run_processes(
    tasks: Iterable[Task],
    settings: Settings,
    workers: int | None,
) -> Outcomes:
    """Execute runs in several processes on this machine. The GPUs are distributed among the processes.

    Args:
        tasks (Iterable[Task]): Runs, consumed when a process becomes idle.
        settings (Settings): Settings of all runs.
        workers (int | None): Number of processes. ``None`` means one per GPU, or two without a GPU.
    """
    gpus = visible_gpus()
    count = workers or len(gpus) or 2
    settings = _share_threads(settings, count, os.cpu_count() or 1)
    slots = [_ProcessSlot(settings, gpus[number % len(gpus)] if gpus else None) for number in range(count)]
    yield from _run_parallel(tasks, slots)


def check_main_guard() -> None:
    """Raise an error if a worker process imports a script that calls the benchmark without a main guard.

    Raises:
        RuntimeError: If this process is a worker that is starting.
    """
    if is_starting_process():
        raise RuntimeError(MAIN_GUARD_ERROR)


def run_ray(
    tasks: Iterable[Task],
    settings: Settings,
    workers: int | None,
) -> Outcomes:
    """Execute runs on Ray, either on this machine or on the connected cluster.

    All machines must have the images under the same path. The results are returned to this process and stored here.

    Args:
        tasks (Iterable[Task]): Runs, consumed when a worker becomes idle.
        settings (Settings): Settings of all runs.
        workers (int | None): Number of workers. ``None`` means one per GPU of the cluster, or two without a GPU.

    Raises:
        MissingDependencyError: If Ray is not installed.
    """
    try:
        import ray
    except ModuleNotFoundError as error:
        msg = "`runner: ray` requires Ray. Install it with `pip install 'anomalib-fewshot[ray]'`."
        raise MissingDependencyError(msg) from error
    if not ray.is_initialized():
        ray.init(log_to_driver=False, include_dashboard=False)
        restore_handler()
    cpus = [int(node["Resources"].get("CPU", 0)) for node in ray.nodes() if node["Alive"]]
    count, resources = ray_shares(workers, cpus, int(ray.cluster_resources().get("GPU", 0)))
    settings = _share_threads(settings, count, count * int(resources["num_cpus"]))
    actor = ray.remote(max_restarts=-1, **resources)(Worker)
    yield from _run_parallel(tasks, [_RaySlot(actor.remote(settings)) for _ in range(count)])


def ray_shares(workers: int | None, cpus: Sequence[int], gpus: int) -> tuple[int, dict[str, Any]]:
    """Return the number of Ray workers and the resources of each, such that all workers can be scheduled.

    Ray would wait forever for resources that no machine has.

    Args:
        workers (int | None): Requested number of workers.
        cpus (Sequence[int]): Number of CPU cores of each machine.
        gpus (int): Total number of GPUs.

    Example:
        >>> ray_shares(3, [5, 5], gpus=4)
        (3, {'num_cpus': 2, 'num_gpus': 1.0})
    """
    count = min(workers or gpus or 2, sum(cpus))
    share = sum(cpus) // count
    while sum(cores // share for cores in cpus) < count:  # a worker cannot span machines
        share -= 1
    return count, {"num_cpus": share, "num_gpus": 1 / ceil(count / gpus) if gpus else 0}


class _Slot(Protocol):
    """A worker that executes one run at a time."""

    def submit(self, job: Job, save_examples: bool) -> "Future[Outcome]":
        """Start a run."""

    def restart(self) -> None:
        """Replace a dead process."""

    def close(self) -> None:
        """Stop the process."""


def _run_parallel(tasks: Iterable[Task], slots: Sequence[_Slot]) -> Outcomes:
    """Assign a run to each idle slot, and yield the outcomes as they arrive."""
    waiting = iter(tasks)
    idle = list(slots)
    running: dict[Future[Outcome], tuple[Task, _Slot]] = {}
    try:
        while True:
            while idle and (task := next(waiting, None)) is not None:
                slot = idle.pop()
                running[_submit(slot, task)] = task, slot
            if not running:
                return
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                task, slot = running.pop(future)
                with task.claim:
                    yield task.job, _outcome(future, slot, task.job)
                idle.append(slot)
    finally:
        for slot in slots:
            slot.close()
        for task, _ in running.values():
            with task.claim:
                pass  # release the claim of an aborted run


def _submit(slot: _Slot, task: Task) -> "Future[Outcome]":
    try:
        return slot.submit(task.job, task.save_examples)
    except BrokenExecutor:  # the process died after its last run
        slot.restart()
        return slot.submit(task.job, task.save_examples)


def _outcome(future: "Future[Outcome]", slot: _Slot, job: Job) -> Outcome:
    try:
        return future.result()
    except Exception as error:  # noqa: BLE001  a worker catches its own errors, so its process died
        slot.restart()
        return failed_outcome(job, f"{WORKER_DIED} ({type(error).__name__})")


class _ProcessSlot(Subprocess):
    def __init__(self, settings: Settings, gpu: str | None) -> None:
        super().__init__(_start_worker, settings, gpu)

    def submit(self, job: Job, save_examples: bool) -> "Future[Outcome]":  # type: ignore[override]
        return super().submit(_run_in_worker, job, save_examples)


class _RaySlot:
    def __init__(self, actor: Any) -> None:  # noqa: ANN401
        self._actor = actor

    def submit(self, job: Job, save_examples: bool) -> "Future[Outcome]":
        return self._actor.run.remote(job, save_examples).future()

    def restart(self) -> None:
        """Do nothing, because Ray restarts the actor."""

    def close(self) -> None:
        import ray

        ray.kill(self._actor)


_worker: Worker | None = None


def _start_worker(settings: Settings, gpu: str | None) -> None:
    global _worker  # noqa: PLW0603  one worker per process
    if gpu is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = gpu
    _worker = Worker(settings)


def _run_in_worker(job: Job, save_examples: bool) -> Outcome:
    if _worker is None:
        msg = "`_start_worker` must be called before `_run_in_worker`."
        raise RuntimeError(msg)
    return _worker.run(job, save_examples)


def visible_gpus() -> list[str]:
    """Return the GPUs that this process can use, named as in ``CUDA_VISIBLE_DEVICES``."""
    names = [name.strip() for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name.strip()]
    count = torch.cuda.device_count()
    return (names or [str(number) for number in range(count)])[:count]


def _share_threads(settings: Settings, count: int, cores: int) -> Settings:
    """Return settings that divide the CPU cores among the workers, unless the user set ``threads``."""
    if settings.threads is not None:
        return settings
    return replace(settings, threads=max(1, cores // count))
