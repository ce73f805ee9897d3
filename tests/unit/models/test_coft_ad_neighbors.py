# Copyright (C) 2026 anomalib-fewshot contributors
# SPDX-License-Identifier: Apache-2.0

"""The memory bank against loops, and its scales in closed form."""

import pytest
import torch
from torch.nn import functional as F  # noqa: N812

from anomalib_fewshot.models.coft_ad.density import standardize
from anomalib_fewshot.models.coft_ad.neighbors import (
    ROWS,
    Neighbors,
    comes_turned,
    coreset,
    raw_patches,
    scale_by_ring,
    thinned,
)

SIZE, DIM = 9, 5


def patches(count: int, views: int = 2, seed: int = 0) -> list[torch.Tensor]:
    """Return patches of views of each of a number of images."""
    rng = torch.Generator().manual_seed(seed)
    return [torch.randn(1, views, SIZE, SIZE, DIM, generator=rng) + 3 for _ in range(count)]


def fitted(folds: list[torch.Tensor]) -> Neighbors:
    neighbors = Neighbors(DIM)
    neighbors.fit(folds)
    return neighbors


def nearest(new: torch.Tensor, folds: list[torch.Tensor]) -> torch.Tensor:
    """Return the distances of patches, (h, w, D), from the nearest of any image, in a loop: all of a few are kept."""
    kept = torch.cat([fold[0, 0].flatten(0, 1) for fold in folds])
    return torch.stack([torch.stack([(patch - kept).norm(dim=-1).min() for patch in row]) for row in new])


