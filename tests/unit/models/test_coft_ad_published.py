# Copyright (C) 2026 anomalib-fewshot contributors
# SPDX-License-Identifier: Apache-2.0

"""The published form: its losses against loops, and its Gaussian in closed form."""

import torch
from torch.nn import functional as F  # noqa: N812

from anomalib_fewshot.models.coft_ad.published import (
    ContrastiveHeads,
    ContrastiveLoss,
    cross_instance_loss,
    image_gaussian,
    negative_pair_loss,
    same_instance_loss,
)
from anomalib_fewshot.models.components import Moments, oas_covariance


def batch(size: int = 4, dim: int = 6, seed: int = 0) -> torch.Tensor:
    return torch.randn(size, dim, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_losses_are_those_of_slow_loops() -> None:
    prediction, target = batch(seed=1), batch(seed=2)
    same = [F.cosine_similarity(prediction[i], target[i], dim=0) for i in range(4)]
    cross = [F.cosine_similarity(prediction[i], target[j], dim=0) for i in range(4) for j in range(4) if i != j]
    torch.testing.assert_close(same_instance_loss(prediction, target), -torch.stack(same).mean())
    torch.testing.assert_close(cross_instance_loss(prediction, target), -torch.stack(cross).mean())
    torch.testing.assert_close(negative_pair_loss(prediction, target), torch.stack(same).mean())


def test_total_is_the_symmetric_weighted_sum() -> None:
    first, second, one, two, clean, anomalous = (batch(seed=seed) for seed in range(6))
    expected = (
        (same_instance_loss(first, two) + same_instance_loss(second, one)) / 2
        + 0.5 * (cross_instance_loss(first, two) + cross_instance_loss(second, one)) / 2
        + 0.25 * negative_pair_loss(clean, anomalous)
    )
    total = ContrastiveLoss(0.5, 0.25)
    torch.testing.assert_close(total((one, first), (two, second), clean, anomalous), expected)
    torch.testing.assert_close(total((two, second), (one, first), clean, anomalous), expected)


def test_order_and_length_of_embeddings_do_not_matter() -> None:
    prediction, target, order = batch(seed=1), batch(seed=2), torch.tensor([2, 0, 3, 1])
    for loss in (same_instance_loss, cross_instance_loss, negative_pair_loss):
        torch.testing.assert_close(loss(3 * prediction[order], target[order] / 7), loss(prediction, target))


def test_a_single_image_has_no_cross_instance_pair() -> None:
    prediction, target = batch(1, seed=1).requires_grad_(), batch(1, seed=2)
    loss = cross_instance_loss(prediction, target)
    loss.backward()
    assert loss == 0
    assert not prediction.grad.any()


def test_gradients_are_right_and_stop_at_the_targets() -> None:
    prediction = batch(3).requires_grad_()
    for loss in (same_instance_loss, cross_instance_loss, negative_pair_loss):
        assert torch.autograd.gradcheck(lambda p, loss=loss: loss(p, batch(3, seed=2)), prediction)
    projection = batch(3).requires_grad_()
    ContrastiveLoss(1, 0)((projection, batch(3, seed=1).requires_grad_()), (projection, prediction)).backward()
    assert projection.grad is None
    assert prediction.grad is not None


def test_heads_have_a_gradient_and_take_a_single_image() -> None:
    heads = ContrastiveHeads(6)
    projection, prediction = heads(batch(1).float())
    (projection.sum() + prediction.sum()).backward()
    assert all(parameter.grad is not None for parameter in heads.parameters())
    assert any(parameter.grad.any() for parameter in heads.parameters())
    assert projection.std() > 0.1  # the layer norm of a batch of one does not return zero


def embeddings(count: int, dim: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(count, dim, generator=generator, dtype=torch.float64) * torch.arange(1, dim + 1) + 3


def distance(queries: torch.Tensor, rows: torch.Tensor, regularization: float = 0.01) -> torch.Tensor:
    mean, metric = image_gaussian(Moments.of(rows), regularization)
    return ((queries - mean) @ metric).norm(dim=-1)


def test_distance_is_the_mahalanobis_distance() -> None:
    rows = embeddings(500, 3)
    covariance = oas_covariance(Moments.of(rows))
    queries = embeddings(6, 3).float().reshape(2, 3, 3)
    delta = queries.double() - rows.mean(0)
    expected = torch.einsum("...i,ij,...j->...", delta, torch.linalg.inv(covariance), delta).sqrt()
    torch.testing.assert_close(distance(queries, rows, 1e-9), expected.float(), rtol=1e-4, atol=1e-4)


def test_regularization_is_a_fraction_of_the_mean_variance() -> None:
    """Variance 4 along one of two axes: a regularization of 0.5 adds 0.5 * (4 + 0) / 2 to each."""
    rows = torch.tensor([[2.0, 0.0], [-2.0, 0.0]]).repeat(5000, 1)
    torch.testing.assert_close(
        distance(torch.eye(2), rows, 0.5),
        torch.tensor([5.0, 1.0]).rsqrt(),
        rtol=1e-3,
        atol=1e-3,
    )


def test_distance_does_not_depend_on_scale_and_offset() -> None:
    rows = embeddings(50, 4)
    first, second = distance(rows.float(), rows), distance(10 * rows.float() + 5, 10 * rows + 5)
    torch.testing.assert_close(first, second, rtol=1e-4, atol=1e-4)


def test_single_embedding_is_finite_and_at_distance_zero() -> None:
    row = torch.ones(1, 4) / 2
    distances = distance(torch.stack([row[0], -row[0]]), row)
    assert distances[0] == 0
    assert torch.isfinite(distances).all()
    assert distances[1] > 0
