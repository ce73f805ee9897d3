# Copyright (C) 2026 anomalib-fewshot contributors
# SPDX-License-Identifier: Apache-2.0

"""Scores of test images in the stored runs."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePath

HEADER = [
    "method",
    "dataset",
    "category",
    "k_shot",
    "unlabeled",
    "contamination",
    "seed",
    "path",
    "label",
    "score",
]  # columns of scores.csv


@dataclass(frozen=True)
class ImageScore:
    """Raw score of a test image. The label is 1 for an anomalous image and 0 for a normal one."""

    category: str
    path: str
    label: int
    score: float


def find_category(path: str, categories: Sequence[str]) -> str:
    """Return the category of a test image.

    With several categories in a run, it is the last category that is a folder of the path. It is empty if none is.

    Example:
        >>> find_category("data/nut/test/bent/000.png", ["bolt", "nut"])
        'nut'
        >>> find_category("data/images/000.png", ["bolt"])
        'bolt'
    """
    if len(categories) == 1:
        return categories[0]
    folders = PurePath(path).as_posix()
    positions = {category: folders.rfind(f"/{category}/") for category in categories}
    last = max(categories, key=lambda category: positions[category])
    return last if positions[last] >= 0 else ""