@pytest.mark.parametrize("count", [2, 3, 5])
def test_maps_are_those_of_banks_without_each_image(count: int) -> None:
    folds, (new,) = patches(count), patches(1, seed=9)
    neighbors = fitted(folds)
    maps = neighbors(new[0, :1])
    assert maps.shape == (1, 1 + count, SIZE, SIZE)
    for number in range(count + 1):
        kept = folds[: number - 1] + folds[number:] if number > 0 else folds
        expected = standardize(nearest(new[0, 0], kept), neighbors.mean[number], neighbors.std[number])
        torch.testing.assert_close(maps[0, number], expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("count", [3, 4])
def test_a_bank_without_an_image_is_that_of_the_others(count: int) -> None:
    """What a new image is compared by does not know the held-out one: neither the bank nor its scale."""
    folds, (new,) = patches(count), patches(1, seed=9)
    maps = fitted(folds)(new[0])
    for number in range(count):
        others = fitted(folds[:number] + folds[number + 1 :])(new[0])
        torch.testing.assert_close(maps[:, 1 + number], others[:, 0], rtol=1e-4, atol=1e-4)


def test_a_single_image_is_compared_with_its_views() -> None:
    (own,) = patches(1, views=3)
    neighbors = fitted([own])
    distances = torch.stack([nearest(view, [own]) for view in own[0, 1:]])
    mean, std = scale_by_ring(distances)
    torch.testing.assert_close(neighbors.mean[0], mean, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(neighbors.std[0], std, rtol=1e-4, atol=1e-4)
    assert neighbors(own[0]).shape == (3, 1, SIZE, SIZE)


def test_a_patch_of_the_support_has_no_distance() -> None:
    folds = patches(3)
    assert Neighbors.nearest(folds[1][0, 0, ::2, ::2], fitted(folds).bank)[..., 1].max() < 1e-2


def test_a_large_image_has_as_many_rows() -> None:
    folds = [torch.randn(1, 2, size, size, DIM) for size in (20, 20)]
    assert fitted(folds).bank.shape == (2, ROWS, DIM)


def test_scale_of_each_ring() -> None:
    """The border of 5 x 6 cells is 1 and 3, the next ring 5 in both images, and the inner two cells 0 and 0."""
    distances = torch.zeros(2, 5, 6)
    distances[0], distances[1] = 1.0, 3.0
    distances[:, 1:-1, 1:-1] = 5.0
    distances[:, 2, 2:4] = 0.0
    mean, std = scale_by_ring(distances)
    assert mean[0].tolist() == [2.0] * 6
    assert std[:, 0].tolist() == [1.0] * 5
    assert mean[1, 1:5].tolist() == [5.0] * 4
    assert mean[2].tolist() == [2, 5, 0, 0, 5, 2]
    assert std[2, 2] == pytest.approx(1e-6)


def test_raw_patches_are_means_that_leave_the_padding_out() -> None:
    maps = [torch.arange(16.0).view(1, 1, 4, 4), torch.ones(1, 2, 2, 2)]
    result = raw_patches(maps)
    assert result.shape == (1, 4, 4, 3)
    assert result[0, 0, 0].tolist() == [2.5, 1, 1]  # of 0, 1, 4 and 5
    assert result[0, 1, 1, 0] == 5  # of nine


def turned(count: int, seed: int = 0, same: bool = False) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """Return images that are others at each angle, and the same turned: all of them to one another, or none."""
    rng = torch.Generator().manual_seed(seed)
    folds = patches(count, seed=seed)
    if same:  # turned, an image shows what the others show
        return folds, [thinned(torch.cat([fold[0, :1] for fold in folds])) for _ in folds]
    return folds, [9 + torch.randn(4, SIZE, SIZE, DIM, generator=rng) for _ in folds]


def test_turned_images_are_kept_where_they_are_nearer() -> None:
    for same in (True, False):
        neighbors = Neighbors(DIM)
        neighbors.fit(*turned(4, same=same))
        assert neighbors.is_turned.tolist() == [same] * 5
        assert (neighbors.turned_bank.shape[1] > 0) == same
    neighbors.fit(*turned(4, same=False), always=True)
    assert neighbors.is_turned.all()
    neighbors.fit(patches(4))
    assert not neighbors.is_turned.any()
    assert neighbors.turned_bank.shape == (4, 0, DIM)


def test_a_single_image_is_turned_if_it_is_said_alone() -> None:
    folds, views = turned(1, same=True)
    neighbors = Neighbors(DIM)
    neighbors.fit(folds, views)
    assert neighbors.is_turned.tolist() == [False]
    neighbors.fit(folds, views, always=True)
    assert neighbors.is_turned.tolist() == [True]
    assert neighbors(folds[0][0]).shape == (2, 1, SIZE, SIZE)


def test_maps_with_turned_images_are_those_of_banks_without_each_image() -> None:
    """An image's own verdict, scale and rows are not in what it is compared by."""
    (folds, views), (new,) = turned(4, same=True), patches(1, seed=9)
    neighbors = Neighbors(DIM)
    neighbors.fit(folds, views)
    maps = neighbors(new[0])
    for number in range(4):
        others = Neighbors(DIM)
        others.fit(folds[:number] + folds[number + 1 :], views[:number] + views[number + 1 :])
        torch.testing.assert_close(maps[:, 1 + number], others(new[0])[:, 0], rtol=1e-4, atol=1e-4)


def test_verdict_about_turned_images_in_numbers() -> None:
    """The farthest tenth of 20 patches: 10 and 8 from the others, turned 6 and 9, which is not nearer than 8."""
    upright, near = torch.ones(20, 3), torch.ones(20, 3)
    upright[3], upright[7], near[3], near[7] = 10, 8, 6, 9
    assert comes_turned([(upright, near)] * 3, [0, 1, 2])  # (6 + 8) / 18 = 0.78
    near[3] = 8
    assert not comes_turned([(upright, near)] * 3, [0, 1, 2])  # (8 + 8) / 18 = 0.89
    assert not comes_turned([(upright, 0 * near)] * 3, [1])
    near[3, 0] = 0
    assert comes_turned([(upright, near)] * 2 + [(upright, 0 * near)], [0, 1, 2])  # image 0 is near the others


def test_coreset_is_spread() -> None:
    rows = torch.tensor([[0.0], [0.1], [5.0], [10.0], [9.9]])
    assert coreset(rows, 3).flatten().tolist() == [0, 10, 5]
    assert len(coreset(rows, 9)) == 5


@pytest.mark.parametrize("same", [True, False])
def test_checkpoint(same: bool) -> None:
    folds, views = turned(3, same=same)
    neighbors, loaded = Neighbors(DIM), Neighbors(DIM)
    neighbors.fit(folds, views)
    loaded.load_state_dict(neighbors.state_dict())
    torch.testing.assert_close(loaded(folds[0][0]), neighbors(folds[0][0]))
    assert F.relu(loaded.std).min() > 0
