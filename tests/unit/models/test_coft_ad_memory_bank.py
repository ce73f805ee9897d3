# Copyright (C) 2026 anomalib-fewshot contributors
# SPDX-License-Identifier: Apache-2.0

"""The memory bank against loops, and its scales in closed form."""

import pytest
import torch

from anomalib_fewshot.models.coft_ad.density import standardize
from anomalib_fewshot.models.coft_ad.features import Features, subsample_grid
from anomalib_fewshot.models.coft_ad.folds import FoldFeatures
from anomalib_fewshot.models.coft_ad.memory_bank import (
    CORESET_SIZE,
    MemoryBank,
    has_arbitrary_orientation,
)
from anomalib_fewshot.models.components import coreset, nearest_distances

SIZE, DIM = 9, 5


def patches(count: int, views: int = 2, seed: int = 0) -> list[torch.Tensor]:
    """Return patches of views of each of a number of images."""
    rng = torch.Generator().manual_seed(seed)
    return [torch.randn(views, SIZE, SIZE, DIM, generator=rng) + 3 for _ in range(count)]


def fold(views: torch.Tensor, rotated: torch.Tensor | None = None) -> FoldFeatures:
    """Return a fold of one image, which has nothing but patches for the memory bank."""
    return FoldFeatures([], Features(views[:, 0, 0], [], views), len(views), [], rotated)


def fitted(
    views: list[torch.Tensor],
    rotated: list[torch.Tensor] | None = None,
    always_rotated: bool = False,
) -> MemoryBank:
    memory_bank = MemoryBank(DIM)
    folds = [fold(own, None if rotated is None else rotated[number]) for number, own in enumerate(views)]
    memory_bank.fit(folds, always_rotated=always_rotated)
    return memory_bank


def nearest(new: torch.Tensor, folds: list[torch.Tensor]) -> torch.Tensor:
    """Return the distances of patches, (h, w, D), from the nearest of any image, in a loop: all of a few are kept."""
    kept = torch.cat([own[0].flatten(0, 1) for own in folds])
    return torch.stack([torch.stack([(patch - kept).norm(dim=-1).min() for patch in row]) for row in new])


