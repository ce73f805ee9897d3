# Copyright (C) 2026 anomalib-fewshot contributors
# SPDX-License-Identifier: Apache-2.0

"""The runs of a benchmark: every method on every category, k and seed. Nothing is read but names of folders."""

import hashlib
import inspect
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import product
from pathlib import Path
from typing import Any

from anomalib.data import AnomalibDataModule
from anomalib.models import AnomalibModule
from lightning.pytorch import Callback

from anomalib_fewshot.data.few_shot import category_folders, check_category

from .shots import ALL, as_number
from .specs import Spec, check, find_class, instantiate, read_spec, variants

GRID = {"k_shot", "seeds", "data"}  # of the overrides, what says which runs there are
OVERRIDES = GRID | {"model", "trainer", "learns_from"}
LEARNS_FROM = ("support", "others", "all")
STATISTICS = {"mean": "mean brightness", "spread": "spread of grey values", "border": "brightness of the border"}


@dataclass(frozen=True)
class Job:
    """One run: a method learns from a support and is tested.

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
        learns_from (str): ``"support"``; ``"others"``: a training on the other categories, which serves every k and
            support of this one; or ``"all"``: one model for the supports of all categories. Defaults to ``"support"``.
        categories (tuple[str, ...]): All categories of the dataset, where it learns from several.
        defaults (dict): Plain arguments of the model that are not given: another version may have others.
    """

    method: str
    dataset: str
    category: str
    k_shot: int | str
    seed: int
    model: Spec
    data: Spec
    trainer: dict[str, Any]
    learns_from: str = "support"
    categories: tuple[str, ...] = ()
    defaults: dict[str, Any] = field(default_factory=dict)

    @property
    def key(self) -> str:
        """What identifies the run: it changes with any setting that the result depends on, but not with the code."""
        return _hash(asdict(self))

    @property
    def training_key(self) -> str:
        """What identifies a training on other categories: its runs differ in k and support."""
        return _hash({name: value for name, value in asdict(self).items() if name not in {"method", "k_shot", "seed"}})

    @property
    def tested(self) -> tuple[str, ...]:
        """The categories that it is tested on."""
        return self.categories if self.learns_from == "all" else (self.category,)

    @property
    def place(self) -> str:
        """Where it is tested, in words."""
        return f"{self.dataset} {'all categories' if self.learns_from == 'all' else self.category}"

    def source(self, category: str) -> Spec:
        """Return the specification of the datamodule of one of its categories."""
        return _with(self.data, {"category": category}) if self.categories else self.data

    def __str__(self) -> str:
        """Return the job in a line."""
        return f"{self.method} on {self.place}, k = {self.k_shot}, seed {self.seed}"


def make_jobs(
    methods: Mapping[str, str | Path | Spec],
    datasets: Mapping[str, Spec],
    k_shot: int | str | Sequence[int | str],
    seeds: int | Sequence[int],
    *,
    controls: str | None = None,
    overrides: Mapping[str, Mapping[str, Any]] | None = None,
    root: str | Path | None = None,
) -> list[Job]:
    """Return the runs of a grid, those on the same images one after the other.

    The arguments are those of :func:`anomalib_fewshot.benchmark`.

    Raises:
        FileNotFoundError: If the file of a method is not there.
        ValueError: If a model, dataset, category, argument or override does not exist, or if a number is out of range.
    """
    overrides = overrides or {}
    models = _models(methods, controls, overrides)
    _check_overrides(overrides, [*methods, *models])
    seeded = {name for name, (spec, _) in models.items() if _takes_seed(spec)}
    jobs = []
    for dataset, entry in datasets.items():
        categories = dict(_categories(dataset, entry, root))
        for method, (model, override) in models.items():
            own: dict[str, Any] = {"k_shot": k_shot, "seeds": seeds, "data": {}, "trainer": {}}
            own |= {"learns_from": "support", **override}
            _check_several(method, own["learns_from"], dataset, list(categories))
            several = () if own["learns_from"] == "support" else tuple(categories)
            tests = {"": next(iter(categories.values()))} if own["learns_from"] == "all" else categories
            numbers = product(tests.items(), _seeds(own["seeds"]), _numbers("k_shot", own["k_shot"], 1, ALL))
            for (category, data), seed, k in numbers:
                own_model = _with(model, {"seed": seed} if method in seeded else {})
                settings = (own_model, _with(data, own["data"]), dict(own["trainer"]), own["learns_from"], several)
                jobs.append(Job(method, dataset, category, k, seed, *settings, _defaults(own_model)))
    cells = list(dict.fromkeys((job.dataset, job.category) for job in jobs))
    return sorted(jobs, key=lambda job: (cells.index((job.dataset, job.category)), job.seed, as_number(job.k_shot)))


def _models(
    methods: Mapping[str, str | Path | Spec],
    controls: str | None,
    overrides: Mapping[str, Mapping[str, Any]],
) -> dict[str, tuple[Spec, dict[str, Any]]]:
    """Return the model of each method, and its overrides: grids are spread out, and controls added."""
    if not methods:
        msg = "`methods` must name at least one method, got none."
        raise ValueError(msg)
    models: dict[str, tuple[Spec, dict[str, Any]]] = {}

    def add(title: str, spec: Spec, override: Mapping[str, Any]) -> None:
        if title in models:
            msg = f"`methods` must have different names, got {title!r} twice: a grid or a control has it too."
            raise ValueError(msg)
        own = {**override, **overrides.get(title, {})}
        models[title] = _with(spec, own.pop("model", {})), own
        try:
            check(models[title][0], AnomalibModule)
        except ValueError as error:
            msg = f"The method {title!r}: {error}"
            raise ValueError(msg) from error

    for name, given in methods.items():
        for variant, spec in variants(read_spec(given)):
            add(f"{name} {variant}".strip(), spec, overrides.get(name, {}))
    if controls is not None:
        if controls not in models:
            msg = f"`controls` must be the name of a method, got {controls!r}. There are {list(models)}."
            raise ValueError(msg)
        for title, spec in _controls(controls, models[controls][0]):
            own = models[controls][1]
            is_same_model = spec["class_path"] == models[controls][0]["class_path"]
            add(title, spec, own if is_same_model else {key: own[key] for key in GRID & own.keys()})
    return models


