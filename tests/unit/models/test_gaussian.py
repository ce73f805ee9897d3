# Copyright (C) 2026 anomalib-fewshot contributors
# SPDX-License-Identifier: Apache-2.0

"""Covariances and whitenings, against scikit-learn and against values in closed form."""

import pytest
import torch
from sklearn.covariance import empirical_covariance, oas

from anomalib_fewshot.models.components import Moments, lower_triangle, oas_covariance, symmetric_whitening


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


def test_shrinkage_vanishes_with_many_embeddings() -> None:
    rows = embeddings(20000, 3)
    expected = torch.from_numpy(empirical_covariance(rows.numpy()))
    torch.testing.assert_close(oas_covariance(Moments.of(rows)), expected, rtol=1e-2, atol=1e-2)


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


def test_triangle_keeps_the_norm_of_every_row() -> None:
    metric, rows = torch.randn(7, 7), torch.randn(20, 7)
    triangle = lower_triangle(metric)
    assert not triangle.triu(1).any()
    torch.testing.assert_close((rows @ triangle).norm(dim=-1), (rows @ metric).norm(dim=-1))
