# Copyright (C) 2026 anomalib-fewshot contributors
# SPDX-License-Identifier: Apache-2.0

"""Several densities at once, against each by itself."""

from math import log1p

import pytest
import torch
from torch.nn import functional as F  # noqa: N812

from anomalib_fewshot.models.coft_ad.density import standardize
from anomalib_fewshot.models.coft_ad.stacked_density import StackedDensity, StackedGaussians
from anomalib_fewshot.models.coft_ad.support_density import SupportDensity, mean_of_highest
from anomalib_fewshot.models.components import Moments

DIMS, GRIDS = (13, 13, 21), (12, 12, 3)


def features(seed: int, count: int, dims: tuple[int, ...] = DIMS) -> list[torch.Tensor]:
    """Return correlated features, far from zero, of pictures."""
    rng = torch.Generator().manual_seed(seed)
    mixings = [torch.randn(dim, dim, generator=torch.Generator().manual_seed(dim)) for dim in dims]
    return [
        torch.randn(count, grid, grid, dim, generator=rng) @ mixing + 5
        for dim, grid, mixing in zip(dims, GRIDS, mixings, strict=True)
    ]


def density(seed: int, dims: tuple[int, ...] = DIMS) -> SupportDensity:
    """Return a density of pictures, with a metric that is fine-tuned."""
    fitted = SupportDensity(8, dims)
    for group, part in zip(fitted.groups, features(seed, 4, dims), strict=True):
        rng = torch.Generator().manual_seed(seed)
        group.metric_delta.copy_(0.1 * torch.randn(group.metric_delta.shape, generator=rng))
        group.fit(Moments.of(part))
        group.fit_scale(group(part))
    return fitted


def slow_map(fitted: SupportDensity, patches: list[torch.Tensor]) -> torch.Tensor:
    """Return the weighted sum of standardized distances, of one group after another, on the finest grid."""
    parts = []
    for own, part in zip(fitted.groups, patches, strict=True):
        distances = own.group.weight * standardize(own(part), own.distance_mean, own.distance_std)
        parts.append(F.interpolate(distances[:, None], GRIDS[:1] * 2, mode="bilinear", align_corners=False)[:, 0])
    return torch.stack(parts).sum(0)


@pytest.mark.parametrize("count", [1, 2, 5])
@pytest.mark.parametrize("dims", [DIMS, (3, 3, 1)])  # fewer features than blocks, too
def test_maps_are_those_of_each_density(count: int, dims: tuple[int, ...]) -> None:
    densities, patches = [density(seed, dims) for seed in range(count)], features(9, 3, dims)
    maps = StackedDensity(densities)(patches)
    assert maps.shape == (3, count, 12, 12)
    expected = torch.stack([slow_map(own, patches) for own in densities], dim=1)
    torch.testing.assert_close(maps, expected, rtol=1e-5, atol=1e-5)


def test_distance_in_closed_form() -> None:
    """Of a metric that is no triangle: (3, 4) - (1, 1) = (2, 3), times ((0, 1), (2, 0)) is (6, 2)."""
    (gaussian, *_) = density(0, (2, 2, 2)).groups
    gaussian.mean.copy_(torch.tensor([1.0, 1.0]))
    gaussian.metric.copy_(torch.tensor([[0.0, 1.0], [2.0, 0.0]]))
    gaussian.distance_mean.fill_(1.0)
    gaussian.distance_std.fill_(0.5)
    (distance,) = StackedGaussians([gaussian])(torch.tensor([3.0, 4.0]).view(1, 1, 1, 2)).flatten().tolist()
    assert distance == pytest.approx(log1p((40**0.5 - 1) / 0.5))


def test_three_eighths_of_the_products_are_left_out() -> None:
    stacked = StackedDensity([density(seed, (16, 16, 16)) for seed in range(3)])
    sizes = [value.numel() for name, value in stacked.groups[0].named_buffers() if name.startswith("weight")]
    assert sum(sizes) == 3 * 16 * 16 * 5 // 8


def test_nothing_is_kept_twice() -> None:
    assert StackedDensity([density(0)]).state_dict() == {}


def test_highest_part_of_each_map() -> None:
    maps = torch.arange(2 * 3 * 400.0).view(2, 3, 20, 20)
    torch.testing.assert_close(mean_of_highest(maps)[:, 0], torch.tensor([398.5, 1598.5]))  # two of 400
