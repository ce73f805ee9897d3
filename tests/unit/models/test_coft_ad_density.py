# Copyright (C) 2026 anomalib-fewshot contributors
# SPDX-License-Identifier: Apache-2.0

"""Gaussians of patches: several at once against each by itself, and values in closed form."""

from math import log, log1p

import pytest
import torch

from anomalib_fewshot.models.coft_ad.density import (
    DensityEnsemble,
    FittedGaussian,
    apply_metric,
    standardize,
)


def gaussians(count: int, dim: int) -> list[FittedGaussian]:
    """Return Gaussians with metrics that are no triangles, as a fine-tuning leaves them."""
    rng = torch.Generator().manual_seed(dim)
    fitted = []
    for _ in range(count):
        mean, metric = 5 + torch.randn(dim, generator=rng), torch.randn(dim, dim, generator=rng)
        fitted.append(FittedGaussian(mean, metric, 3 + torch.rand(9, generator=rng)))
    return fitted


def ensemble(fitted: list[FittedGaussian]) -> DensityEnsemble:
    density = DensityEnsemble(len(fitted[0].mean))
    density.fit(fitted)
    return density


@pytest.mark.parametrize("count", [1, 2, 5])
@pytest.mark.parametrize("dim", [13, 3, 1])  # fewer features than blocks, too
def test_maps_are_those_of_each_gaussian(count: int, dim: int) -> None:
    fitted = gaussians(count, dim)
    patches = 5 + torch.randn(3, 4, 6, dim, generator=torch.Generator().manual_seed(0))
    density = ensemble(fitted)
    maps = density(patches)
    assert maps.shape == (3, count, 4, 6)
    for number, own in enumerate(fitted):
        distances = ((patches - own.mean) @ own.metric).norm(dim=-1)
        expected = standardize(distances, own.out_of_fold.mean(), own.out_of_fold.std(correction=0))
        torch.testing.assert_close(maps[:, number], expected, rtol=1e-4, atol=1e-4)
        single = density(patches, slice(number, number + 1))
        torch.testing.assert_close(single[:, 0], maps[:, number], rtol=1e-4, atol=1e-4)


def test_distance_in_closed_form() -> None:
    """Of a metric that is no triangle: (3, 4) - (1, 1) = (2, 3), times ((0, 1), (2, 0)) is (6, 2)."""
    metric = torch.tensor([[0.0, 1.0], [2.0, 0.0]])
    density = ensemble([FittedGaussian(torch.ones(2), metric, torch.tensor([0.5, 1.5]))])
    assert density.distances(torch.tensor([[3.0, 4.0]])).item() == pytest.approx(40**0.5)
    (distance,) = density(torch.tensor([3.0, 4.0]).view(1, 1, 1, 2)).flatten().tolist()
    assert distance == pytest.approx(log1p((40**0.5 - 1) / 0.5))


def test_metric_is_applied_to_whitened_rows() -> None:
    rows, delta = torch.randn(5, 4), 0.1 * torch.randn(4, 4)
    torch.testing.assert_close(apply_metric(rows, delta), rows @ (torch.eye(4) + delta))


def test_distances_are_standardized_by_those_of_out_of_fold_images() -> None:
    shown = standardize(torch.tensor([0.0, 2.0, 4.0]), torch.tensor(2.0), torch.tensor(1.0))
    torch.testing.assert_close(shown, torch.tensor([-2.0, 0.0, log(3)]))
    density = ensemble([FittedGaussian(torch.zeros(2), torch.eye(2), torch.full((5, 1), 2.0))])  # no deviation at all
    assert density(torch.tensor([2.0, 0.0]).view(1, 1, 1, 2)).abs() < 1


def test_a_checkpoint_may_have_another_number_of_gaussians() -> None:
    density, loaded = ensemble(gaussians(5, 4)), DensityEnsemble(4)
    loaded.load_state_dict(density.state_dict())
    patches = torch.randn(1, 2, 2, 4)
    assert torch.equal(loaded(patches), density(patches))
