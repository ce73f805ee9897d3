# Copyright (C) 2026 anomalib-fewshot contributors
# SPDX-License-Identifier: Apache-2.0

"""What a sweep is going to do, and about how long it takes."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from statistics import median

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from .jobs import Job
from .shots import as_number

# Of a run on two cores at 224 pixels: of a plain statistic, and of CoftAD at k = 4; of all categories, of UniAD.
USUAL_SECONDS = {"support": (1, 20), "others": (1, 20), "all": (1, 200)}


def show_plan(console: Console, jobs: Sequence[Job], seconds: Mapping[str, float]) -> None:
    """Print the runs of a sweep by method, its supports, and an estimate.

    Args:
        console (Console): Where to print.
        jobs (Sequence[Job]): All runs.
        seconds (Mapping[str, float]): Seconds that a run took, by method, as far as it is known.
    """
    table = Table("Method", "Runs", "Seconds a run", title=f"{len(jobs)} runs")
    for method, count in Counter(job.method for job in jobs).items():
        table.add_row(escape(method), str(count), f"{seconds[method]:.1f}" if method in seconds else "not measured yet")
    console.print(table)
    console.print(*_supports(jobs), sep="\n", highlight=False, markup=False)
    console.print(_estimate(jobs, seconds), highlight=False)


def _supports(jobs: Sequence[Job]) -> Iterator[str]:
    for place in dict.fromkeys(job.place for job in jobs):
        own = [job for job in jobs if job.place == place]
        k_shot, seeds = (", ".join(map(str, sorted(values, key=as_number))) for values in _values(own))
        yield f"{place}: k = {k_shot}; seeds {seeds}"


def _values(jobs: Sequence[Job]) -> tuple[set[int | str], set[int]]:
    return {job.k_shot for job in jobs}, {job.seed for job in jobs}


def _estimate(jobs: Sequence[Job], seconds: Mapping[str, float]) -> str:
    if not seconds:
        least, most = (sum(part) / 60 for part in zip(*(USUAL_SECONDS[job.learns_from] for job in jobs), strict=True))
        return (
            f"Nothing is measured here yet. On two cores, at 224 pixels and k = 4, it would be {least:.0f} to "
            f"{most:.0f} minutes in all, without a training on other categories."
        )
    usual = median(seconds.values())
    total = sum(seconds.get(job.method, usual) for job in jobs)
    return f"About {total / 60:.0f} minutes in all, one run after the other, by the medians of the finished runs."
