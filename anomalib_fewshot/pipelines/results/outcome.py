# Copyright (C) 2026 anomalib-fewshot contributors
# SPDX-License-Identifier: Apache-2.0

"""The outcome of a run: plain data that can be sent between machines."""

from dataclasses import dataclass, field

from anomalib_fewshot.data.manifest import SupportManifest
from anomalib_fewshot.data.validation.issue import DataIssue
from anomalib_fewshot.pipelines.plan.job import Job

from .row import Row


@dataclass
class Outcome:
    """What a run leaves.

    Args:
        rows (list[Row]): A row for each category that was tested.
        manifests (list[SupportManifest]): The support of each category that was tested, none if the run failed.
        scores (dict): Label and raw score of each test image, by its path.
        examples (dict): JPEG files of test images beside their heat maps, by category and name.
        findings (list[DataIssue]): Warnings of the check of the images.
    """

    rows: list[Row]
    manifests: list[SupportManifest] = field(default_factory=list)
    scores: dict[str, list[float]] = field(default_factory=dict)
    examples: dict[tuple[str, str], bytes] = field(default_factory=dict)
    findings: list[DataIssue] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """Whether the run has not failed."""
        return all(row.status == "ok" for row in self.rows)


def failed(job: Job, error: str) -> Outcome:
    """Return the outcome of a run that failed."""
    return Outcome([Row.of(job, category, status="failed", error=error) for category in job.test_categories])
