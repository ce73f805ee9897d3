# Copyright (C) 2026 anomalib-fewshot contributors
# SPDX-License-Identifier: Apache-2.0

# ruff: noqa: N815  the names of anomalib's metrics

"""The columns of ``results.csv``: name, type, unit, label and meaning of each, in this place alone."""

from collections.abc import Iterable
from dataclasses import MISSING, asdict, dataclass, field, fields
from datetime import datetime, timezone
from itertools import groupby
from math import isnan, nan
from typing import Any

import pandas as pd

from anomalib_fewshot.pipelines.plan.job import Job

DOCS = """# Columns of `results.csv`

Each row is one run and category. A cell is empty if there is no value: no masks, no GPU, or a failed run. The JSON
files in `runs/` use the same names.

<!-- Made by `describe` of anomalib_fewshot/pipelines/results/row.py, where the meanings are. -->
"""


def column(group: str, meaning: str, default: Any = nan, *, unit: str = "", label: str = "") -> Any:  # noqa: ANN401
    """Return a field of :class:`Row`.

    Args:
        group (str): Heading in the documentation. A report takes columns by it.
        meaning (str): The column in a line of Markdown.
        default (Any): Value where there is none. Defaults to NaN.
        unit (str): Unit, if it has one.
        label (str): Heading in a report. Defaults to none: a report has no such column.
    """
    metadata = {"group": group, "meaning": meaning, "unit": unit, "label": label}
    return field(default=default, metadata=metadata)


def now() -> str:
    """Return the time in UTC, to the second."""
    return datetime.now(tz=timezone.utc).isoformat(timespec="seconds")


@dataclass(kw_only=True)
class Row:
    """A run and category in ``results.csv``. ``docs/results.md`` is made from it."""

    method: str = column("run", "Name of the method.", MISSING)
    dataset: str = column("run", "Name of the dataset.", MISSING)
    category: str = column("run", "Tested category; empty if the dataset has none.", MISSING)
    k_shot: int | str = column("run", "Number of images in the support set, or `all`.", MISSING, label="k")
    seed: int = column("run", "Seed of the support set, the generators, and the model if it has a seed.", MISSING)
    status: str = column("run", "`ok` or `failed`.", "ok")
    error: str = column("run", "Error of a failed run.", "")
    key: str = column("run", "Hash of all settings that affect the result; name of the file in `runs/`.", MISSING)
    finished: str = column("run", "Time at which the run finished, UTC.", MISSING)

    image_AUROC: float = column("accuracy", "Area under the ROC curve of image scores.", label="image AUROC")
    image_AUPR: float = column("accuracy", "Area under the precision-recall curve of image scores.", label="image AUPR")
    image_F1Score: float = column("accuracy", "F1 score of images at the model's threshold.", label="image F1")
    false_alarms: float = column(
        "accuracy",
        "Fraction of normal test images above the model's threshold.",
        label="false alarms",
    )
    recall: float = column(
        "accuracy",
        "Fraction of anomalous test images above the model's threshold.",
        label="recall",
    )
    guaranteed_fpr: float = column(
        "accuracy",
        "False-alarm rate that the threshold guarantees on average over support sets; empty without a guarantee.",
        label="guaranteed false-alarm rate",
    )
    pixel_AUROC: float = column("accuracy", "Area under the ROC curve of all pixels.", label="pixel AUROC")
    pixel_AUPRO: float = column(
        "accuracy",
        "Area under the per-region-overlap curve, up to a false positive rate of 0.3.",
        label="pixel PRO",
    )

    training_seconds: float = column(
        "cost", "Training on other categories, shared by all k and support sets.", unit="s",
        label="training on others",
    )  # fmt: skip
    fit_seconds: float = column("cost", "Fit, without validation batches.", unit="s", label="fit")
    test_seconds: float = column("cost", "Test on all test images.", unit="s", label="test")
    latency_p50_ms: float = column("cost", "Median latency of one image, after warm-up.", unit="ms", label="p50")
    latency_p95_ms: float = column("cost", "95th percentile of the latency of one image.", unit="ms", label="p95")
    peak_memory_mib: float = column(
        "cost",
        "Peak growth of the process memory in fit and test (Linux).",
        unit="MiB",
        label="memory",
    )
    gpu_memory_mib: float = column("cost", "Peak memory of torch on the GPU.", unit="MiB", label="GPU memory")
    checkpoint_mib: float = column("cost", "Size of the checkpoint.", unit="MiB", label="checkpoint")
    seconds: float = column("cost", "The whole run, including data loading and latency.", unit="s")

    backbone: str = column("settings", "Backbone, if the model has one.", "", label="backbone")
    weights: str = column("settings", "Hash of the model's weights before the fit.", "", label="weights")
    image_size: str = column("settings", "Height and width after the resize.", "", label="image size")
    augmentation: str = column("settings", "Augmentation, if the model has one.", "")
    steps: int | None = column("settings", "Optimizer steps, including those on other categories.", None, label="steps")
    train_on: str = column(
        "settings",
        "Training data: `the support`, `other categories` or `the supports of all categories`.",
        "",
        label="is trained on",
    )
    threshold: str = column(
        "settings", "Source of the threshold: `normal images`, `validation images`, `test images` or `none`.",
        "", label="threshold from",
    )  # fmt: skip

    support: str = column("data", "Hash of the support set; its manifest is in `supports/`.", "")
    test_normal: int | None = column("data", "Number of normal test images.", None)
    test_anomalous: int | None = column("data", "Number of anomalous test images.", None)

    device: str = column("machine", "Device of the model.", "")
    threads: int | None = column("machine", "Threads of torch on the CPU.", None)
    python: str = column("machine", "Version of Python.", "")
    torch: str = column("machine", "Version of torch.", "")
    anomalib: str = column("machine", "Version of anomalib.", "")
    anomalib_fewshot: str = column("machine", "Version of this package.", "")

    @classmethod
    def of(cls, job: Job, category: str, **values: Any) -> "Row":  # noqa: ANN401
        """Return the row of a run that ends now.

        Args:
            job (Job): The run.
            category (str): Category that was tested.
            **values (Any): Other columns.
        """
        names = ("method", "dataset", "k_shot", "seed", "key")
        return cls(category=category, finished=now(), **{name: getattr(job, name) for name in names}, **values)

    def to_json(self) -> dict[str, Any]:
        """Return the columns with ``None`` for NaN, which JSON does not have."""
        return {
            name: None if isinstance(value, float) and isnan(value) else value for name, value in asdict(self).items()
        }


