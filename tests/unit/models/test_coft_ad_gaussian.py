# Copyright (C) 2026 anomalib-fewshot contributors
# SPDX-License-Identifier: Apache-2.0

"""The density, against scikit-learn and against values in closed form."""

import pytest
import torch
from sklearn.covariance import empirical_covariance, oas

from anomalib_fewshot.models.coft_ad.gaussian import Gaussian, oas_covariance, symmetric_whitening
from anomalib_fewshot.models.components import Moments


def embeddings(count: int, dim: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(count, dim, generator=generator, dtype=torch.float64) * torch.arange(1, dim + 1) + 3


@pytest.mark.parametrize(("count", "dim"), [(3, 8), (40, 8), (1, 4)])
def test_covariance_is_that_of_scikit_learn(count: int, dim: int) -> None:
    rows = embeddings(count, dim)
    expected = torch.from_numpy(oas(rows.numpy())[0]) if count > 1 else torch.zeros(dim, dim, dtype=torch.float64)
    torch.testing.assert_close(oas_covariance(Moments.of(rows)), expected, rtol=1e-9, atol=1e-9)


def test_moments_add_up() -> None:
    rows = embeddings(30, 5)
    whole = Moments.of(rows)
    parts = Moments.of(rows[:7]) + Moments.of(rows[7:].reshape(23, 1, 5))
    for mine, theirs in zip(vars(whole).values(), vars(parts).values(), strict=True):
        torch.testing.assert_close(mine, theirs)


def test_distance_is_the_mahalanobis_distance() -> None:
    rows = embeddings(500, 3)
    gaussian = Gaussian(3, regularization=1e-9)
    gaussian.fit(Moments.of(rows))
    covariance = oas_covariance(Moments.of(rows))
    queries = embeddings(6, 3).float().reshape(2, 3, 3)
    delta = queries.double() - rows.mean(0)
    expected = torch.einsum("...i,ij,...j->...", delta, torch.linalg.inv(covariance), delta).sqrt()
    torch.testing.assert_close(gaussian(queries), expected.float(), rtol=1e-4, atol=1e-4)


def test_regularization_is_a_fraction_of_the_mean_variance() -> None:
    """Variance 4 along one of two axes: a regularization of 0.5 adds 0.5 * (4 + 0) / 2 to each."""
    rows = torch.tensor([[2.0, 0.0], [-2.0, 0.0]]).repeat(5000, 1)
    gaussian = Gaussian(2, regularization=0.5)
    gaussian.fit(Moments.of(rows))
    torch.testing.assert_close(gaussian(torch.eye(2)), torch.tensor([5.0, 1.0]).rsqrt(), rtol=1e-3, atol=1e-3)


def test_distance_does_not_depend_on_scale_and_offset() -> None:
    rows = embeddings(50, 4)
    first, second = Gaussian(4, 0.01), Gaussian(4, 0.01)
    first.fit(Moments.of(rows))
    second.fit(Moments.of(10 * rows + 5))
    torch.testing.assert_close(first(rows.float()), second(10 * rows.float() + 5), rtol=1e-4, atol=1e-4)


def test_single_embedding_is_finite_and_at_distance_zero() -> None:
    row = torch.ones(1, 4) / 2
    gaussian = Gaussian(4, 0.01)
    gaussian.fit(Moments.of(row))
    distances = gaussian(torch.stack([row[0], -row[0]]))
    assert distances[0] == 0
    assert torch.isfinite(distances).all()
    assert distances[1] > 0


def test_shrinkage_vanishes_with_many_embeddings() -> None:
    rows = embeddings(20000, 3)
    expected = torch.from_numpy(empirical_covariance(rows.numpy()))
    torch.testing.assert_close(oas_covariance(Moments.of(rows)), expected, rtol=1e-2, atol=1e-2)


def test_regularization_must_be_positive() -> None:
    with pytest.raises(ValueError, match="`regularization` must be above 0, got 0"):
        Gaussian(4, 0)


def mixed_rows(count: int = 500, dim: int = 4) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    mixing = torch.randn(dim, dim, generator=generator)
    return torch.randn(count, dim, generator=generator) @ mixing + 3


def test_whitened_rows_have_unit_covariance() -> None:
    rows = mixed_rows()
    mean, whitening = symmetric_whitening(Moments.of(rows), regularization=0.0)
    torch.testing.assert_close(((rows - mean) @ whitening).T.cov(correction=0), torch.eye(4), rtol=1e-3, atol=1e-3)


def test_whitening_is_the_mahalanobis_distance_with_a_regularization() -> None:
    """Against the inverse of the correlation of standardised rows, with the regularization on its diagonal."""
    rows = mixed_rows()
    mean, whitening = symmetric_whitening(Moments.of(rows), regularization=0.3)
    standardised = (rows - rows.mean(0)) / rows.std(0, correction=0)
    inverse = torch.linalg.inv(standardised.T.cov(correction=0) + 0.3 * torch.eye(4))
    expected = torch.stack([row @ inverse @ row for row in standardised]).sqrt()
    torch.testing.assert_close(((rows - mean) @ whitening).norm(dim=-1), expected, rtol=1e-4, atol=1e-4)


def test_whitening_of_a_constant_channel_and_of_one_row_is_finite() -> None:
    constant = mixed_rows()
    constant[:, 0] = 7.0
    for given in (constant, mixed_rows(1)):
        assert all(part.isfinite().all() for part in symmetric_whitening(Moments.of(given), regularization=0.1))


def test_moments_without_a_part_are_those_of_the_rest() -> None:
    rows = mixed_rows()
    left = Moments.of(rows) - Moments.of(rows[:100])
    for mine, theirs in zip(vars(left).values(), vars(Moments.of(rows[100:])).values(), strict=True):
        torch.testing.assert_close(mine, theirs)