def _controls(name: str, spec: Spec) -> Iterator[tuple[str, Spec]]:
    """Yield what a method has to beat: itself without training, without pretraining, and plain statistics."""
    arguments = _parameters(find_class(spec, AnomalibModule))
    untrained = {"num_steps": 0} if "num_steps" in arguments else {}
    if untrained:
        yield f"{name}, no fine-tuning", spec | {"init_args": spec["init_args"] | untrained}
    if "pre_trained" in arguments:
        random = untrained | {"pre_trained": False} | ({"weights": None} if "weights" in arguments else {})
        yield f"{name}, random weights", spec | {"init_args": spec["init_args"] | random}
    for statistic, title in STATISTICS.items():
        yield title, {"class_path": "PlainStatistic", "init_args": {"statistic": statistic}}


def _categories(dataset: str, entry: Spec, root: str | Path | None) -> Iterator[tuple[str, Spec]]:
    """Yield each category of a dataset with the specification of its datamodule."""
    spec = read_spec(entry)
    if root is not None:
        spec["init_args"]["root"] = str(root)
    try:
        cls = find_class(spec, AnomalibDataModule)
    except ValueError as error:
        msg = f"The dataset {dataset!r}: {error}"
        raise ValueError(msg) from error
    if "category" not in _parameters(cls):
        yield str(spec["init_args"].get("name", "")), spec
        return
    categories = entry.get("categories") or _names(dataset, spec)
    for category in categories:
        own = _with(spec, {"category": category})
        check_category(instantiate(own, AnomalibDataModule))
        yield category, own


def _names(dataset: str, spec: Spec) -> list[str]:
    if "category" in spec["init_args"]:
        return [spec["init_args"]["category"]]
    root = spec["init_args"].get("root")
    found = category_folders(root)
    if not found:
        msg = (
            f"The dataset {dataset!r} must have `categories`, or a `root` with a folder for each that holds a folder "
            f"`train`, got the root {str(root)!r}. Check `root`, or name the categories."
        )
        raise ValueError(msg)
    return found


def _check_overrides(overrides: Mapping[str, Mapping[str, Any]], names: Sequence[str]) -> None:
    for name, override in overrides.items():
        if name not in names:
            msg = f"`overrides` must be of methods, got {name!r}. There are {list(dict.fromkeys(names))}."
            raise ValueError(msg)
        if not set(override) <= OVERRIDES:
            msg = (
                f"An override must be one of {sorted(OVERRIDES)}, got {sorted(set(override) - OVERRIDES)} of {name!r}."
            )
            raise ValueError(msg)
        if override.get("learns_from", "support") not in LEARNS_FROM:
            msg = f"`learns_from` must be one of {LEARNS_FROM}, got {override['learns_from']!r} of {name!r}."
            raise ValueError(msg)
        for callback in override.get("trainer", {}).get("callbacks", []):
            check(read_spec(callback), Callback)


def _check_several(method: str, learns_from: str, dataset: str, categories: Sequence[str]) -> None:
    if learns_from != "support" and len(categories) < 2:
        msg = (
            f"The dataset {dataset!r} must have two categories or more for {method!r}, which learns from "
            f"{learns_from!r}, got {list(categories)}."
        )
        raise ValueError(msg)


def _with(spec: Spec, arguments: Mapping[str, Any]) -> Spec:
    return spec | {"init_args": spec["init_args"] | arguments}


def _hash(content: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


def _defaults(spec: Spec) -> dict[str, Any]:
    """Return the plain arguments of a model that are not given."""
    defaults = {p.name: p.default for p in _parameters(find_class(spec, AnomalibModule)).values()}
    plain = str | int | float | list | tuple | None
    return {n: value for n, value in defaults.items() if n not in spec["init_args"] and isinstance(value, plain)}


def _takes_seed(spec: Spec) -> bool:
    """Return whether a model has a seed that the user has not set."""
    return "seed" not in spec["init_args"] and "seed" in _parameters(find_class(spec, AnomalibModule))


def _seeds(seeds: int | Sequence[int]) -> list[Any]:
    if isinstance(seeds, int) and seeds < 1:
        msg = f"`seeds` must be at least one, got {seeds}."
        raise ValueError(msg)
    return _numbers("seeds", list(range(seeds)) if isinstance(seeds, int) else seeds, 0)


def _numbers(name: str, values: object, least: int, *words: str) -> list[Any]:
    """Return the numbers, and words that may stand among them, in their order."""
    numbers = list(values) if isinstance(values, Iterable) and not isinstance(values, str) else [values]
    if not numbers or not all(n in words or (isinstance(n, int) and n >= least) for n in numbers):
        also = "".join(f" or {word!r}" for word in words)
        msg = f"`{name}` must be numbers of at least {least}{also}, got {values!r}."
        raise ValueError(msg)
    return sorted(set(numbers), key=as_number)


def _parameters(cls: type) -> Mapping[str, inspect.Parameter]:
    return inspect.signature(cls).parameters
