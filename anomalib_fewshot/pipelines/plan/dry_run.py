# Copyright (C) 2026 anomalib-fewshot contributors
# SPDX-License-Identifier: Apache-2.0

"""The runs of a benchmark in a table, and an estimate of their time."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from statistics import median

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from .job import Job, as_number

# Seconds of a run on two cores at 224 pixels: a plain statistic, and CoftAD at k = 4 or, of all categories, UniAD.
USUAL_SECONDS = {"support": (1, 20), "other_categories": (1, 20), "all_categories": (1, 200)}


def show_plan(console: Console, jobs: Sequence[Job], seconds: Mapping[str, float]) -> None:
    """Print the runs by method, the supports, and an estimate.

    Args:
        console (Console): Where to print.
        jobs (Sequence[Job]): All runs.
        seconds (Mapping[str, float]): Seconds of a run by method, as far as they are known.
    """
    table = Table("Method", "Runs", "Seconds a run", title=f"{len(jobs)} runs")
    for method, count in Counter(job.method for job in jobs).items():
        table.add_row(escape(method), str(count), f"{seconds[method]:.1f}" if method in seconds else "not measured yet")
    console.print(table)
    console.print(*_supports(jobs), sep="\n", highlight=False, markup=False)
    console.print(_estimate(jobs, seconds), highlight=False)


def _supports(jobs: Sequence[Job]) -> Iterator[str]:
    for label in dict.fromkeys(job.label for job in jobs):
        own = [job for job in jobs if job.label == label]
        k_shot = ", ".join(map(str, sorted({job.k_shot for job in own}, key=as_number)))
        yield f"{label}: k = {k_shot}; seeds {', '.join(map(str, sorted({job.seed for job in own})))}"


def _estimate(jobs: Sequence[Job], seconds: Mapping[str, float]) -> str:
    if not seconds:
        low, high = (sum(part) / 60 for part in zip(*(USUAL_SECONDS[job.train_on] for job in jobs), strict=True))
        return (
            f"Nothing is measured here yet. On two cores, at 224 pixels and k = 4, it would be {low:.0f} to "
            f"{high:.0f} minutes in all, without a training on other categories."
        )
    usual = median(seconds.values())
    total = sum(seconds.get(job.method, usual) for job in jobs)
    return f"About {total / 60:.0f} minutes in all, one run after the other, by the medians of the finished runs."
