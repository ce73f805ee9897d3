# Copyright (C) 2026 anomalib-fewshot contributors
# SPDX-License-Identifier: Apache-2.0

"""Choice of the support set: pure functions of paths, without file access."""

import random
from collections.abc import Mapping, Sequence
from pathlib import PurePath

from anomalib_fewshot.errors import ArgumentError, SupportError


def shuffled(paths: Sequence[str], key: str) -> list[str]:
    """Return the paths in a random order that depends only on the key, in every version of Python.

    Example:
        >>> shuffled(["c.png", "a.png", "b.png"], "bottle")
        ['a.png', 'c.png', 'b.png']
    """
    generator = random.Random(key)  # noqa: S311
    # Python keeps the sequence of `random()` for a seed stable across versions. `shuffle` has no such guarantee.
    return sorted(sorted(paths), key=lambda _: generator.random())


def choose_support(paths: Sequence[str], k_shot: int, *, dataset: str, category: str, seed: int) -> list[str]:
    """Choose ``k_shot`` paths at random, without replacement.

    The choice depends only on the arguments, not on the order of the paths or a global seed. Choices are nested: the
    first j of k chosen paths are the choice for ``k_shot=j``.

    Args:
        paths (Sequence[str]): Paths of the normal training images, relative to their common folder.
        k_shot (int): Number of images to choose.
        dataset (str): Name of the dataset, part of the random key.
        category (str): Name of the category, part of the random key.
        seed (int): Seed, part of the random key.

    Returns:
        list[str]: The chosen paths, in random order.

    Raises:
        ArgumentError: If ``k_shot`` is below 1.
        SupportError: If ``k_shot`` is greater than the number of paths.

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


def match_support(
    names: Sequence[str],
    paths: Sequence[str],
    other_images: Mapping[str, str] | None = None,
) -> list[str]:
    """Return the path that matches each name: an equal path, or the only path that ends with the name.

    Args:
        names (Sequence[str]): File names, with parent folders where file names are ambiguous.
        paths (Sequence[str]): Paths of the normal training images.
        other_images (Mapping[str, str] | None): Description of other images by path, for the error message. Defaults to
            ``None``.

    Returns:
        list[str]: A path for each name, in the order of the names.

    Raises:
        SupportError: If ``names`` is empty, if a name matches no path or several, or if two names match the same path.

    Example:
        >>> match_support(["b/0.png"], ["a/0.png", "b/0.png"])
        ['b/0.png']
    """
    if not names:
        msg = "`support` must name at least one image, got none."
        raise SupportError(msg)
    matches = []
    for name in names:
        found = [name] if name in paths else [path for path in paths if _ends_with(path, name)]
        if len(found) > 1:
            msg = f"`support` must name each image uniquely, got {name!r}, which matches {len(found)}. Add its folder."
            raise SupportError(msg)
        if not found:
            reason = "matches no image"
            for path, description in (other_images or {}).items():
                if _ends_with(path, name):
                    reason = f"is {description}"
            msg = f"`support` must name normal training images, got {name!r}, which {reason}."
            raise SupportError(msg)
        matches += found
    if len(set(matches)) != len(matches):
        msg = f"`support` must not name an image twice, got {list(names)}."
        raise SupportError(msg)
    return matches


def _ends_with(path: str, name: str) -> bool:
    tail = PurePath(name).parts
    return bool(tail) and PurePath(path).parts[-len(tail) :] == tail
