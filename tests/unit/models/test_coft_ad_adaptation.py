# Copyright (C) 2026 anomalib-fewshot contributors
# SPDX-License-Identifier: Apache-2.0

"""Fine-tuning of the metric: loss in closed form, draws against a loop, effect on anomalies."""

from dataclasses import replace

import pytest
import torch

from anomalib_fewshot.models.coft_ad.adaptation import (
    AdaptationSettings,
    adapt_metrics,
    adaptation_loss,
    mean_log_energy,
    sample_energies,
)
from anomalib_fewshot.models.coft_ad.density import apply_metric
from anomalib_fewshot.models.coft_ad.folds import OutOfFold
from anomalib_fewshot.models.components import seeded_generator

SETTINGS = AdaptationSettings(num_steps=30, learning_rate=1e-2, anchor_weight=1.0)


def batch(size: int = 4, dim: int = 6, seed: int = 0) -> torch.Tensor:
    return torch.randn(size, dim, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def whitened(seed: int = 0, dim: int = 6) -> OutOfFold:
    """Return normal patches, and anomalous ones that are longer in one direction."""
    rng = torch.Generator().manual_seed(seed)
    anomalous = torch.randn(50, dim, generator=rng)
    anomalous[:, 0] *= 3
    return OutOfFold(torch.randn(6, 8, 8, dim, generator=rng), anomalous)


def run(groups: list[OutOfFold], settings: AdaptationSettings = SETTINGS) -> tuple[list[torch.Tensor], list[float]]:
    losses = []
    return adapt_metrics(groups, settings, losses.append), losses


def test_anomalies_move_away_from_normal_patches() -> None:
    """Relative to normal patches, anomalies are further out than without it, and the loss falls."""
    groups = [whitened(0), whitened(1)]
    deltas, losses = run(groups)
    assert len(losses) == 30
    assert sum(losses[-5:]) < sum(losses[:5])
    for group, delta in zip(groups, deltas, strict=True):
        plain = group.anomalous.norm(dim=-1).mean() / group.normal.norm(dim=-1).mean()
        adapted = [apply_metric(part, delta).norm(dim=-1).mean() for part in (group.anomalous, group.normal)]
        assert adapted[0] / adapted[1] > 1.05 * plain


def test_the_seed_decides_the_patches_of_each_step() -> None:
    still = replace(SETTINGS, learning_rate=0.0, num_steps=3)
    runs = [run([whitened()], replace(still, seed=seed))[1] for seed in (0, 0, 1)]
    assert runs[0] == runs[1]
    assert len({*runs[0], *runs[2]}) == 6  # nothing moves: only the draws differ


@pytest.mark.parametrize("count", [1, 40, 1024, 1064])
def test_energies_are_those_of_rows_that_are_drawn(count: int) -> None:
    """Of few rows each energy is computed once, with the gradient of all draws. Of many, those that are drawn."""
    rows = torch.randn(count, 5, generator=seeded_generator(0))
    deltas = [(0.1 * torch.randn(5, 5, generator=seeded_generator(1))).requires_grad_() for _ in range(2)]
    energies = sample_energies(rows, deltas[0], 1024, seeded_generator(2))
    drawn = rows[torch.randint(count, (1024,), generator=seeded_generator(2))]
    expected = torch.stack([mean_log_energy(row @ (torch.eye(5) + deltas[1])) for row in drawn])
    torch.testing.assert_close(energies, expected)
    gradients = [torch.autograd.grad(e.square().sum(), d)[0] for e, d in zip((energies, expected), deltas, strict=True)]
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-3)


def test_a_group_without_anomalies_keeps_the_identity() -> None:
    empty = replace(whitened(), anomalous=whitened().anomalous[:0])
    deltas, losses = run([whitened(), empty])
    assert [bool(delta.any()) for delta in deltas] == [True, False]
    assert len(losses) == 30
    assert run([empty])[1] == []
    deltas, losses = run([whitened()], replace(SETTINGS, num_steps=0))
    assert not deltas[0].any()
    assert losses == []


def test_adaptation_loss_in_closed_form() -> None:
    """With the threshold at the energy of both, each logistic term is log 2; the anchor is the mean square of a row."""
    rows, adaptation = torch.ones(3, 6, dtype=torch.float64), torch.full((6, 6), 0.5, dtype=torch.float64)
    threshold = mean_log_energy(rows)[0]
    assert threshold == pytest.approx(0.001, abs=1e-5)  # log(1 + 0.001)
    settings = AdaptationSettings(0, 0.0, positive_weight=1, negative_weight=10, anchor_weight=100)
    energies = mean_log_energy(rows)
    loss = adaptation_loss(energies, energies, threshold, adaptation, settings)
    assert loss == pytest.approx(11 * 0.6931472 + 100 * 6 * 0.25)


def test_adaptation_loss_draws_normal_in_and_pushes_anomalous_out_within_bounds() -> None:
    normal, anomalous = batch(seed=1).requires_grad_(), batch(seed=2).requires_grad_()
    settings, zero = AdaptationSettings(0, 0.0), torch.zeros(6, 6, dtype=torch.float64)
    threshold = torch.tensor(0.0)
    adaptation_loss(mean_log_energy(normal), mean_log_energy(anomalous), threshold, zero, settings).backward()
    assert ((normal.grad * normal).sum(-1) > 0).all()  # a step down its gradient makes it shorter
    assert ((anomalous.grad * anomalous).sum(-1) < 0).all()
    short, middle, long = (mean_log_energy(batch() * scale) for scale in (0.01, 1, 100))
    near = adaptation_loss(short, long, threshold, zero, settings)
    far = adaptation_loss(long, middle, threshold, zero, settings)
    assert 0 < near < 1e-3 < far


def test_adaptation_loss_has_right_gradients() -> None:
    def loss(normal: torch.Tensor, anomalous: torch.Tensor, *others: torch.Tensor) -> torch.Tensor:
        settings = AdaptationSettings(0, 0.0, 1, 0.5, anchor_weight=2)
        return adaptation_loss(mean_log_energy(normal), mean_log_energy(anomalous), *others, settings)

    inputs = (batch(seed=1), batch(seed=2), torch.tensor(0.1, dtype=torch.float64), batch(6))
    assert torch.autograd.gradcheck(loss, [tensor.requires_grad_() for tensor in inputs])
