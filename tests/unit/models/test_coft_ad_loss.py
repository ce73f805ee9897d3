# Copyright (C) 2026 anomalib-fewshot contributors
# SPDX-License-Identifier: Apache-2.0

"""The losses of CoftAD, against loops."""

import pytest
import torch
from torch.nn import functional as F  # noqa: N812

from anomalib_fewshot.models.coft_ad.loss import (
    AdaptationLoss,
    CoftADLoss,
    cosine_matrix,
    cross_instance_loss,
    mean_log_energy,
    negative_pair_loss,
    same_instance_loss,
)


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
    total = CoftADLoss(0.5, 0.25)
    torch.testing.assert_close(total((first, second), (one, two), clean, anomalous), expected)
    torch.testing.assert_close(total((second, first), (two, one), clean, anomalous), expected)


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
    CoftADLoss(1, 0)((batch(3, seed=1).requires_grad_(), prediction), (projection, projection)).backward()
    assert projection.grad is None
    assert prediction.grad is not None


def test_negative_pairs_are_left_out_where_their_weight_is_zero() -> None:
    pair = (batch(seed=1), batch(seed=2))
    nan = torch.full((4, 6), torch.nan, dtype=torch.float64)
    assert CoftADLoss(1, 0)(pair, pair, nan, nan).isfinite()


def test_shapes_must_agree() -> None:
    with pytest.raises(ValueError, match=r"must have one shape, got \(4, 6\) and \(3, 6\)"):
        cosine_matrix(batch(4), batch(3))


def test_adaptation_loss_in_closed_form() -> None:
    """With the threshold at the energy of both, each logistic term is log 2; the anchor is the mean square of a row."""
    rows, adaptation = torch.ones(3, 6, dtype=torch.float64), torch.full((6, 6), 0.5, dtype=torch.float64)
    threshold = mean_log_energy(rows)[0]
    assert threshold == pytest.approx(0.001, abs=1e-5)  # log(1 + 0.001)
    loss = AdaptationLoss(positive_weight=1, negative_weight=10, anchor_weight=100)
    energies = mean_log_energy(rows)
    loss = loss(energies, energies, threshold, adaptation)
    assert loss == pytest.approx(11 * 0.6931472 + 100 * 6 * 0.25)


def test_adaptation_loss_draws_normal_in_and_pushes_anomalous_out_within_bounds() -> None:
    normal, anomalous = batch(seed=1).requires_grad_(), batch(seed=2).requires_grad_()
    loss, zero = AdaptationLoss(1, 1, 1), torch.zeros(6, 6, dtype=torch.float64)
    loss(mean_log_energy(normal), mean_log_energy(anomalous), torch.tensor(0.0), zero).backward()
    assert ((normal.grad * normal).sum(-1) > 0).all()  # a step down its gradient makes it shorter
    assert ((anomalous.grad * anomalous).sum(-1) < 0).all()
    short, middle, long = (mean_log_energy(batch() * scale) for scale in (0.01, 1, 100))
    near, far = loss(short, long, torch.tensor(0.0), zero), loss(long, middle, torch.tensor(0.0), zero)
    assert 0 < near < 1e-3 < far


def test_adaptation_loss_has_right_gradients() -> None:
    def loss(normal: torch.Tensor, anomalous: torch.Tensor, *others: torch.Tensor) -> torch.Tensor:
        return AdaptationLoss(1, 0.5, 2)(mean_log_energy(normal), mean_log_energy(anomalous), *others)

    inputs = (batch(seed=1), batch(seed=2), torch.tensor(0.1, dtype=torch.float64), batch(6))
    assert torch.autograd.gradcheck(loss, [tensor.requires_grad_() for tensor in inputs])


@pytest.mark.parametrize("name", ["positive_weight", "negative_weight"])
def test_weights_must_not_be_negative(name: str) -> None:
    with pytest.raises(ValueError, match=f"`{name}` must not be below 0, got -1"):
        CoftADLoss(**{"positive_weight": 0, "negative_weight": 0, name: -1})
