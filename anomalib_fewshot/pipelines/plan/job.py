# Copyright (C) 2026 anomalib-fewshot contributors
# SPDX-License-Identifier: Apache-2.0

"""One run of a benchmark as plain data, and its hash."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from math import inf
from typing import Any

from .spec import Spec, with_arguments

ALL = "all"  # value of `k_shot` that uses all normal training images of a category
POOL = ("unlabeled", "contamination", "append_unlabeled")  # settings of the unlabeled images
UNUSED_IN_TRAINING = {"method", "k_shot", "seed", *POOL}  # do not affect a training on other categories


@dataclass(frozen=True)
class Job:
    """One run: fit and test of a method on one support set.

    All methods with the same (dataset, category, k_shot, seed) use the same support set. With the same unlabeled and
    contamination, they also have the same unlabeled images.

    Args:
        method (str): Name of the method in the tables.
        dataset (str): Name of the dataset in the tables.
        category (str): Category. Empty if the dataset has no categories, or if all are tested together.
        k_shot (int | str): Size of the support set, or ``"all"`` for all normal training images.
        seed (int): Seed of the support set, the global random generators, and the model if it has a ``seed``.
        model (dict): ``class_path`` and ``init_args`` of the model.
        data (dict): ``class_path`` and ``init_args`` of the datamodule from which the support set is drawn.
        trainer (dict): Arguments of anomalib's engine.
        train_on (str): ``"support"``; ``"other_categories"``: one training on the other categories for all k
            and support sets; ``"all_categories"``: one model for the support sets of all categories. Defaults to
            ``"support"``.
        categories (tuple[str, ...]): All categories of the dataset, if the method is trained on several of them.
        defaults (dict): Default values of the model's other arguments. They are part of the hash, because another
            version may have other defaults.
        has_own_data (bool): Whether an override changes ``data``. The support set may then differ from the other
            methods. Defaults to ``False``.
        unlabeled (int): Number of unlabeled images. Defaults to ``0``.
        contamination (float): Share of the unlabeled images that is anomalous. Defaults to ``0.0``.
        append_unlabeled (bool): Train on the support set and the unlabeled images. Defaults to ``False``: the model
            uses the unlabeled images itself, or there are none.
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
    unlabeled: int = 0
    contamination: float = 0.0
    append_unlabeled: bool = False

    @property
    def key(self) -> str:
        """Hash of all settings that affect the result, excluding the version of the code."""
        return _hash(self._settings())

    @property
    def training_key(self) -> str:
        """Hash of the settings of a training on other categories, shared by all k and support sets."""
        return _hash({name: value for name, value in self._settings().items() if name not in UNUSED_IN_TRAINING})

    @property
    def data_key(self) -> str:
        """Hash of the settings of the datamodule."""
        return _hash(self.data)

    @property
    def test_categories(self) -> tuple[str, ...]:
        """Categories that the model is tested on."""
        return self.categories if self.train_on == "all_categories" else (self.category,)

    @property
    def label(self) -> str:
        """Dataset and category as text."""
        return f"{self.dataset} {'all categories' if self.train_on == 'all_categories' else self.category}"

    def source(self, category: str) -> Spec:
        """Return the datamodule specification of a category."""
        return with_arguments(self.data, {"category": category}) if self.categories else self.data

    def _settings(self) -> dict[str, Any]:
        unused = {"has_own_data"}  # implied by `data`
        if not self.unlabeled:
            unused.update(POOL)  # keeps the hashes of runs that were stored before these settings existed
        return {name: value for name, value in asdict(self).items() if name not in unused}

    def __str__(self) -> str:
        """Return a one-line description."""
        parts = [f"{self.method} on {self.label}", f"k = {self.k_shot}", f"seed {self.seed}"]
        if self.unlabeled:
            parts.append(format_pool(self.unlabeled, self.contamination))
        return ", ".join(parts)


def as_number(k_shot: float | str) -> float:
    """Return k as a sortable number, where ``all`` is infinity.

    Example:
        >>> sorted(["all", 8, 1], key=as_number)
        [1, 8, 'all']
    """
    return inf if k_shot == ALL else float(k_shot)


def format_pool(unlabeled: float, contamination: float) -> str:
    """Return a description of the unlabeled images. Empty if there are none.

    Example:
        >>> format_pool(60, 0.0), format_pool(60, 0.05)
        ('60 unlabeled images', '60 unlabeled images, 5 % of them anomalous')
    """
    if not unlabeled:
        return ""
    text = f"{unlabeled:.0f} unlabeled images"
    return f"{text}, {100 * contamination:g} % of them anomalous" if contamination else text


def _hash(content: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]
