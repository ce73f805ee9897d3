# Copyright (C) 2026 anomalib-fewshot contributors
# SPDX-License-Identifier: Apache-2.0

"""Dry run: list the runs of a benchmark and estimate their duration."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from statistics import median

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from .job import Job, as_number, format_pool

# Shortest and longest typical run in seconds, on two CPU cores at 224 pixels. The shortest is an image statistic. The
# longest is CoftAD at k = 4 or, for all categories, UniAD.
TYPICAL_SECONDS = {"support": (1, 20), "other_categories": (1, 20), "all_categories": (1, 200)}


def print_plan(console: Console, jobs: Sequence[Job], seconds: Mapping[str, float]) -> None:
    """Print the number of runs per method, the support sets, and the estimated duration.

    Args:
        console (Console): Console to print to.
        jobs (Sequence[Job]): All runs.
        seconds (Mapping[str, float]): Measured duration of one run by method, in seconds. Methods may be missing.
    """
    table = Table("Method", "Runs", "Seconds per run", title=f"{len(jobs)} runs")
    for method, count in Counter(job.method for job in jobs).items():
        table.add_row(escape(method), str(count), f"{seconds[method]:.1f}" if method in seconds else "not measured yet")
    console.print(table)
    console.print(*_describe_supports(jobs), sep="\n", highlight=False, markup=False)
    console.print(_estimate_duration(jobs, seconds), highlight=False)


def _describe_supports(jobs: Sequence[Job]) -> Iterator[str]:
    for label in dict.fromkeys(job.label for job in jobs):
        matching = [job for job in jobs if job.label == label]
        k_shot = sorted({job.k_shot for job in matching}, key=as_number)
        seeds = sorted({job.seed for job in matching})
        text = f"{label}: k = {', '.join(map(str, k_shot))}; seeds {', '.join(map(str, seeds))}"
        pools = sorted({(job.unlabeled, job.contamination) for job in matching if job.unlabeled})
        yield "; ".join([text, *(format_pool(*pool) for pool in pools)])


def _estimate_duration(jobs: Sequence[Job], seconds: Mapping[str, float]) -> str:
    if not seconds:
        low = sum(TYPICAL_SECONDS[job.train_on][0] for job in jobs) / 60
        high = sum(TYPICAL_SECONDS[job.train_on][1] for job in jobs) / 60
        return (
            f"No run is measured yet. On two CPU cores, at 224 pixels and k = 4, all runs take {low:.0f} to {high:.0f} "
            "minutes, plus training on other categories if any."
        )
    default = median(seconds.values())
    total = sum(seconds.get(job.method, default) for job in jobs)
    return f"About {total / 60:.0f} minutes in total, run serially, based on the median of finished runs."
