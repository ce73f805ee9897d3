# Copyright (C) 2026 anomalib-fewshot contributors
# SPDX-License-Identifier: Apache-2.0

"""List the runs of a benchmark: each method on each category, k and seed. No image is read."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

from anomalib.data import AnomalibDataModule
from anomalib.models import AnomalibModule
from lightning.pytorch import Callback

from anomalib_fewshot._host import is_memory_bank_class
from anomalib_fewshot.data.source import category_folders, check_category

from .job import ALL, Job, as_number
from .spec import (
    Spec,
    check_spec,
    find_class,
    instantiate,
    parameters,
    read_spec,
    variants,
    with_arguments,
    without_defaults,
)

GRID = {"k_shot", "seeds", "data"}  # overrides that change which runs exist
OVERRIDES = GRID | {"model", "trainer", "train_on"}
TRAIN_ON = ("support", "other_categories", "all_categories")
STATISTICS = {
    "mean": "mean brightness",
    "std": "standard deviation of gray values",
    "border": "brightness of the border",
}
PLAIN_TYPES = str | int | float | list | tuple | None


@dataclass(frozen=True)
class Method:
    """A method of the benchmark: its name, its model, and its overrides except ``model``."""

    name: str
    model: Spec
    override: Mapping[str, Any]

    @property
    def train_on(self) -> str:
        """Training data, one of ``TRAIN_ON``."""
        return self.override.get("train_on", "support")

    @property
    def uses_unlabeled(self) -> bool:
        """Whether the model uses unlabeled images itself."""
        return bool(getattr(find_class(self.model, AnomalibModule), "uses_unlabeled", False))

    @property
    def takes_unlabeled(self) -> bool:
        """Whether there are runs with unlabeled images: the model uses them, or it is a memory bank of anomalib."""
        if self.train_on == "all_categories":
            return False
        return self.uses_unlabeled or is_memory_bank_class(find_class(self.model, AnomalibModule))

    def seeded_model(self, seed: int) -> Spec:
        """Return the model with the seed of a run, if the model has a ``seed`` that the user did not set."""
        takes_seed = "seed" in parameters(self.model, AnomalibModule)
        return with_arguments(self.model, {"seed": seed} | self.model["init_args"]) if takes_seed else self.model


def make_jobs(
    methods: Mapping[str, str | Path | Spec],
    datasets: Mapping[str, Spec],
    k_shot: int | str | Sequence[int | str],
    seeds: int | Sequence[int],
    *,
    controls: str | None = None,
    overrides: Mapping[str, Mapping[str, Any]] | None = None,
    root: str | Path | None = None,
    unlabeled: int | Sequence[int] = 0,
    contamination: float | Sequence[float] = 0.0,
) -> list[Job]:
    """Return the runs of a benchmark. Runs on the same images are adjacent, so that the image cache is effective.

    See :func:`anomalib_fewshot.benchmark` for the arguments.

    Raises:
        FileNotFoundError: If the YAML file of a method does not exist.
        ValueError: If a model, dataset, category, argument or override does not exist, if a number is out of range, or
            if a method does not support its ``train_on``.
    """
    overrides = overrides or {}
    pools = _pools(unlabeled, contamination)
    expanded = _expand_methods(methods, controls, overrides)
    _check_overrides(overrides, [*methods, *(method.name for method in expanded)])
    jobs: list[Job] = []
    for dataset, entry in datasets.items():
        categories = dict(_categories(dataset, entry, root))
        for method in expanded:
            _check_train_on(method, dataset, list(categories))
            jobs += _jobs_of_method(method, dataset, categories, k_shot, seeds, pools)
    cells = {cell: i for i, cell in enumerate(dict.fromkeys((job.dataset, job.category) for job in jobs))}
    _check_pools(jobs, expanded)

    def order(job: Job) -> tuple:
        cell = cells[job.dataset, job.category]
        return cell, job.seed, as_number(job.k_shot), job.unlabeled, job.contamination

    return sorted(jobs, key=order)


def _jobs_of_method(
    method: Method,
    dataset: str,
    categories: Mapping[str, Spec],
    k_shot: int | str | Sequence[int | str],
    seeds: int | Sequence[int],
    pools: Sequence[tuple[int, float]],
) -> Iterator[Job]:
    """Yield the runs of a method on a dataset. Each pool is a number of unlabeled images and their contamination."""
    override = method.override
    tests = {"": next(iter(categories.values()))} if method.train_on == "all_categories" else categories
    all_k = _numbers("k_shot", override.get("k_shot", k_shot), 1, ALL)
    all_seeds = _seeds(override.get("seeds", seeds))
    for (category, data), seed, k, pool in product(tests.items(), all_seeds, all_k, pools):
        size, share = pool
        if size and (k == ALL or not method.takes_unlabeled):
            continue  # no images are left for a pool, or the method cannot use one
        model = method.seeded_model(seed)
        yield Job(
            method=method.name,
            dataset=dataset,
            category=category,
            k_shot=k,
            seed=seed,
            model=_without_nested_defaults(model),
            data=_without_nested_defaults(with_arguments(data, override.get("data", {}))),
            trainer=without_defaults(dict(override.get("trainer", {}))),
            train_on=method.train_on,
            categories=() if method.train_on == "support" else tuple(categories),
            defaults=_defaults(model),
            has_own_data=bool(override.get("data")),
            unlabeled=size,
            contamination=share,
            append_unlabeled=bool(size) and not method.uses_unlabeled,
        )


def _without_nested_defaults(spec: Spec) -> Spec:
    """Return a specification with all its arguments, whose nested specifications list no defaults."""
    return with_arguments(spec, without_defaults(spec["init_args"]))


def _expand_methods(
    methods: Mapping[str, str | Path | Spec],
    controls: str | None,
    overrides: Mapping[str, Mapping[str, Any]],
) -> list[Method]:
    """Return the methods with their overrides. Each value of a grid is one method, and controls are appended."""
    if not methods:
        msg = "`methods` must name at least one method, got none."
        raise ValueError(msg)
    expanded = [
        _method(f"{name} {variant}".strip(), spec, overrides.get(name, {}), overrides)
        for name, given in methods.items()
        for variant, spec in variants(read_spec(given))
    ]
    if controls is not None:
        expanded += _controls(controls, expanded, overrides)
    names = [method.name for method in expanded]
    twice = [name for name in names if names.count(name) > 1]
    if twice:
        msg = (
            f"`methods` must have unique names, got {twice[0]!r} twice. Rename the method, because a grid or control "
            "also has this name."
        )
        raise ValueError(msg)
    return expanded


def _method(name: str, spec: Spec, shared: Mapping[str, Any], overrides: Mapping[str, Mapping[str, Any]]) -> Method:
    """Return a method with a validated model. An override for its own name takes precedence over a shared one."""
    override = {**shared, **overrides.get(name, {})}
    model = with_arguments(spec, override.pop("model", {}))
    try:
        check_spec(model, AnomalibModule)
    except ValueError as error:
        msg = f"The method {name!r}: {error}"
        raise ValueError(msg) from error
    return Method(name, model, override)


def _controls(
    name: str,
    methods: Sequence[Method],
    overrides: Mapping[str, Mapping[str, Any]],
) -> Iterator[Method]:
    """Yield the controls of a method: without training, without pretrained weights, and image statistics."""
    method = next((method for method in methods if method.name == name), None)
    if method is None:
        msg = f"`controls` must be the name of a method, got {name!r}. Choose one of {[m.name for m in methods]}."
        raise ValueError(msg)
    arguments = parameters(method.model, AnomalibModule)
    untrained = {"num_steps": 0} if "num_steps" in arguments else {}
    if untrained:
        yield _method(f"{name}, no fine-tuning", with_arguments(method.model, untrained), method.override, overrides)
    if "pre_trained" in arguments:
        random = untrained | {"pre_trained": False} | ({"weights": None} if "weights" in arguments else {})
        yield _method(f"{name}, random weights", with_arguments(method.model, random), method.override, overrides)
    grid = {key: value for key, value in method.override.items() if key in GRID}
    for statistic, title in STATISTICS.items():
        yield _method(title, {"class_path": "ImageStatistic", "init_args": {"statistic": statistic}}, grid, overrides)


def _categories(dataset: str, entry: Spec, root: str | Path | None) -> Iterator[tuple[str, Spec]]:
    """Yield each category of a dataset with its datamodule specification."""
    spec = read_spec(entry)
    if root is not None:
        spec["init_args"]["root"] = str(root)
    try:
        arguments = parameters(spec, AnomalibDataModule)
    except ValueError as error:
        msg = f"The dataset {dataset!r}: {error}"
        raise ValueError(msg) from error
    if "category" not in arguments:
        yield str(spec["init_args"].get("name", "")), spec
        return
    for category in entry.get("categories") or _category_names(dataset, spec):
        own = with_arguments(spec, {"category": category})
        check_category(instantiate(own, AnomalibDataModule))
        yield category, own


def _category_names(dataset: str, spec: Spec) -> list[str]:
    if "category" in spec["init_args"]:
        return [spec["init_args"]["category"]]
    root = spec["init_args"].get("root")
    found = category_folders(root)
    if not found:
        msg = (
            f"The dataset {dataset!r} must have `categories`, or a `root` with one folder per category that contains a "
            f"folder `train`, got the root {str(root)!r}. Check `root`, or set `categories`."
        )
        raise ValueError(msg)
    return found


def _check_overrides(overrides: Mapping[str, Mapping[str, Any]], names: Sequence[str]) -> None:
    for name, override in overrides.items():
        if name not in names:
            msg = f"`overrides` must use the names of methods, got {name!r}. Choose from {list(dict.fromkeys(names))}."
            raise ValueError(msg)
        if not set(override) <= OVERRIDES:
            unknown = sorted(set(override) - OVERRIDES)
            msg = f"An override must be one of {sorted(OVERRIDES)}, got {unknown} for {name!r}."
            raise ValueError(msg)
        if override.get("train_on", "support") not in TRAIN_ON:
            msg = f"`train_on` must be one of {TRAIN_ON}, got {override['train_on']!r} for {name!r}."
            raise ValueError(msg)
        for callback in override.get("trainer", {}).get("callbacks", []):
            check_spec(read_spec(callback), Callback)


def _check_train_on(method: Method, dataset: str, categories: Sequence[str]) -> None:
    if method.train_on != "support" and len(categories) < 2:
        msg = (
            f"The dataset {dataset!r} must have at least two categories, got {list(categories)}. The method "
            f"{method.name!r} needs them because it sets `train_on: {method.train_on}`."
        )
        raise ValueError(msg)
    if method.train_on == "other_categories" and "network" not in parameters(method.model, AnomalibModule):
        cls = find_class(method.model, AnomalibModule).__name__
        msg = (
            "`train_on: other_categories` must be used with a model that has an argument `network` (a checkpoint), got "
            f"{cls} for {method.name!r}. Remove `train_on`, or use `train_on: all_categories`."
        )
        raise ValueError(msg)


def _defaults(spec: Spec) -> dict[str, Any]:
    """Return the default values of the model's arguments that the specification does not set."""
    return {
        name: parameter.default
        for name, parameter in parameters(spec, AnomalibModule).items()
        if name not in spec["init_args"] and isinstance(parameter.default, PLAIN_TYPES)
    }


