# Copyright (C) 2026 anomalib-fewshot contributors
# SPDX-License-Identifier: Apache-2.0

"""The Gaussian of all positions and its fine-tuned metric."""

from math import log

import pytest
import torch

from anomalib_fewshot.models.coft_ad.density import FeatureGaussian, FeatureGroup, on_one_grid, standardize
from anomalib_fewshot.models.coft_ad.gaussian import symmetric_whitening
from anomalib_fewshot.models.components import Moments


def rows(count: int = 500, dim: int = 4, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(dim, dim, generator=generator)
    return torch.randn(count, dim, generator=generator) @ mixing + 3


def density(norm_power: float = 1.0, regularization: float = 0.1, dim: int = 4) -> FeatureGaussian:
    return FeatureGaussian(
        FeatureGroup(deep=False, norm_power=norm_power, regularization=regularization, weight=1.0),
        dim,
    )


@pytest.mark.parametrize(("power", "lengths"), [(0.0, (5.0, 13.0)), (0.5, (5**0.5, 13**0.5)), (1.0, (1.0, 1.0))])
def test_features_are_divided_by_a_power_of_their_length(power: float, lengths: tuple[float, float]) -> None:
    first = torch.tensor([3.0, 4.0]).view(1, 2, 1, 1).expand(1, 2, 4, 4)
    second = torch.tensor([5.0, 12.0]).view(1, 2, 1, 1).expand(1, 2, 2, 2)  # a coarser grid
    embeddings = density(power).group.patches(on_one_grid([first, second]))
    assert embeddings.shape == (1, 4, 4, 4)
    torch.testing.assert_close(embeddings[0, 1, 2, :2].norm(), torch.tensor(lengths[0]))
    torch.testing.assert_close(embeddings[0, 1, 2, 2:].norm(), torch.tensor(lengths[1]))


def test_a_feature_without_length_is_finite() -> None:
    assert density().group.patches([torch.zeros(1, 4, 2, 2)]).isfinite().all()


def test_distance_is_that_of_whitened_and_adapted_rows() -> None:
    gaussian = density()
    gaussian.fit(Moments.of(rows()))
    mean, whitening = symmetric_whitening(Moments.of(rows()), regularization=0.1)
    whitened = (rows() - mean) @ whitening
    torch.testing.assert_close(gaussian(rows()), whitened.norm(dim=-1))  # as fitted, it is Mahalanobis'
    gaussian.metric_delta.copy_(0.1 * rows(4))
    gaussian.fit(Moments.of(rows()))
    expected = torch.stack([(row @ (torch.eye(4) + gaussian.metric_delta)).norm() for row in whitened])
    torch.testing.assert_close(gaussian(rows()), expected)
    torch.testing.assert_close(gaussian.whitened_distance(whitened), expected)


def test_distances_are_standardized_by_those_of_held_out_images() -> None:
    gaussian = density()
    gaussian.fit_scale(torch.tensor([[1.0], [3.0]]))
    shown = standardize(torch.tensor([0.0, 2.0, 4.0]), gaussian.distance_mean, gaussian.distance_std)
    torch.testing.assert_close(shown, torch.tensor([-2.0, 0.0, log(3)]))
    gaussian.fit_scale(torch.full((5, 1), 2.0))  # no deviation at all
    assert standardize(torch.tensor(2.0), gaussian.distance_mean, gaussian.distance_std).abs() < 1
