# Copyright (C) 2026 anomalib-fewshot contributors
# SPDX-License-Identifier: Apache-2.0

"""Outcome of a run, as plain data that can be sent between processes and machines."""

from dataclasses import dataclass, field
from typing import Any

from anomalib_fewshot.data.manifest import SupportManifest
from anomalib_fewshot.data.validation.issue import DataIssue
from anomalib_fewshot.pipelines.plan.job import Job

from .row import Row


@dataclass
class Outcome:
    """Everything that a run produces.

    Args:
        rows (list[Row]): One row per tested category.
        manifests (list[SupportManifest]): Support set of each tested category. Empty if the run failed.
        scores (dict): Label and raw score of each test image, by its path.
        examples (dict): JPEG files of test images next to their heat maps, by category and name.
        issues (list[DataIssue]): Warnings from image validation.
    """

    rows: list[Row]
    manifests: list[SupportManifest] = field(default_factory=list)
    scores: dict[str, list[float]] = field(default_factory=dict)
    examples: dict[tuple[str, str], bytes] = field(default_factory=dict)
    issues: list[DataIssue] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """Whether the run succeeded."""
        return all(row.status == "ok" for row in self.rows)


def failed_outcome(job: Job, error: str, **columns: Any) -> Outcome:  # noqa: ANN401
    """Return the outcome of a failed run.

    Args:
        job (Job): The run.
        error (str): Error message.
        **columns (Any): Columns that are known, such as the package versions.
    """
    rows = [
        Row.from_job(job, category, status="failed", error=error, **_settings(job) | columns)
        for category in job.test_categories
    ]
    return Outcome(rows)


def _settings(job: Job) -> dict[str, str]:
    """Return the columns that the configuration of a run determines, if the arguments have plain values."""
    arguments = job.defaults | job.model.get("init_args", {})
    columns = {"train_on": job.train_on}
    for name in ("backbone", "image_size", "augmentation"):
        value = arguments.get(name)
        if isinstance(value, str | int):
            columns[name] = str(value)
        elif isinstance(value, list | tuple):
            columns[name] = "x".join(map(str, value))
    return columns