@pytest.mark.parametrize("count", [2, 3, 5])
def test_maps_are_those_of_banks_without_each_image(count: int) -> None:
    folds, (new,) = patches(count), patches(1, seed=9)
    memory_bank = fitted(folds)
    maps = memory_bank(new[:1])
    assert maps.shape == (1, 1 + count, SIZE, SIZE)
    for number in range(count + 1):
        kept = folds[: number - 1] + folds[number:] if number > 0 else folds
        expected = standardize(nearest(new[0], kept), memory_bank.mean[number], memory_bank.std[number])
        torch.testing.assert_close(maps[0, number], expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("count", [3, 4])
def test_a_bank_without_an_image_is_that_of_the_others(count: int) -> None:
    """What a new image is compared by does not know the left-out one: neither the bank nor its scale."""
    folds, (new,) = patches(count), patches(1, seed=9)
    maps = fitted(folds)(new)
    for number in range(count):
        others = fitted(folds[:number] + folds[number + 1 :])(new)
        torch.testing.assert_close(maps[:, 1 + number], others[:, 0], rtol=1e-4, atol=1e-4)


def test_a_single_image_is_compared_with_its_views() -> None:
    (own,) = patches(1, views=3)
    memory_bank = fitted([own])
    distances = torch.stack([nearest(view, [own]) for view in own[1:]])
    std, mean = torch.std_mean(distances, correction=0)
    torch.testing.assert_close(memory_bank.mean[0], mean, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(memory_bank.std[0], std, rtol=1e-4, atol=1e-4)
    assert memory_bank(own).shape == (3, 1, SIZE, SIZE)


def test_a_patch_of_the_support_has_no_distance() -> None:
    folds = patches(3)
    assert nearest_distances(folds[1][0, ::2, ::2], fitted(folds).bank)[..., 1].max() < 1e-2


def test_a_large_image_has_as_many_rows() -> None:
    folds = [torch.randn(2, size, size, DIM) for size in (20, 20)]
    assert fitted(folds).bank.shape == (2, CORESET_SIZE, DIM)


def rotated(count: int, seed: int = 0, same: bool = False) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """Return images, and rotated ones that show what all the others show, or nothing that they show."""
    rng = torch.Generator().manual_seed(seed)
    images = patches(count, seed=seed)
    if same:
        return images, [subsample_grid(torch.cat([own[:1] for own in images])) for _ in images]
    return images, [9 + torch.randn(4, SIZE, SIZE, DIM, generator=rng) for _ in images]


def test_rotated_patches_are_kept_where_they_are_nearer() -> None:
    for same in (True, False):
        memory_bank = fitted(*rotated(4, same=same))
        assert memory_bank.is_rotated.tolist() == [same] * 5
        assert (memory_bank.rotated_bank.shape[1] > 0) == same
    assert fitted(*rotated(4, same=False), always_rotated=True).is_rotated.all()
    memory_bank.fit([fold(own) for own in patches(4)])
    assert not memory_bank.is_rotated.any()
    assert memory_bank.rotated_bank.shape == (4, 0, DIM)


def test_rotated_patches_of_a_single_image_are_kept_only_on_request() -> None:
    images, views = rotated(1, same=True)
    assert fitted(images, views).is_rotated.tolist() == [False]
    memory_bank = fitted(images, views, always_rotated=True)
    assert memory_bank.is_rotated.tolist() == [True]
    assert memory_bank(images[0]).shape == (2, 1, SIZE, SIZE)


def test_maps_with_rotated_patches_are_those_of_banks_without_each_image() -> None:
    """Neither the decision nor the scale nor the rows of a left-out image are in what it is compared with."""
    (images, views), (new,) = rotated(4, same=True), patches(1, seed=9)
    maps = fitted(images, views)(new)
    for number in range(4):
        others = fitted(images[:number] + images[number + 1 :], views[:number] + views[number + 1 :])
        torch.testing.assert_close(maps[:, 1 + number], others(new)[:, 0], rtol=1e-4, atol=1e-4)


def test_decision_about_orientation_in_numbers() -> None:
    """The farthest tenth of 20 patches: 10 and 8 from the others, rotated 6 and 9, which is not nearer than 8."""
    upright, near = torch.ones(20, 3), torch.ones(20, 3)
    upright[3], upright[7], near[3], near[7] = 10, 8, 6, 9
    assert has_arbitrary_orientation([(upright, near)] * 3, [0, 1, 2])  # (6 + 8) / 18 = 0.78
    near[3] = 8
    assert not has_arbitrary_orientation([(upright, near)] * 3, [0, 1, 2])  # (8 + 8) / 18 = 0.89
    assert not has_arbitrary_orientation([(upright, 0 * near)] * 3, [1])
    near[3, 0] = 0
    assert has_arbitrary_orientation(
        [(upright, near)] * 2 + [(upright, 0 * near)],
        [0, 1, 2],
    )  # image 0 is near the others


def test_coreset_is_spread() -> None:
    rows = torch.tensor([[0.0], [0.1], [5.0], [10.0], [9.9]])
    assert coreset(rows, 3).flatten().tolist() == [0, 10, 5]
    assert len(coreset(rows, 9)) == 5


@pytest.mark.parametrize("same", [True, False])
def test_checkpoint(same: bool) -> None:
    images, views = rotated(3, same=same)
    memory_bank, loaded = fitted(images, views), MemoryBank(DIM)
    loaded.load_state_dict(memory_bank.state_dict())
    torch.testing.assert_close(loaded(images[0]), memory_bank(images[0]))
    assert loaded.std.min() > 0
