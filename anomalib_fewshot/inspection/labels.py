# Copyright (C) 2026 anomalib-fewshot contributors
# SPDX-License-Identifier: Apache-2.0

"""Labels: pictures that a person has marked as good or bad. A CSV file with the columns path and label keeps them."""

import csv
import io
from collections.abc import Mapping
from pathlib import Path

from anomalib_fewshot.atomic import write_atomically
from anomalib_fewshot.errors import DataValidationError

LABELS = "labels.csv"
KINDS = ("good", "bad")


def read_labels(path: Path) -> dict[str, str]:
    """Return the label of each picture, by its path in the folder of new pictures.

    Args:
        path (Path): CSV file with the columns path and label.

    Raises:
        DataValidationError: If a column is missing or a label is neither good nor bad.
    """
    labels: dict[str, str] = {}
    text = path.read_text(encoding="utf-8-sig", errors="surrogateescape")  # spreadsheets add a byte order mark
    reader = csv.DictReader(io.StringIO(text))
    if not {"path", "label"} <= set(reader.fieldnames or ()):
        msg = f"Labels must have the columns path and label, got {reader.fieldnames}. File: {path}"
        raise DataValidationError(msg)
    for row in reader:
        if row["label"] not in KINDS:
            msg = f"A label must be good or bad, got {row['label']!r} in line {reader.line_num}. File: {path}"
            raise DataValidationError(msg)
        labels[row["path"]] = row["label"]
    return labels


def write_labels(path: Path, labels: Mapping[str, str]) -> None:
    """Write the labels, sorted by path."""
    write_atomically(path, format_labels(labels).encode("utf-8", errors="surrogateescape"))


def format_labels(labels: Mapping[str, str]) -> str:
    """Return the labels as CSV text, sorted by path."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(("path", "label"))
    writer.writerows(sorted(labels.items()))
    return text.getvalue()


def describe_missed(labels: Mapping[str, str], verdicts: Mapping[str, str]) -> str:
    """Return how many of the pictures marked bad are called good, or an empty string without such marks.

    Args:
        labels (Mapping[str, str]): Label by path.
        verdicts (Mapping[str, str]): Verdict by path.

    Example:
        >>> describe_missed({"a.png": "bad", "b.png": "bad", "c.png": "good"}, {"a.png": "good", "b.png": "defect"})
        'Of 2 pictures marked bad, 1 is called good (50 %).'
    """
    bad = [path for path, label in labels.items() if label == "bad" and path in verdicts]
    if not bad:
        return ""
    missed = sum(verdicts[path] == "good" for path in bad)
    count = "1 picture" if len(bad) == 1 else f"{len(bad)} pictures"
    verb = "is" if missed == 1 else "are"
    return f"Of {count} marked bad, {missed} {verb} called good ({100 * missed / len(bad):.0f} %)."
