# Copyright (C) 2026 anomalib-fewshot contributors
# SPDX-License-Identifier: Apache-2.0

"""One run of a benchmark as plain data, and its identity."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from math import inf
from typing import Any

from .spec import Spec, with_arguments

ALL = "all"  # a `k_shot`: all normal training images of a category
NOT_OF_TRAINING = {"method", "k_shot", "seed"}  # settings that a training on other categories does not depend on


@dataclass(frozen=True)
class Job:
    """One run: a method is trained on a support and is tested.

    All methods on one (dataset, category, k_shot, seed) have the same support.

    Args:
        method (str): Name of the method in the tables.
        dataset (str): Name of the dataset in the tables.
        category (str): Category, or an empty name where the dataset has none or all are tested at once.
        k_shot (int | str): Number of images in the support, or ``"all"`` normal training images.
        seed (int): Seed of the support, of the global generators, and of a model that has a ``seed``.
        model (dict): ``class_path`` and ``init_args`` of the model.
        data (dict): ``class_path`` and ``init_args`` of the datamodule that the support is chosen from.
        trainer (dict): Arguments of anomalib's engine.
        train_on (str): ``"support"``; ``"other_categories"``: one training on the other categories for all k
            and support sets; ``"all_categories"``: one model for the support sets of all categories. Defaults to
            ``"support"``.
        categories (tuple[str, ...]): All categories of the dataset, where it is trained on several.
        defaults (dict): Plain arguments of the model that are not given: another version may have others.
        has_own_data (bool): Whether an override changes ``data``, so that the support may be another than that of other
            methods. Defaults to ``False``.
    """

    method: str
    dataset: str
    category: str
    k_shot: int | str
    seed: int
    model: Spec
    data: Spec
    trainer: dict[str, Any]
    train_on: str = "support"
    categories: tuple[str, ...] = ()
    defaults: dict[str, Any] = field(default_factory=dict)
    has_own_data: bool = False

    @property
    def key(self) -> str:
        """Hash of all settings that the result depends on. The code is not among them."""
        return _hash(self._settings())

    @property
    def training_key(self) -> str:
        """Hash of the settings of a training on other categories, which runs of every k and support share."""
        return _hash({name: value for name, value in self._settings().items() if name not in NOT_OF_TRAINING})

    @property
    def data_key(self) -> str:
        """Hash of the datamodule's settings."""
        return _hash(self.data)

    @property
    def test_categories(self) -> tuple[str, ...]:
        """Categories that the model is tested on."""
        return self.categories if self.train_on == "all_categories" else (self.category,)

    @property
    def label(self) -> str:
        """Dataset and category in words."""
        return f"{self.dataset} {'all categories' if self.train_on == 'all_categories' else self.category}"

    def source(self, category: str) -> Spec:
        """Return the specification of the datamodule of a category."""
        return with_arguments(self.data, {"category": category}) if self.categories else self.data

    def _settings(self) -> dict[str, Any]:
        return {name: value for name, value in asdict(self).items() if name != "has_own_data"}  # `data` says it

    def __str__(self) -> str:
        """Return the job in a line."""
        return f"{self.method} on {self.label}, k = {self.k_shot}, seed {self.seed}"


def as_number(k_shot: float | str) -> float:
    """Return k as a number to sort by: ``all`` is infinity.

    Example:
        >>> sorted(["all", 8, 1], key=as_number)
        [1, 8, 'all']
    """
    return inf if k_shot == ALL else float(k_shot)


def _hash(content: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]
