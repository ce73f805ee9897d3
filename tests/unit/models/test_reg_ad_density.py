# Copyright (C) 2026 anomalib-fewshot contributors
# SPDX-License-Identifier: Apache-2.0

"""The density at each position, against covariances that are made and inverted."""

import pytest
import torch

from anomalib_fewshot.errors import ArgumentError, NotFittedError
from anomalib_fewshot.models.reg_ad.density import PositionGaussian


def maps(count: int, channels: int = 6, seed: int = 0, size: tuple[int, int] = (3, 5)) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(channels, channels, generator=torch.Generator().manual_seed(99))
    return torch.einsum("bchw,cd->bdhw", torch.randn(count, channels, *size, generator=generator), mixing) + 2


def slow(support: torch.Tensor, query: torch.Tensor, regularization: float) -> torch.Tensor:
    """Return the distances of the paper, one position after the other, in double precision."""
    support, query = support.double(), query.double()
    result = torch.zeros(len(query), *query.shape[-2:], dtype=torch.double)
    for y in range(query.shape[-2]):
        for x in range(query.shape[-1]):
            samples = support[:, :, y, x]
            covariance = torch.cov(samples.T) if len(samples) > 1 else torch.zeros(len(samples.T), len(samples.T))
            inverse = torch.linalg.inv(covariance + regularization * torch.eye(len(samples.T)))
            for b, row in enumerate(query[:, :, y, x] - samples.mean(0)):
                result[b, y, x] = (row @ inverse.double() @ row).sqrt()
    return result


def fitted(support: torch.Tensor, regularization: float = 0.01, batch: int = 4, chunk: int = 4) -> PositionGaussian:
    density = PositionGaussian(regularization)
    density.fit(support.split(batch), len(support), chunk)
    return density


@pytest.mark.parametrize("regularization", [0.01, 1.0])
@pytest.mark.parametrize(("count", "channels"), [(22, 6), (5, 40), (2, 6), (1, 6)])
def test_distance_is_that_of_full_covariances(count: int, channels: int, regularization: float) -> None:
    support, query = maps(count, channels), maps(3, channels, seed=1)
    distance = fitted(support, regularization)(query)
    torch.testing.assert_close(distance.double(), slow(support, query, regularization), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("count", [5, 50])
def test_constant_channels_far_from_zero(count: int) -> None:
    """As those of a ReLU: their variance is the regularization alone, and sums of squares are far above it."""
    support, query = maps(count), maps(3, seed=1)
    support[:, 0] = query[:, 0] = 0
    support[:, 1:] += 500
    query[:, 1:] += 500
    torch.testing.assert_close(fitted(support)(query).double(), slow(support, query, 0.01), rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("channels", [6, 40])  # by moments, and by samples
@pytest.mark.parametrize("count", [9, 11, 13])
def test_another_number_of_maps_than_announced_is_refused(count: int, channels: int) -> None:
    with pytest.raises(ArgumentError, match=rf"`count`.*1\d.*got {count}"):
        PositionGaussian(0.01).fit(maps(10, channels).split(4), count)


def test_samples_themselves_are_near() -> None:
    """A difference of similar numbers: about the root of N - 1 at most, for each regularization."""
    support = maps(10, 40)
    distance = fitted(support)(support)
    torch.testing.assert_close(distance.double(), slow(support, support, 0.01), rtol=1e-2, atol=1e-2)
    assert distance.max() < 3.01


def test_batches_and_chunks_do_not_matter() -> None:
    support, query = maps(7), maps(2, seed=1)
    expected = fitted(support, batch=7, chunk=100)(query)
    torch.testing.assert_close(fitted(support, batch=2, chunk=4)(query), expected)


@pytest.mark.parametrize("count", [3, 30])
def test_state_is_restored_for_each_number_of_samples(count: int) -> None:
    density, other = fitted(maps(count)), fitted(maps(11, seed=3), regularization=0.5)
    other.load_state_dict(density.state_dict())
    torch.testing.assert_close(other(maps(2, seed=1)), density(maps(2, seed=1)), rtol=0, atol=0)
    empty = PositionGaussian(0.01)
    assert not empty.is_fitted
    empty.load_state_dict(density.state_dict())
    torch.testing.assert_close(empty(maps(2, seed=1)), density(maps(2, seed=1)), rtol=0, atol=0)


def test_fit_in_a_validation_can_be_loaded_over() -> None:
    density = PositionGaussian(0.01)
    with torch.inference_mode():
        density.fit([maps(4)], 4)
    density.load_state_dict(fitted(maps(5)).state_dict())
    assert not density.basis.is_inference()


def test_half_precision_does_not_matter() -> None:
    density, query = fitted(maps(22)), maps(2, seed=1)
    with torch.autocast("cpu", torch.bfloat16):
        halved = density(query)
    torch.testing.assert_close(halved, density(query), rtol=0, atol=0)


def test_errors() -> None:
    density = PositionGaussian(0.01)
    with pytest.raises(NotFittedError, match="density is not fitted"):
        density(maps(1))
    density.fit([maps(4)], 4)
    with pytest.raises(ValueError, match="must have 15 positions, .*got 4 x 5"):
        density(maps(1, size=(4, 5)))
    with pytest.raises(ValueError, match="`regularization` must be positive, got 0"):
        PositionGaussian(0)


def test_basis_grows_with_the_samples_up_to_the_channels_alone() -> None:
    assert [fitted(maps(count)).basis.shape for count in (4, 6, 50)] == [(15, 4, 6), (15, 6, 6), (15, 6, 6)]
