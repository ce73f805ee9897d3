# Copyright (C) 2026 anomalib-fewshot contributors
# SPDX-License-Identifier: Apache-2.0

"""Choice of the support set and of the unlabeled pool: pure functions of paths, without file access."""

import random
from collections.abc import Mapping, Sequence
from pathlib import PurePath

from anomalib_fewshot.errors import ArgumentError, SupportError

RESERVED = 8  # a pool first avoids the images of the support sets up to this size, so that they share one pool


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


def order_pool(paths: Sequence[str], support: Sequence[str], *, dataset: str, category: str, seed: int) -> list[str]:
    """Return the normal images that are not in the support set, in the order in which they enter the unlabeled pool.

    The order is the one of :func:`choose_support`. The images from position ``max(k, 8)`` on come first, then the ones
    of the first eight positions that are not in the support set. So random support sets of up to eight images have the
    same pool, as long as the other images are enough for it.

    Args:
        paths (Sequence[str]): Paths of the normal training images, relative to their common folder.
        support (Sequence[str]): Paths of the support set.
        dataset (str): Name of the dataset, part of the random key.
        category (str): Name of the category, part of the random key.
        seed (int): Seed, part of the random key.

    Example:
        >>> paths = [f"{number}.png" for number in range(10)]
        >>> key = {"dataset": "MVTecAD", "category": "bottle", "seed": 0}
        >>> order_pool(paths, choose_support(paths, 1, **key), **key)[:3]
        ['0.png', '2.png', '8.png']
        >>> order_pool(paths, choose_support(paths, 8, **key), **key)
        ['0.png', '2.png']
    """
    order = shuffled(paths, f"{dataset}/{category}/{seed}")
    chosen = set(support)
    return [path for path in order[RESERVED:] + order[:RESERVED] if path not in chosen]


def order_anomalous(paths: Sequence[str], *, dataset: str, category: str, seed: int) -> list[str]:
    """Return anomalous images in the random order in which they enter a contaminated pool."""
    return shuffled(paths, f"{dataset}/{category}/{seed}/contamination")


def mix_pool(normal: Sequence[str], anomalous: Sequence[str], size: int, contamination: float) -> list[str]:
    """Return a pool of normal and anomalous images. A smaller pool is the start of a larger one.

    Args:
        normal (Sequence[str]): Normal images that are not in the support set, in the order of :func:`order_pool`.
        anomalous (Sequence[str]): Anomalous images that may be used, in the order of :func:`order_anomalous`.
        size (int): Number of images in the pool.
        contamination (float): Share of anomalous images. Their number is rounded.

    Raises:
        SupportError: If there are too few normal or anomalous images.

    Example:
        >>> mix_pool(["good 1", "good 2", "good 3"], ["bad 1"], 4, contamination=0.25)
        ['good 1', 'good 2', 'bad 1', 'good 3']
    """
    num_anomalous = round(size * contamination)
    num_normal = size - num_anomalous
    if num_normal > len(normal):
        msg = (
            "`unlabeled` must be at most the number of normal training images outside the support set, got "
            f"{num_normal} normal images, but there are {len(normal)}. Lower `unlabeled`, or give a folder."
        )
        raise SupportError(msg)
    if num_anomalous > len(anomalous):
        msg = (
            f"`contamination` must leave at least one anomalous test image, got {num_anomalous} images for the pool, "
            f"but only {len(anomalous)} can be removed from the test data. Lower `contamination` or `unlabeled`."
        )
        raise SupportError(msg)
    pool: list[str] = []
    num_mixed = 0
    for position in range(size):
        if round((position + 1) * contamination) > num_mixed:
            pool.append(anomalous[num_mixed])
            num_mixed += 1
        else:
            pool.append(normal[position - num_mixed])
    return pool


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
