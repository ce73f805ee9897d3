# Copyright (C) 2026 anomalib-fewshot contributors
# SPDX-License-Identifier: Apache-2.0

"""Where the runs of a benchmark are carried out: in this process, in several, or on Ray."""

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, BrokenExecutor, Future, ProcessPoolExecutor, wait
from dataclasses import replace
from math import ceil
from multiprocessing import connection, current_process, get_context, parent_process
from threading import Thread
from typing import Any, Protocol

import torch

from .jobs import Job
from .worker import Outcome, Settings, Worker, failed

Task = tuple[Job, bool]  # a run, and whether it makes pictures
Runner = Callable[[Iterable[Task], Settings], Iterator[tuple[Job, Outcome]]]
DIED = "The process of the run died. Most often the system has ended it because memory ran out."
GUARD = "A script must start a benchmark with processes under `if __name__ == '__main__':`. Put the call there."


def run_serial(tasks: Iterable[Task], settings: Settings) -> Iterator[tuple[Job, Outcome]]:
    """Carry out runs one after the other, in this process."""
    threads = torch.get_num_threads()
    try:
        worker = Worker(settings)
        for job, with_pictures in tasks:
            yield job, worker.run(job, with_pictures)
    finally:
        torch.set_num_threads(threads)  # those of the caller


def run_processes(tasks: Iterable[Task], settings: Settings, workers: int | None) -> Iterator[tuple[Job, Outcome]]:
    """Carry out runs in several processes of this machine, each with a GPU of its own where there are some.

    Args:
        tasks (Iterable[Task]): Runs. One is taken when a process is free for it.
        settings (Settings): What is common to all runs.
        workers (int | None): Number of processes. ``None`` is one for each GPU, or two without any.
    """
    gpus = visible_gpus()
    count = workers or len(gpus) or 2
    settings = _share_threads(settings, count, os.cpu_count() or 1)
    slots = [_ProcessSlot(settings, gpus[number % len(gpus)] if gpus else None) for number in range(count)]
    yield from _run_parallel(tasks, slots)


def check_main_guard() -> None:
    """Raise in a process that is being started: it runs the script of its parent, and must not start the sweep again.

    Raises:
        RuntimeError: In such a process.
    """
    if getattr(current_process(), "_inheriting", False):
        raise RuntimeError(GUARD)


def run_ray(tasks: Iterable[Task], settings: Settings, workers: int | None) -> Iterator[tuple[Job, Outcome]]:
    """Carry out runs on Ray: on this machine, or on the cluster that Ray is connected to.

    All machines must see the images under the same path. Results come back to this process, which keeps them.

    Args:
        tasks (Iterable[Task]): Runs. One is taken when a worker is free for it.
        settings (Settings): What is common to all runs.
        workers (int | None): Number of workers. ``None`` is one for each GPU of the cluster, or two without any.

    Raises:
        ModuleNotFoundError: If Ray is not installed.
    """
    try:
        import ray
    except ModuleNotFoundError as error:
        msg = "`runner: ray` needs Ray. Install it with `pip install 'anomalib-fewshot[ray]'`."
        raise ModuleNotFoundError(msg) from error
    if not ray.is_initialized():
        ray.init(log_to_driver=False, include_dashboard=False)
    cpus = [int(node["Resources"].get("CPU", 0)) for node in ray.nodes() if node["Alive"]]
    count, resources = ray_shares(workers, cpus, int(ray.cluster_resources().get("GPU", 0)))
    settings = _share_threads(settings, count, count * int(resources["num_cpus"]))
    actor = ray.remote(max_restarts=-1, **resources)(Worker)
    yield from _run_parallel(tasks, [_RaySlot(actor.remote(settings)) for _ in range(count)])


def ray_shares(workers: int | None, cpus: Sequence[int], gpus: int) -> tuple[int, dict[str, Any]]:
    """Return how many workers there are and what each asks Ray for, so that all have room: Ray waits for ever for more.

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
    """A place where one run at a time is carried out."""

    def submit(self, job: Job, with_pictures: bool) -> "Future[Outcome]":
        """Start a run."""

    def restart(self) -> None:
        """Make the place usable again after its process has died."""

    def close(self) -> None:
        """End what is going on."""


def _run_parallel(tasks: Iterable[Task], slots: list[Any]) -> Iterator[tuple[Job, Outcome]]:
    """Give each free place a run, and yield each outcome as it is there."""
    waiting = iter(tasks)
    free: list[_Slot] = list(slots)
    running: dict[Future[Outcome], tuple[Job, _Slot]] = {}
    try:
        while True:
            while free and (task := next(waiting, None)) is not None:
                slot = free.pop()
                try:
                    future = slot.submit(*task)
                except BrokenExecutor:  # its process has died since its last run
                    slot.restart()
                    future = slot.submit(*task)
                running[future] = (task[0], slot)
            if not running:
                return
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                job, slot = running.pop(future)
                try:
                    outcome = future.result()
                except Exception as error:  # noqa: BLE001  the worker itself raises nothing: its process has died
                    slot.restart()
                    outcome = failed(job, f"{DIED} ({type(error).__name__})")
                free.append(slot)
                yield job, outcome
    finally:
        for slot in slots:
            slot.close()


class _ProcessSlot:
    def __init__(self, settings: Settings, gpu: str | None) -> None:
        self._arguments = (settings, gpu)
        self.restart()

    def restart(self) -> None:
        self._pool = ProcessPoolExecutor(
            1,
            mp_context=get_context("spawn"),
            initializer=_start_worker,
            initargs=self._arguments,
        )

    def submit(self, job: Job, with_pictures: bool) -> "Future[Outcome]":
        return self._pool.submit(_run_in_worker, job, with_pictures)

    def close(self) -> None:
        for process in list((self._pool._processes or {}).values()):  # noqa: SLF001
            process.terminate()
        self._pool.shutdown(wait=False, cancel_futures=True)


class _RaySlot:
    def __init__(self, actor: Any) -> None:  # noqa: ANN401
        self._actor = actor

    def submit(self, job: Job, with_pictures: bool) -> "Future[Outcome]":
        return self._actor.run.remote(job, with_pictures).future()

    def restart(self) -> None:
        """Ray restarts the actor by itself."""

    def close(self) -> None:
        import ray

        ray.kill(self._actor)


_worker: Worker | None = None


def _start_worker(settings: Settings, gpu: str | None) -> None:
    global _worker  # noqa: PLW0603  one for each process
    end_with_parent()
    if gpu is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = gpu
    _worker = Worker(settings)


def end_with_parent() -> None:
    """Let this process end when the one that started it is killed: else it would wait for work for ever."""

    def watch() -> None:
        parent = parent_process()
        if parent is not None:
            connection.wait([parent.sentinel])
            os._exit(1)

    Thread(target=watch, daemon=True).start()


def _run_in_worker(job: Job, with_pictures: bool) -> Outcome:
    if _worker is None:
        msg = "A worker must be started before it runs."
        raise RuntimeError(msg)
    return _worker.run(job, with_pictures)


def visible_gpus() -> list[str]:
    """Return the GPUs of this process, as ``CUDA_VISIBLE_DEVICES`` names them."""
    names = [name.strip() for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name.strip()]
    count = torch.cuda.device_count()
    return (names or [str(number) for number in range(count)])[:count]


def _share_threads(settings: Settings, count: int, cores: int) -> Settings:
    """Give each of several workers its share of the cores, if the user has not set the threads."""
    return settings if settings.threads is not None else replace(settings, threads=max(1, cores // count))
