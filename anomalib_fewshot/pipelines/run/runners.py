# Copyright (C) 2026 anomalib-fewshot contributors
# SPDX-License-Identifier: Apache-2.0

"""Where the runs of a benchmark are carried out: in this process, in several, or on Ray."""

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
from anomalib_fewshot.pipelines.results.outcome import Outcome, failed

from .subprocess import Subprocess
from .worker import Settings, Worker

DIED = "The process of the run died. Most often the system has ended it because memory ran out."
GUARD = "A script must start a benchmark with processes under `if __name__ == '__main__':`. Put the call there."


class Task(NamedTuple):
    """A run to carry out, whether examples of it are saved, and the claim that holds until its outcome is stored."""

    job: Job
    save_examples: bool
    claim: AbstractContextManager


Outcomes = Generator[tuple[Job, Outcome], None, None]
Runner = Callable[[Iterable[Task], Settings], Outcomes]


def run_serial(tasks: Iterable[Task], settings: Settings) -> Outcomes:
    """Carry out runs one after the other, in this process."""
    threads = torch.get_num_threads()
    try:
        worker = Worker(settings)
        for job, save_examples, claim in tasks:
            with claim:
                yield job, worker.run(job, save_examples)
    finally:
        torch.set_num_threads(threads)  # as the caller had it


def run_processes(
    tasks: Iterable[Task],
    settings: Settings,
    workers: int | None,
) -> Outcomes:
    """Carry out runs in several processes of this machine, each with a GPU of its own where there are some.

    Args:
        tasks (Iterable[Task]): Runs. One is taken when a process is free for it.
        settings (Settings): Settings of all runs.
        workers (int | None): Number of processes. ``None`` is one for each GPU, or two without any.
    """
    gpus = visible_gpus()
    count = workers or len(gpus) or 2
    settings = _share_threads(settings, count, os.cpu_count() or 1)
    slots = [_ProcessSlot(settings, gpus[number % len(gpus)] if gpus else None) for number in range(count)]
    yield from _run_parallel(tasks, slots)


def check_main_guard() -> None:
    """Raise in a process that is starting: it runs the script of its parent, and must not start the benchmark again.

    Raises:
        RuntimeError: In such a process.
    """
    if is_starting_process():
        raise RuntimeError(GUARD)


def run_ray(
    tasks: Iterable[Task],
    settings: Settings,
    workers: int | None,
) -> Outcomes:
    """Carry out runs on Ray: on this machine, or on the cluster that Ray is connected to.

    All machines must see the images under the same path. Results come back to this process, which keeps them.

    Args:
        tasks (Iterable[Task]): Runs. One is taken when a worker is free for it.
        settings (Settings): Settings of all runs.
        workers (int | None): Number of workers. ``None`` is one for each GPU of the cluster, or two without any.

    Raises:
        MissingDependencyError: If Ray is not installed.
    """
    try:
        import ray
    except ModuleNotFoundError as error:
        msg = "`runner: ray` needs Ray. Install it with `pip install 'anomalib-fewshot[ray]'`."
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
    """Return the number of workers and what each asks Ray for, so that all have room: Ray never stops waiting for more.

    Args:
        workers (int | None): Workers that the user asks for.
        cpus (Sequence[int]): Cores of each machine.
        gpus (int): GPUs of all machines.

    Example:
        >>> ray_shares(3, [5, 5], gpus=4)
        (3, {'num_cpus': 2, 'num_gpus': 1.0})
    """
    count = min(workers or gpus or 2, sum(cpus))
    share = next(s for s in range(sum(cpus) // count, 0, -1) if sum(own // s for own in cpus) >= count)
    return count, {"num_cpus": share, "num_gpus": 1 / ceil(count / gpus) if gpus else 0}


class _Slot(Protocol):
    """A place for one run at a time."""

    def submit(self, job: Job, save_examples: bool) -> "Future[Outcome]":
        """Start a run."""

    def restart(self) -> None:
        """Make the slot usable after its process has died."""

    def close(self) -> None:
        """End its process."""


def _run_parallel(tasks: Iterable[Task], slots: Sequence[_Slot]) -> Outcomes:
    """Give each free slot a run, and yield each outcome as it arrives."""
    waiting = iter(tasks)
    free = list(slots)
    running: dict[Future[Outcome], tuple[Task, _Slot]] = {}
    try:
        while True:
            while free and (task := next(waiting, None)) is not None:
                slot = free.pop()
                running[_submit(slot, task)] = task, slot
            if not running:
                return
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                task, slot = running.pop(future)
                with task.claim:
                    yield task.job, _outcome(future, slot, task.job)
                free.append(slot)
    finally:
        for slot in slots:
            slot.close()
        for task, _ in running.values():
            with task.claim:
                pass  # its run was ended


def _submit(slot: _Slot, task: Task) -> "Future[Outcome]":
    try:
        return slot.submit(task.job, task.save_examples)
    except BrokenExecutor:  # its process has died since its last run
        slot.restart()
        return slot.submit(task.job, task.save_examples)


def _outcome(future: "Future[Outcome]", slot: _Slot, job: Job) -> Outcome:
    try:
        return future.result()
    except Exception as error:  # noqa: BLE001  the worker itself raises nothing: its process has died
        slot.restart()
        return failed(job, f"{DIED} ({type(error).__name__})")


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
        """Ray restarts the actor by itself."""

    def close(self) -> None:
        import ray

        ray.kill(self._actor)


_worker: Worker | None = None


def _start_worker(settings: Settings, gpu: str | None) -> None:
    global _worker  # noqa: PLW0603  one for each process
    if gpu is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = gpu
    _worker = Worker(settings)


def _run_in_worker(job: Job, save_examples: bool) -> Outcome:
    if _worker is None:
        msg = "A worker must be started before it runs."
        raise RuntimeError(msg)
    return _worker.run(job, save_examples)


def visible_gpus() -> list[str]:
    """Return the GPUs of this process, as ``CUDA_VISIBLE_DEVICES`` names them."""
    names = [name.strip() for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name.strip()]
    count = torch.cuda.device_count()
    return (names or [str(number) for number in range(count)])[:count]


def _share_threads(settings: Settings, count: int, cores: int) -> Settings:
    """Give each of several workers its share of the cores, if the user has not set the threads."""
    return settings if settings.threads is not None else replace(settings, threads=max(1, cores // count))
