# Copyright (C) 2026 anomalib-fewshot contributors
# SPDX-License-Identifier: Apache-2.0

"""The few-shot benchmark: methods on the same supports, over categories, k and seeds."""

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

from .plan.dry_run import show_plan
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
    k_shot: int | str | list[int | str] = [1, 2, 4, 8],  # noqa: B006  never changed; a list is what is shown
    seeds: int | list[int] = 5,
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
    """Compare methods on few normal images: every method on every category, k and seed, with the same supports.

    Each run is stored when it is finished. A benchmark that was ended continues when it is started again, and runs
    that failed are tried again. Runs of another configuration in the folder are left alone and left out.

    Ctrl-C and SIGTERM end the command within five seconds, with exit status 130 or 143. The runs in progress are lost,
    ``results.csv`` has the finished ones, and the report shows them if five seconds are enough to draw it.

    Args:
        methods (dict): Models by their name in the tables: ``class_path`` and ``init_args``, or a YAML file
            of them. An argument ``{grid: [...]}`` makes a method of each value.
        datasets (dict): Image datamodules by name: ``class_path``, ``init_args`` and ``categories``. Without categories
            these are the folders of the ``root`` that have a folder ``train``.
        k_shot (int | str | list[int | str]): Numbers of normal images; ``"all"`` is all of a category, of which the
            seed decides the order alone. Defaults to ``[1, 2, 4, 8]``.
        seeds (int | list[int]): Seeds, or how many there are, counted from 0. Defaults to ``5``.
        baseline (str | None): Method that the others are compared with. Defaults to ``None``, the first one.
        controls (str | None): Method to add controls of: without fine-tuning and with random weights, as far as it has
            ``num_steps`` and ``pre_trained``, and three plain statistics. Defaults to ``None``: no controls.
        overrides (dict | None): Settings by method: ``k_shot``, ``seeds``, arguments of ``model``, ``data`` and
            ``trainer``, and ``train_on``: ``support``; ``other_categories``: one training on the other categories for
            all k and support sets of a category; ``all_categories``: one model for the support sets of all categories.
            Defaults to ``None``.
        root (str | Path | None): Root of the datasets, instead of the one in their ``init_args``. Defaults to ``None``.
        results (str): Folder of the results. Defaults to ``"results/fewshot"``.
        runner (str | None): ``"serial"``, ``"processes"`` or ``"ray"``. Defaults to ``None``: a process for each GPU
            where there are several, else serial.
        workers (int | None): Number of processes or Ray workers. Defaults to ``None``: one for each GPU, and two
            without any where the runner is named.
        threads (int | None): Threads of each run on the CPU. Defaults to ``None``: all, or a worker's share.
        accelerator (str): Accelerator of Lightning's trainer. Defaults to ``"auto"``.
        latency_runs (int): Forward passes from which the latency is measured. Defaults to ``30``.
        cache_gib (float): GiB of decoded test images that each process keeps. Defaults to ``2.0``.
        dry_run (bool): Show the runs and an estimate, and do nothing. Defaults to ``False``.

    Returns:
        pd.DataFrame: The table of ``results.csv``, a row for each run and category.

    Raises:
        FileNotFoundError: If the file of a method is not there.
        ModuleNotFoundError: If Ray is asked for and not installed.
        OSError: If results cannot be written. What was finished before is kept.
        ValueError: If an argument is out of its range or names something that does not exist.

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
    jobs = make_jobs(specs, datasets, k_shot, seeds, controls=controls, overrides=overrides, root=root)
    baseline = _check_baseline(baseline, jobs)
    check_at_least(1, workers=workers, threads=threads)
    check_at_least(0, latency_runs=latency_runs)
    if dry_run:
        show_plan(console, jobs, _seconds(Path(results), jobs))
        return pd.DataFrame([vars(job) for job in jobs])
    run = _runner(runner, workers)
    store = Store(Path(results))
    config = {
        "methods": specs,
        "datasets": datasets,
        "k_shot": k_shot,
        "seeds": seeds,
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
        _run(jobs, store, run, Settings(accelerator, threads, latency_runs, cache_gib, store.trainings))
    except BaseException:
        with suppress(Exception):  # the runs so far are worth a report, but the reason of the end comes first
            _report(store, jobs, config)
        raise
    return _report(store, jobs, config)


def _report(store: Store, jobs: Sequence[Job], config: Mapping[str, Any]) -> pd.DataFrame:
    """Write the table and the report, and return the table."""
    table = store.write_table(jobs)
    if not table.empty:
        from .report import write_report  # draws: too much to import at every start of anomalib

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
        console.print(f"{done} of {len(jobs)} runs are there, {failures} of them failed. Report: {path}")
    return table


def _check_baseline(baseline: str | None, jobs: Sequence[Job]) -> str:
    names = list(dict.fromkeys(job.method for job in jobs))
    if baseline is not None and baseline not in names:
        msg = f"`baseline` must be the name of a method, got {baseline!r}. There are {names}."
        raise ValueError(msg)
    return names[0] if baseline is None else baseline


def _runner(name: str | None, workers: int | None) -> Runner:
    if name == "serial" and workers is not None:
        msg = f"`workers` must be left out with `runner: serial`, got {workers}. Take `processes`."
        raise ValueError(msg)
    if name is None:
        name = "processes" if workers or torch.cuda.device_count() > 1 else "serial"
    if name == "serial":
        return run_serial
    return partial(run_ray if name == "ray" else run_processes, workers=workers)


def _run(jobs: Sequence[Job], store: Store, runner: Runner, settings: Settings) -> None:
    """Carry out the runs that are not finished, and store each as it finishes."""
    finished = [job for job in jobs if store.is_finished(job)]
    pending = [job for job in jobs if not store.is_finished(job)]
    examples = _example_keys(jobs)
    _print_progress(len(jobs), len(pending), store.num_others(jobs))
    store.write_table(finished)
    with ProgressBar(len(pending)) as bar, closing(runner(_claimed(pending, store, examples, bar), settings)) as runs:
        for job, outcome in runs:
            store.save(job, outcome)
            bar.advance()
            bar.print_findings(outcome.findings)
            if not outcome.ok:
                bar.print_failure(f"{job}: {outcome.rows[0].error}")


def _claimed(pending: Sequence[Job], store: Store, example_keys: set[str], bar: ProgressBar) -> Iterator[Task]:
    """Yield the runs that no other process has taken."""
    for job in pending:
        claim = store.claim(job)
        if claim is None:
            bar.advance()
        else:
            bar.show(str(job))
            yield Task(job, job.key in example_keys, claim)


def _print_progress(num_jobs: int, num_pending: int, num_others: int) -> None:
    if num_pending < num_jobs:
        console.print(f"{num_jobs - num_pending} of {num_jobs} runs are finished already.")
    if num_others:
        console.print(f"{num_others} runs in the folder are of another configuration: they are left out, and kept.")


def _example_keys(jobs: Sequence[Job]) -> set[str]:
    """Return the runs that leave examples: the largest k and the first seed of each method."""
    order = sorted(jobs, key=lambda job: (as_number(job.k_shot), -job.seed))
    return set({(job.dataset, job.category, job.method): job.key for job in order}.values())


def _seconds(folder: Path, jobs: Sequence[Job]) -> dict[str, float]:
    """Return the median seconds of the finished runs of each method."""
    if not folder.exists():
        return {}
    return Store(folder).table(jobs).groupby("method")["seconds"].median().dropna().to_dict()
