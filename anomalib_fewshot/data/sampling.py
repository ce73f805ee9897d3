# Copyright (C) 2026 anomalib-fewshot contributors
# SPDX-License-Identifier: Apache-2.0

"""Which images are the support: pure functions of paths, without files."""

import random
from collections.abc import Mapping, Sequence
from pathlib import PurePath

from anomalib_fewshot.errors import ArgumentError, SupportError


def shuffled(paths: Sequence[str], key: str) -> list[str]:
    """Return the paths in a random order that the key alone decides, with every version of Python.

    Example:
        >>> shuffled(["c.png", "a.png", "b.png"], "bottle")
        ['a.png', 'c.png', 'b.png']
    """
    generator = random.Random(key)  # noqa: S311
    # Python guarantees to keep the sequence of `random()` for a seed, and of no other draw.
    return sorted(sorted(paths), key=lambda _: generator.random())


def choose_support(paths: Sequence[str], k_shot: int, *, dataset: str, category: str, seed: int) -> list[str]:
    """Choose ``k_shot`` of the paths at random, without replacement.

    The choice depends on nothing but the arguments: not on the order of the paths, on a global seed or on other
    categories. It is nested: the first j of a choice of k are the choice of j.

    Args:
        paths (Sequence[str]): Paths of the normal training images, relative to their common folder.
        k_shot (int): Number of images to choose.
        dataset (str): Name of the dataset, part of the generator's key.
        category (str): Name of the category, part of the generator's key.
        seed (int): Seed, part of the generator's key.

    Returns:
        list[str]: The chosen paths, in the order in which they were drawn.

    Raises:
        ArgumentError: If ``k_shot`` is below 1.
        SupportError: If it is above the number of paths.

    Example:
        >>> choose_support(["c.png", "a.png", "b.png"], 2, dataset="MVTecAD", category="bottle", seed=0)
        ['b.png', 'a.png']
    """
    if k_shot < 1:
        msg = f"`k_shot` must be at least 1, got {k_shot}."
        raise ArgumentError(msg)
    if k_shot > len(paths):
        msg = (
            f"`k_shot` must be at most the number of normal training images, got {k_shot}, but {dataset} {category} "
            f"has {len(paths)}. Lower `k_shot` or add images."
        )
        raise SupportError(msg)
    return shuffled(paths, f"{dataset}/{category}/{seed}")[:k_shot]


def match_support(names: Sequence[str], paths: Sequence[str], others: Mapping[str, str] | None = None) -> list[str]:
    """Find the path that each name means: that of the name, or the only one that ends in it.

    Args:
        names (Sequence[str]): File names, or paths with as many folders as it takes to tell files apart.
        paths (Sequence[str]): Paths of the normal training images.
        others (Mapping[str, str] | None): What other images are, by path, for the error. Defaults to ``None``.

    Returns:
        list[str]: A path for each name, in the order of the names.

    Raises:
        SupportError: If there is no name, if a name means no path or several, or if two names mean one path.

    Example:
        >>> match_support(["b/0.png"], ["a/0.png", "b/0.png"])
        ['b/0.png']
    """
    if not names:
        msg = "`support` must name at least one image, got none."
        raise SupportError(msg)
    matches = []
    for name in names:
        found = [name] if name in paths else [path for path in paths if _ends_in(path, name)]
        if len(found) != 1:
            other = next((what for path, what in (others or {}).items() if _ends_in(path, name)), "none of them")
            got = f"{len(found)} of them: name its folder too" if found else other
            msg = f"`support` must name normal training images, got {name!r}, which is {got}."
            raise SupportError(msg)
        matches += found
    if len(set(matches)) != len(matches):
        msg = f"`support` must not name an image twice, got {list(names)}."
        raise SupportError(msg)
    return matches


def _ends_in(path: str, name: str) -> bool:
    tail = PurePath(name).parts
    return bool(tail) and PurePath(path).parts[-len(tail) :] == tail
