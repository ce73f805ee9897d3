# Copyright (C) 2026 anomalib-fewshot contributors
# SPDX-License-Identifier: Apache-2.0

"""The columns of ``results.csv``: one place for all, and the page that is made from it."""

import json
import math
from pathlib import Path

import pytest

from anomalib_fewshot.pipelines.plan.job import Job
from anomalib_fewshot.pipelines.results.row import Row, as_table, columns, labeled_columns, render_docs

DOCS = Path(__file__).parents[3] / "docs"
JOB = Job("A", "parts", "", "all", 3, {"class_path": "A"}, {"class_path": "D"}, {}, "all_categories", ("bolt", "nut"))
FORMER = {
    *("unlabeled", "contamination"),
    *("method", "dataset", "category", "k_shot", "seed", "key", "finished", "status", "error"),
    *("image_AUROC", "image_AUPR", "image_F1Score", "pixel_AUROC", "pixel_AUPRO", "threshold"),
    *("fit_seconds", "test_seconds", "steps", "checkpoint_mib", "peak_memory_mib", "gpu_memory_mib"),
    *("latency_p50_ms", "latency_p95_ms", "training_seconds", "device", "threads", "backbone", "image_size"),
    *("augmentation", "train_on", "weights", "python", "torch", "anomalib", "anomalib_fewshot", "seconds"),
    *("support", "test_normal", "test_anomalous"),
    *("false_alarms", "recall", "guaranteed_fpr"),
    *("image_F1Max", "pixel_AP", "pixel_F1Max", "pixel_AUPIMO", "backbone_weights", "commit"),
}


def test_docs_are_up_to_date() -> None:
    page = (DOCS / "results.md").read_text(encoding="utf-8")
    assert page == render_docs(), "Regenerate it with `render_docs` of anomalib_fewshot/pipelines/results/row.py."
    assert "(results.md)" in (DOCS / "benchmark.md").read_text(encoding="utf-8")


def test_names_are_those_of_tables_that_users_have() -> None:
    assert set(columns()) == FORMER


def test_every_column_has_a_meaning_and_a_type() -> None:
    assert all(column.meaning.endswith(".") for column in columns().values())
    assert {column.type for column in columns().values()} == {"str", "int", "float", "int or str"}
    units = {column.name.rpartition("_")[2]: column.unit for column in columns().values() if column.unit}
    assert units == {"seconds": "s", "ms": "ms", "mib": "MiB"}


def test_labels_are_those_of_a_report() -> None:
    assert [column.heading for column in labeled_columns("cost").values()][:2] == [
        "training on other categories, s",
        "fit, s",
    ]
    assert list(labeled_columns("accuracy")) == [
        *("image_AUROC", "image_AUPR", "image_F1Max", "image_F1Score", "false_alarms", "recall", "guaranteed_fpr"),
        *("pixel_AUROC", "pixel_AUPRO", "pixel_AP", "pixel_F1Max", "pixel_AUPIMO"),
    ]
    assert "augmentation" not in labeled_columns("settings")
    assert columns()["threshold"].heading == "threshold from"


def test_a_row_of_a_run_survives_json_and_a_table() -> None:
    row = Row.from_job(JOB, "nut", image_AUROC=0.75, steps=4)
    assert (row.method, row.category, row.k_shot, row.seed, row.key, row.status) == (
        "A",
        "nut",
        "all",
        3,
        JOB.key,
        "ok",
    )
    content = json.loads(json.dumps(row.to_json(), allow_nan=False))
    assert content["pixel_AUROC"] is None
    (found,) = as_table([content]).itertuples()
    assert (found.image_AUROC, found.steps, found.k_shot) == (0.75, 4, "all")
    assert math.isnan(found.pixel_AUROC)
    assert as_table([content]).to_csv(index=False).splitlines()[1].count("4.0") == 0  # integers stay integers
    assert list(as_table([])) == list(columns())


def test_a_row_needs_its_run() -> None:
    with pytest.raises(TypeError, match="'method', 'dataset', 'category', 'k_shot', 'seed', 'key', and 'finished'"):
        Row()
