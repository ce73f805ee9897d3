# Copyright (C) 2026 anomalib-fewshot contributors
# SPDX-License-Identifier: Apache-2.0

"""A folder of many runs: the next one costs no more than the first, and a start reads each run once.

Ten thousand planned runs, of which two Ray workers execute some with a simulated fit and test.

The figures: ``python -m pytest -s -m slow tests/integration/test_many_runs.py``.
"""

import json
import resource
import sys
import time
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any

import pytest

from anomalib_fewshot import benchmark
from anomalib_fewshot.pipelines.plan.grid import make_jobs
from anomalib_fewshot.pipelines.plan.job import Job
from anomalib_fewshot.pipelines.report import write_report
from anomalib_fewshot.pipelines.results.outcome import Outcome
from anomalib_fewshot.pipelines.results.row import Row
from anomalib_fewshot.pipelines.results.store import Store
from anomalib_fewshot.pipelines.run import runners
from anomalib_fewshot.pipelines.run.worker import Settings

NUM_RUNS = 10_000
NUM_RAY_RUNS = 200
SCORES = {f"bolt/test/good/{number:03}.png": [number % 2, number / 7] for number in range(100)}


def save(store: Store, job: Job) -> float:
    """Store a run, and return the seconds."""
    start = time.perf_counter()
    store.save(job, Outcome([Row.from_job(job, "bolt", image_AUROC=0.5, fit_seconds=1.0)], scores=SCORES))
    return time.perf_counter() - start


@pytest.mark.slow
def test_cost_of_a_run_does_not_grow(tmp_path: Path) -> None:
    model, data = {"class_path": "A", "init_args": {}}, {"class_path": "D", "init_args": {}}
    jobs = [Job("A", "parts", "bolt", 1, seed, model, data, {}) for seed in range(NUM_RUNS)]
    store = Store(tmp_path)
    first = median(save(store, job) for job in jobs[:50])
    content = (tmp_path / "runs" / f"{jobs[0].key}.json").read_bytes()
    for job in jobs[50:-50]:
        (tmp_path / "runs" / f"{job.key}.json").write_bytes(content)
    last = median(save(store, job) for job in jobs[-50:])
    start = time.perf_counter()
    again = Store(tmp_path)
    table = again.write_table([job for job in jobs if again.is_finished(job)])
    start_up = time.perf_counter() - start
    start = time.perf_counter()
    again.write_table(jobs)
    end = time.perf_counter() - start
    print(f"\nOne more run: {1000 * first:.1f} ms at first, {1000 * last:.1f} ms after {NUM_RUNS}. ", end="")
    print(f"Start: {start_up:.1f} s. Table at the end: {end:.1f} s.")
    assert len(table) == NUM_RUNS
    assert last < 3 * first
    assert end < start_up  # nothing is read again


def simulated_outcome(job: Job) -> Outcome:
    """Return an outcome with 100 scored images per category. Its numbers depend only on the settings of the run."""
    value = int(job.key[:4], 16) / 2**16
    columns = {"image_AUROC": value, "image_AUPR": value, "recall": value, "false_alarms": value / 4}
    columns |= {"fit_seconds": 1.0, "latency_p50_ms": 1.0, "seconds": 1.0, "device": "cpu", "threads": 1}
    columns |= {"support": f"{job.category}-{job.k_shot}-{job.seed}", "threshold": "normal images"}
    columns |= {"guaranteed_fpr": 1 / (int(job.k_shot) + 1), "test_normal": 50, "test_anomalous": 50}
    scores = {}
    for number in range(100):
        scores[f"{job.category}/test/{number:03}.png"] = [number % 2, number / 7 + value * (number % 2)]
    return Outcome([Row.from_job(job, job.category, **columns)], scores=scores)


class SimulatedWorker:
    """Stands for a worker whose runs take no time."""

    def __init__(self, settings: Settings) -> None:
        del settings

    def run(self, job: Job, save_examples: bool = False) -> Outcome:
        """Return the simulated outcome of a run."""
        del save_examples
        return simulated_outcome(job)


@contextmanager
def measured(title: str) -> Generator[None, None, None]:
    """Print the elapsed and the CPU time of a block, and the peak memory of this process so far (Linux)."""
    start, cpu_start = time.perf_counter(), time.process_time()
    try:
        yield
    finally:
        elapsed, cpu = time.perf_counter() - start, time.process_time() - cpu_start
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        print(f"\n{title}: {elapsed:.1f} s, {cpu:.1f} s of CPU time. Peak memory {peak:.0f} MiB.", flush=True)


@pytest.mark.slow
def test_many_runs_on_ray(tmp_path: Path, mvtec_root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two methods, two categories, five k and 500 seeds. The plan, the store, the report and the resume are real."""
    ray = pytest.importorskip("ray")

    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])  # Ray's processes cannot import this module
    monkeypatch.setattr(runners, "Worker", SimulatedWorker)
    statistics = {name: {"class_path": "ImageStatistic", "init_args": {"statistic": name}} for name in ("std", "mean")}
    config: dict[str, Any] = {
        "methods": statistics,
        "datasets": {"parts": {"class_path": "MVTecFolder", "init_args": {"root": str(mvtec_root)}}},
        "k_shot": [1, 2, 4, 8, 10],
        "seeds": NUM_RUNS // 20,
        "results": str(tmp_path / "sweep"),
    }
    with measured(f"Plan of {NUM_RUNS} runs"):
        jobs = make_jobs(config["methods"], config["datasets"], config["k_shot"], config["seeds"])
    assert len(jobs) == NUM_RUNS
    Store(tmp_path / "sweep")  # creates the folder
    for job in jobs[NUM_RAY_RUNS:]:
        outcome = simulated_outcome(job)
        content = {"rows": [row.to_json() for row in outcome.rows], "scores": outcome.scores}
        (tmp_path / "sweep" / "runs" / f"{job.key}.json").write_text(json.dumps(content), encoding="utf-8")
    appends: list[float] = []
    save = Store.save

    def timed_save(self: Store, job: Job, outcome: Outcome) -> None:
        start = time.perf_counter()
        save(self, job, outcome)
        appends.append(time.perf_counter() - start)

    monkeypatch.setattr(Store, "save", timed_save)
    try:
        with measured(f"Benchmark with {NUM_RAY_RUNS} runs on Ray, with the start of Ray and the report"):
            table = benchmark(**config, runner="ray", workers=2)
    finally:
        ray.shutdown()
    print(f"Append of a run: {1000 * median(appends):.1f} ms.")
    assert len(table) == NUM_RUNS
    assert (table.status == "ok").all()
    assert len(appends) == NUM_RAY_RUNS
    with measured("Skipping all finished runs"):
        store = Store(tmp_path / "sweep")
        finished = sum(store.is_finished(job) for job in jobs)
    assert finished == NUM_RUNS
    with measured("Report"):
        write_report(store, store.table(jobs), baseline="std", config=config, environment={}, jobs=jobs)
