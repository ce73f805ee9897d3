# Copyright (C) 2026 anomalib-fewshot contributors
# SPDX-License-Identifier: Apache-2.0

"""A folder of many runs: the next one costs no more than the first, and a start reads each run once.

The figures: ``python -m pytest -s -m slow tests/integration/test_many_runs.py``.
"""

import time
from pathlib import Path
from statistics import median

import pytest

from anomalib_fewshot.pipelines.plan.job import Job
from anomalib_fewshot.pipelines.results.outcome import Outcome
from anomalib_fewshot.pipelines.results.row import Row
from anomalib_fewshot.pipelines.results.store import Store

NUM_RUNS = 10_000
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