def _pools(unlabeled: int | Sequence[int], contamination: float | Sequence[float]) -> list[tuple[int, float]]:
    """Return each number of unlabeled images with each contamination. Without images there is no contamination."""
    sizes = _numbers("unlabeled", unlabeled, 0)
    shares = [contamination] if isinstance(contamination, int | float) else list(contamination)
    if not shares or not all(isinstance(share, int | float) and 0 <= share < 1 for share in shares):
        msg = f"`contamination` must be numbers of at least 0 and below 1, got {contamination!r}."
        raise ValueError(msg)
    if any(shares) and not any(sizes):
        msg = f"`contamination` must be used with `unlabeled` above 0, got {contamination!r}. Set `unlabeled`."
        raise ValueError(msg)
    pools: list[tuple[int, float]] = []
    for size in sizes:
        pools += [(size, float(share)) for share in sorted(set(shares))] if size else [(0, 0.0)]
    return pools


def _check_pools(jobs: Sequence[Job], methods: Sequence[Method]) -> None:
    """Raise an error if a method has no runs because it cannot use unlabeled images."""
    names = {job.method for job in jobs}
    without = [method.name for method in methods if method.name not in names]
    if without:
        msg = (
            f"`unlabeled` must contain 0, because {without[0]!r} cannot be run with unlabeled images. Only models that "
            "use them and memory banks of anomalib can, with a number as `k_shot` and without "
            "`train_on: all_categories`."
        )
        raise ValueError(msg)


def _seeds(seeds: int | Sequence[int]) -> list[Any]:
    if isinstance(seeds, int) and seeds < 1:
        msg = f"`seeds` must be at least 1, got {seeds}."
        raise ValueError(msg)
    return _numbers("seeds", list(range(seeds)) if isinstance(seeds, int) else seeds, 0)


def _numbers(name: str, values: object, minimum: int, *keywords: str) -> list[Any]:
    """Return sorted unique numbers. The keywords, such as ``all``, are allowed too."""
    numbers = list(values) if isinstance(values, Iterable) and not isinstance(values, str) else [values]
    if not numbers or not all(n in keywords or (isinstance(n, int) and n >= minimum) for n in numbers):
        also = "".join(f" or {keyword!r}" for keyword in keywords)
        msg = f"`{name}` must be integers of at least {minimum}{also}, got {values!r}."
        raise ValueError(msg)
    return sorted(set(numbers), key=as_number)
