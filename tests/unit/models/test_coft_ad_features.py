# Copyright (C) 2026 anomalib-fewshot contributors
# SPDX-License-Identifier: Apache-2.0

"""Patch features in closed form."""

import pytest
import torch

from anomalib_fewshot.models.coft_ad.features import (
    Features,
    bank_patches,
    group_patches,
    mean_of_highest,
    subsample_grid,
)


@pytest.mark.parametrize(("power", "lengths"), [(0.0, (5.0, 13.0)), (0.5, (5**0.5, 13**0.5)), (1.0, (1.0, 1.0))])
def test_features_are_divided_by_a_power_of_their_norm(power: float, lengths: tuple[float, float]) -> None:
    first = torch.tensor([3.0, 4.0]).view(1, 2, 1, 1).expand(1, 2, 4, 4)
    second = torch.tensor([5.0, 12.0]).view(1, 2, 1, 1).expand(1, 2, 2, 2)  # a coarser grid
    patches = group_patches([first, second], power)
    assert patches.shape == (1, 4, 4, 4)
    torch.testing.assert_close(patches[0, 1, 2, :2].norm(), torch.tensor(lengths[0]))
    torch.testing.assert_close(patches[0, 1, 2, 2:].norm(), torch.tensor(lengths[1]))


def test_a_feature_of_norm_zero_is_finite() -> None:
    assert group_patches([torch.zeros(1, 4, 2, 2)], 1.0).isfinite().all()


def test_bank_patches_are_means_with_zeros_beyond_the_border() -> None:
    maps = [torch.arange(16.0).view(1, 1, 4, 4), torch.ones(1, 2, 2, 2)]
    result = bank_patches(maps)
    assert result.shape == (1, 4, 4, 3)
    assert result[0, 0, 0].tolist() == pytest.approx([10 / 9, 4 / 9, 4 / 9])  # 0, 1, 4 and 5, and five zeros
    assert result[0, 1, 1, 0] == 5  # of nine


def test_images_are_put_together_and_taken_apart() -> None:
    parts = []
    for seed in range(2):
        rows = torch.rand(3, 2, 2, 5, generator=torch.Generator().manual_seed(seed))
        parts.append(Features(rows[:, 0, 0], [rows, rows + 1], rows + 2))
    whole = Features.cat(parts)
    for part, rows in zip(parts, (slice(0, 3), slice(3, 6)), strict=True):
        assert torch.equal(whole[rows].embeddings, part.embeddings)
        assert all(torch.equal(one, two) for one, two in zip(whole[rows].patches, part.patches, strict=True))
        assert torch.equal(whole[rows].bank, part.bank)


def test_every_second_position() -> None:
    grid = torch.arange(25).view(1, 5, 5, 1)
    assert subsample_grid(grid).flatten().tolist() == [0, 2, 4, 10, 12, 14, 20, 22, 24]


def test_highest_part_of_each_map() -> None:
    maps = torch.arange(2 * 3 * 1000.0).view(2, 3, 40, 25)
    torch.testing.assert_close(mean_of_highest(maps)[:, 0], torch.tensor([998.0, 3998.0]))  # three of 1,000
