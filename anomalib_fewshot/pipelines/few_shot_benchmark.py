# Copyright (C) 2026 anomalib-fewshot contributors
# SPDX-License-Identifier: Apache-2.0

"""The few-shot benchmark: compare methods on identical support sets, over categories, k and seeds."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, suppress
from functools import partial
from pathlib import Path
from typing import Any, Literal

import pandas as pd
import torch
from jsonargparse.typing import Path_fr
from rich.console import Console

from anomalib_fewshot._cli.signals import set_hint
from anomalib_fewshot.models.components.checks import check_at_least

from .plan.dry_run import print_plan
from .plan.grid import make_jobs
from .plan.job import Job, as_number
from .plan.spec import read_spec
from .results.store import Store
from .run.environment import environment
from .run.progress import ProgressBar
from .run.runners import Runner, Task, check_main_guard, run_processes, run_ray, run_serial
from .run.worker import Settings

console = Console()


def benchmark(
    methods: dict[str, Path_fr | dict[str, Any]],
    datasets: dict[str, dict[str, Any]],
    k_shot: int | str | list[int | str] = [1, 2, 4, 8],  # noqa: B006  never modified; the help shows a list
    seeds: int | list[int] = 5,
    unlabeled: int | list[int] = 0,
    contamination: float | list[float] = 0.0,
    baseline: str | None = None,
    controls: str | None = None,
    overrides: dict[str, dict[str, Any]] | None = None,
    root: str | Path | None = None,
    results: str = "results/fewshot",
    runner: Literal["serial", "processes", "ray"] | None = None,
    workers: int | None = None,
    threads: int | None = None,
    accelerator: str = "auto",
    latency_runs: int = 30,
    cache_gib: float = 2.0,
    dry_run: bool = False,
) -> pd.DataFrame:
    """Compare methods on few normal images: each method on each category, k and seed, with identical support sets.

    Each run is stored when it finishes. The same call resumes an interrupted benchmark and retries failed runs. Runs of
    other configurations in the same folder are kept, but are not in the table or the report.

    Ctrl-C and SIGTERM end the command within five seconds, with exit status 130 or 143. The runs in progress are lost,
    ``results.csv`` has the finished ones, and the report shows them if five seconds are enough to draw it.

    Args:
        methods (dict): Models by their name in the tables: ``class_path`` and ``init_args``, or the path of a YAML
            file with them. An argument ``{grid: [...]}`` adds one method per value.
        datasets (dict): Image datamodules by name: ``class_path``, ``init_args`` and ``categories``. If ``categories``
            is missing, every folder in ``root`` that contains a folder ``train`` is a category.
        k_shot (int | str | list[int | str]): Sizes of the support set. ``"all"`` uses all normal training images of a
            category; the seed then only changes their order. Defaults to ``[1, 2, 4, 8]``.
        seeds (int | list[int]): List of seeds, or the number of seeds, starting at 0. Defaults to ``5``.
        unlabeled (int | list[int]): Numbers of unlabeled images, drawn from the other normal training images. Models
            that use them get them in addition to the support set. Memory banks of anomalib, such as ``Patchcore``, are
            fitted to both. Other methods, and ``k_shot: all``, run only with 0. Defaults to ``0``.
        contamination (float | list[float]): Shares of the unlabeled images that are drawn from the anomalous test
            images, which are then not tested. Used only with unlabeled images. Defaults to ``0.0``.
        baseline (str | None): Method to compare the other methods with. Defaults to ``None``: the first method.
        controls (str | None): Method for which to add controls: without fine-tuning (if it has ``num_steps``), with
            random weights (if it has ``pre_trained``), and three image statistics. Defaults to ``None``: no controls.
        overrides (dict | None): Settings by method: ``k_shot``, ``seeds``, arguments of ``model``, ``data`` and
            ``trainer``, and ``train_on``. ``train_on`` is ``support``; ``other_categories``: one training on the other
            categories, shared by all k and support sets; or ``all_categories``: one model for the support sets of all
            categories. Defaults to ``None``.
        root (str | Path | None): Root folder of the datasets. Replaces the ``root`` in their ``init_args``. Defaults
            to ``None``.
        results (str): Folder for the results. Defaults to ``"results/fewshot"``.
        runner (str | None): ``"serial"``, ``"processes"`` or ``"ray"``. Defaults to ``None``: one process per GPU
            if there are several, otherwise serial.
        workers (int | None): Number of processes or Ray workers. Defaults to ``None``: one per GPU, or two without
            a GPU.
        threads (int | None): CPU threads per run. Defaults to ``None``: all threads, divided among the workers.
        accelerator (str): Accelerator of Lightning's trainer. Defaults to ``"auto"``.
        latency_runs (int): Number of forward passes for the latency; 0 to skip it. Defaults to ``30``.
        cache_gib (float): Memory per process for decoded test images, in GiB. Defaults to ``2.0``.
        dry_run (bool): Only list the runs and estimate the time. Defaults to ``False``.

    Returns:
        pd.DataFrame: The content of ``results.csv``, one row per run and category.

    Raises:
        FileNotFoundError: If the YAML file of a method does not exist.
        ModuleNotFoundError: If ``runner`` is ``"ray"`` and Ray is not installed.
        OSError: If results cannot be written. Finished runs are kept.
        ValueError: If an argument is out of range or names something that does not exist.

    Example:
        >>> from anomalib_fewshot import benchmark
        >>> table = benchmark(
        ...     methods={"CoftAD": {"class_path": "CoftAD"}, "Patchcore": {"class_path": "Patchcore"}},
        ...     datasets={"ELPV": {"class_path": "ELPV", "categories": ["mono", "poly"]}},
        ...     k_shot=[1, 4],
        ... )  # doctest: +SKIP
    """
    check_main_guard()
    specs = {name: read_spec(spec) for name, spec in methods.items()}
    jobs = make_jobs(
        specs,
        datasets,
        k_shot,
        seeds,
        controls=controls,
        overrides=overrides,
        root=root,
        unlabeled=unlabeled,
        contamination=contamination,
    )
    baseline = _resolve_baseline(baseline, jobs)
    check_at_least(1, workers=workers, threads=threads)
    check_at_least(0, latency_runs=latency_runs)
    if dry_run:
        print_plan(console, jobs, _median_seconds(Path(results), jobs))
        return pd.DataFrame([vars(job) for job in jobs])
    run = _select_runner(runner, workers)
    store = Store(Path(results))
    config = {
        "methods": specs,
        "datasets": datasets,
        "k_shot": k_shot,
        "seeds": seeds,
        "unlabeled": unlabeled,
        "contamination": contamination,
        "baseline": baseline,
        "controls": controls,
        "overrides": overrides,
        "root": None if root is None else str(root),
        "results": results,
        "threads": threads,
        "accelerator": accelerator,
        "latency_runs": latency_runs,
        "cache_gib": cache_gib,
    }
    store.write_settings(config, environment())
    set_hint("Finished runs are kept. Run the same command to resume.")
    try:
        _run_jobs(jobs, store, run, Settings(accelerator, threads, latency_runs, cache_gib, store.trainings))
    except BaseException:
        with suppress(Exception):  # report the finished runs, but never hide the original error
            _write_report(store, jobs, config)
        raise
    return _write_report(store, jobs, config)


def _write_report(store: Store, jobs: Sequence[Job], config: Mapping[str, Any]) -> pd.DataFrame:
    """Write the table and the report, and return the table."""
    table = store.write_table(jobs)
    if not table.empty:
        from .report import write_report  # imports matplotlib, which slows down the start of anomalib

        path = write_report(
            store,
            table,
            baseline=config["baseline"],
            config=config,
            environment=environment(),
            jobs=jobs,
        )
        failures = table.loc[table["status"] != "ok", "key"].nunique()
        done = table["key"].nunique()
        console.print(f"{done} of {len(jobs)} runs are stored, {failures} of them failed. Report: {path}")
    return table


def _resolve_baseline(baseline: str | None, jobs: Sequence[Job]) -> str:
    names = list(dict.fromkeys(job.method for job in jobs))
    if baseline is not None and baseline not in names:
        msg = f"`baseline` must be the name of a method, got {baseline!r}. Choose one of {names}."
        raise ValueError(msg)
    return names[0] if baseline is None else baseline


def _select_runner(name: str | None, workers: int | None) -> Runner:
    if name == "serial" and workers is not None:
        msg = f"`workers` must not be set with `runner: serial`, got {workers}. Use `runner: processes`."
        raise ValueError(msg)
    if name is None:
        name = "processes" if workers or torch.cuda.device_count() > 1 else "serial"
    if name == "serial":
        return run_serial
    return partial(run_ray if name == "ray" else run_processes, workers=workers)


def _run_jobs(jobs: Sequence[Job], store: Store, runner: Runner, settings: Settings) -> None:
    """Execute the unfinished runs, and store each result as soon as it arrives."""
    finished = [job for job in jobs if store.is_finished(job)]
    pending = [job for job in jobs if not store.is_finished(job)]
    examples = _example_keys(jobs)
    _print_resumed(len(jobs), len(pending), store.num_other_runs(jobs))
    store.write_table(finished)
    with (
        ProgressBar(len(pending)) as bar,
        closing(runner(_claim_tasks(pending, store, examples, bar), settings)) as runs,
    ):
        for job, outcome in runs:
            store.save(job, outcome)
            bar.advance()
            bar.print_issues(outcome.issues)
            if not outcome.ok:
                bar.print_failure(f"{job}: {outcome.rows[0].error}")


def _claim_tasks(pending: Sequence[Job], store: Store, example_keys: set[str], bar: ProgressBar) -> Iterator[Task]:
    """Claim and yield the runs that no other process has claimed."""
    for job in pending:
        claim = store.claim(job)
        if claim is None:
            bar.advance()
        else:
            bar.set_current(str(job))
            yield Task(job, job.key in example_keys, claim)


def _print_resumed(num_jobs: int, num_pending: int, num_other_runs: int) -> None:
    if num_pending < num_jobs:
        console.print(f"{num_jobs - num_pending} of {num_jobs} runs are already finished.")
    if num_other_runs:
        console.print(
            f"The folder also contains {num_other_runs} runs of other configurations. They are kept but not reported.",
        )


def _example_keys(jobs: Sequence[Job]) -> set[str]:
    """Return the keys of the runs that save examples: the largest k and first seed of each method and category.

    Runs with different numbers or contaminations of unlabeled images have their own examples.
    """
    keys: dict[tuple[str, str, str, int, float], str] = {}
    for job in sorted(jobs, key=lambda job: (as_number(job.k_shot), -job.seed)):
        cell = (job.dataset, job.category, job.method, job.unlabeled, job.contamination)
        keys[cell] = job.key  # the last one wins
    return set(keys.values())


def _median_seconds(folder: Path, jobs: Sequence[Job]) -> dict[str, float]:
    """Return the median duration of the finished runs of each method, in seconds."""
    if not folder.exists():
        return {}
    return Store(folder).table(jobs).groupby("method")["seconds"].median().dropna().to_dict()