@dataclass(frozen=True)
class Column:
    """A column of ``results.csv``."""

    name: str
    type: str
    group: str
    meaning: str
    unit: str
    label: str

    @property
    def heading(self) -> str:
        """Label and unit."""
        return f"{self.label}, {self.unit}" if self.unit else self.label


def columns() -> dict[str, Column]:
    """Return all columns by name.

    Example:
        >>> columns()["fit_seconds"].heading
        'fit, s'
    """
    return {part.name: Column(part.name, _type_name(part.type), **part.metadata) for part in fields(Row)}


def labelled_columns(group: str) -> dict[str, Column]:
    """Return the columns of a group that a report has."""
    return {name: column for name, column in columns().items() if column.group == group and column.label}


def as_table(rows: Iterable[dict[str, Any]]) -> pd.DataFrame:
    """Return rows as a table with all columns. Rows of an earlier version may lack some."""
    table = pd.DataFrame(list(rows), columns=list(columns()))
    return table.astype({name: float for name, column in columns().items() if column.type == "float"})


def describe() -> str:
    """Return ``docs/results.md``."""
    lines = [DOCS]
    for group, members in groupby(columns().values(), key=lambda column: column.group):
        lines += [f"## {group.capitalize()}\n", "| Column | Type | Unit | Meaning |", "|---|---|---|---|"]
        lines += [f"| `{column.name}` | {column.type} | {column.unit} | {column.meaning} |" for column in members]
        lines.append("")
    return "\n".join(lines).rstrip() + "\n"


def _type_name(kind: Any) -> str:  # noqa: ANN401
    """Return the type of a column in words: an optional one may be empty in a run that failed."""
    parts = getattr(kind, "__args__", (kind,))
    return " or ".join(part.__name__ for part in parts if part is not type(None))
