# Copyright (C) 2026 anomalib-fewshot contributors
# SPDX-License-Identifier: Apache-2.0

"""Which images are the support."""

from collections import Counter
from itertools import pairwise

import pytest

from anomalib_fewshot.data.sampling import choose_support, match_support, mix_pool, order_anomalous, order_pool
from anomalib_fewshot.errors import SupportError

PATHS = [f"{number:03}.png" for number in range(20)]
KEY = {"dataset": "MVTecAD", "category": "bolt", "seed": 0}


def choose(k_shot: int, paths: list[str] = PATHS, *, category: str = "bolt", seed: int = 0) -> list[str]:
    return choose_support(paths, k_shot, dataset="MVTecAD", category=category, seed=seed)


def test_choice_is_what_it_always_was() -> None:
    """A change of these names breaks every comparison with earlier results."""
    assert choose(4) == ["003.png", "017.png", "014.png", "002.png"]


def test_choice_ignores_the_order_of_the_paths() -> None:
    assert choose(5, PATHS[::-1]) == choose(5)


def test_choice_is_nested_without_replacement() -> None:
    choices = [choose(k) for k in range(1, len(PATHS) + 1)]
    assert all(larger[: len(smaller)] == smaller for smaller, larger in pairwise(choices))
    assert sorted(choices[-1]) == PATHS


def test_choice_depends_on_each_part_of_the_key() -> None:
    others = [
        choose(5, seed=1),
        choose(5, category="cloth"),
        choose_support(PATHS, 5, dataset="X", category="bolt", seed=0),
    ]
    assert all(other != choose(5) for other in others)


def test_choice_is_uniform() -> None:
    """Each of 20 images is in 2000 choices of 5 about 500 times: five standard deviations are 97."""
    counts = Counter(path for seed in range(2000) for path in choose(5, seed=seed))
    assert set(counts) == set(PATHS)
    assert all(abs(count - 500) < 97 for count in counts.values())


@pytest.mark.parametrize("k_shot", [0, -1])
def test_too_few(k_shot: int) -> None:
    with pytest.raises(ValueError, match=f"`k_shot` must be at least 1, got {k_shot}"):
        choose(k_shot)


def test_too_many() -> None:
    with pytest.raises(ValueError, match=r"got 21, but MVTecAD bolt has 20\. Lower `k_shot` or add images"):
        choose(21)


def test_names_match_the_ends_of_paths() -> None:
    paths = ["/data/a/0.png", "/data/b/0.png", "/data/b/10.png"]
    assert match_support(["10.png", "a/0.png"], paths) == [paths[2], paths[0]]
    assert match_support([paths[1]], paths) == [paths[1]]
    assert match_support(["0.png"], ["0.png", "a/0.png"]) == ["0.png"]


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ([], "at least one image"),
        (["1.png"], "got '1.png', which matches no image"),
        (["0.png"], "got '0.png', which matches 2"),
        (["a/0.png", "/data/a/0.png"], "must not name an image twice"),
        (["hole/3.png"], "got 'hole/3.png', which is an anomalous image of the test data"),
        ([""], "got '', which matches no image"),
    ],
)
def test_unmatched_names(names: list[str], message: str) -> None:
    others = {"/data/test/hole/3.png": "an anomalous image of the test data"}
    with pytest.raises(ValueError, match=message):
        match_support(names, ["/data/a/0.png", "/data/b/0.png"], others)


def test_pool_is_what_it_always_was() -> None:
    """A change of these names breaks every comparison with earlier results."""
    assert order_pool(PATHS, choose(4), **KEY)[:4] == ["016.png", "001.png", "007.png", "012.png"]
    assert order_anomalous(PATHS, **KEY)[:3] == ["012.png", "003.png", "017.png"]


def test_pool_has_all_images_outside_the_support_set() -> None:
    for k in range(1, len(PATHS)):
        pool = order_pool(PATHS, choose(k), **KEY)
        assert sorted([*choose(k), *pool]) == PATHS
        assert order_pool(PATHS[::-1], choose(k), **KEY) == pool


def test_pool_is_the_same_for_all_k_up_to_eight() -> None:
    pools = [order_pool(PATHS, choose(k), **KEY) for k in range(1, 10)]
    assert all(pool[:12] == choose(20)[8:] for pool in pools[:8])
    assert pools[8] == choose(20)[9:]
    assert pools[1][12:] == choose(8)[2:]  # then the images that a larger support set would contain


def test_pool_depends_on_each_part_of_the_key() -> None:
    others = [KEY | {"seed": 1}, KEY | {"category": "cloth"}, KEY | {"dataset": "X"}]
    assert all(order_pool(PATHS, [], **key) != order_pool(PATHS, [], **KEY) for key in others)
    assert all(order_anomalous(PATHS, **key) != order_anomalous(PATHS, **KEY) for key in others)


@pytest.mark.parametrize("contamination", [0.0, 0.05, 0.1, 0.25, 0.3, 0.5, 0.9, 0.999])
def test_mixed_pools_are_nested_with_a_rounded_number_of_anomalous_images(contamination: float) -> None:
    normal = [f"good {number}" for number in range(60)]
    anomalous = [f"bad {number}" for number in range(60)]
    largest = mix_pool(normal, anomalous, 60, contamination)
    for size in range(61):
        pool = mix_pool(normal, anomalous, size, contamination)
        assert pool == largest[:size]
        count = sum(name.startswith("bad") for name in pool)
        assert count == round(size * contamination)
        assert [name for name in pool if name.startswith("bad")] == anomalous[:count]
        assert [name for name in pool if name.startswith("good")] == normal[: size - count]


def test_too_few_images_for_a_pool() -> None:
    with pytest.raises(SupportError, match=r"outside the support set, got 3 normal images, but there are 2\."):
        mix_pool(["a", "b"], ["c"], 4, contamination=0.25)
    with pytest.raises(SupportError, match="got 2 images for the pool, but only 1 can be removed from the test data"):
        mix_pool(["a", "b"], ["c"], 4, contamination=0.5)
