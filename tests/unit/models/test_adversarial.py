# Copyright (C) 2026 anomalib-fewshot contributors
# SPDX-License-Identifier: Apache-2.0

"""The adversarial loss, on features that are shifted Gaussians."""

from copy import deepcopy
from math import log
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812

from anomalib_fewshot.models.components import AdversarialStep, Discriminator
from anomalib_fewshot.models.components.adversarial import discriminator_loss, generator_loss


def features(shift: float, seed: int = 0, count: int = 256, channels: int = 8) -> torch.Tensor:
    rows = torch.randn(count, channels, generator=torch.Generator().manual_seed(seed))
    return rows + shift * torch.eye(channels)[0]


def step_of(weight: float = 1.0, **arguments) -> AdversarialStep:
    return AdversarialStep(8, weight, **{"learning_rate": 1e-2} | arguments)


def test_losses_are_cross_entropies() -> None:
    first, second = torch.randn(2, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    logits, labels = torch.cat([first, second]), torch.cat([torch.zeros(5), torch.ones(5)]).double()
    expected = F.binary_cross_entropy_with_logits(logits, labels)
    torch.testing.assert_close(discriminator_loss(first, second), expected)
    torch.testing.assert_close(generator_loss(first, second), F.binary_cross_entropy_with_logits(logits, 1 - labels))
    assert torch.autograd.gradcheck(generator_loss, (first.requires_grad_(), second.requires_grad_()))


def test_discriminator_sees_directions_at_every_position() -> None:
    discriminator = Discriminator(8, hidden=(16,))
    rows = features(0, count=12)
    expected = discriminator(rows)
    assert expected.shape == (12,)
    torch.testing.assert_close(discriminator(7 * rows), expected)
    torch.testing.assert_close(discriminator(rows.view(3, 2, 2, 8)), expected.view(3, 2, 2))


def test_discriminator_learns_to_separate_two_gaussians() -> None:
    adversarial = step_of()
    stats = [adversarial(features(-1, 2 * step), features(1, 2 * step + 1), step)[1] for step in range(60)]
    assert float(stats[0].loss) == pytest.approx(log(2), abs=0.05)
    assert stats[-1].accuracy > 0.75
    assert stats[-1].loss < 0.55


def test_discriminator_of_one_distribution_stays_at_chance() -> None:
    adversarial = step_of(learning_rate=1e-3)
    stats = [adversarial(features(0, 2 * step), features(0, 2 * step + 1), step)[1] for step in range(60)]
    assert float(stats[-1].accuracy) == pytest.approx(0.5, abs=0.1)


def test_generator_loss_moves_two_gaussians_together() -> None:
    adversarial, shift = step_of(), nn.Parameter(torch.tensor(1.0))
    optimizer = torch.optim.SGD([shift], lr=0.3)
    for step in range(150):
        direction = torch.eye(8)[0]
        loss, _ = adversarial(features(0, 2 * step), features(0, 2 * step + 1) + shift * direction, step)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert abs(shift.item()) < 0.4


def test_gradient_goes_to_both_features_and_not_to_the_discriminator() -> None:
    adversarial, first, second = step_of(), features(-1).requires_grad_(), features(1).requires_grad_()
    before = deepcopy(adversarial.discriminator.state_dict())
    loss, stats = adversarial(first, second, 0)
    loss.backward()
    assert first.grad.abs().sum() > 0
    assert second.grad.abs().sum() > 0
    assert not stats.loss.requires_grad
    for name, parameter in adversarial.discriminator.named_parameters():
        assert not parameter.requires_grad
        assert parameter.grad is None
        assert not torch.equal(parameter, before[name])


def test_update_is_that_of_a_plain_loop() -> None:
    adversarial = step_of()
    other = deepcopy(adversarial.discriminator).requires_grad_()
    optimizer = torch.optim.Adam(other.parameters(), 1e-2, betas=(0.5, 0.999))
    for step in range(3):
        first, second = features(-1, step), features(1, step)
        loss = discriminator_loss(other(first), other(second))
        _, stats = adversarial(first, second, step)
        torch.testing.assert_close(stats.loss, loss.detach())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    for mine, theirs in zip(adversarial.discriminator.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs.detach())


def test_weight_and_ramp_scale_the_loss() -> None:
    values = {}
    for weight, ramp_steps in ((1.0, 0), (0.5, 0), (1.0, 4), (1.0, 1)):
        values[weight, ramp_steps] = step_of(weight, ramp_steps=ramp_steps)(features(-1), features(1), 1)[0]
    torch.testing.assert_close(values[0.5, 0], values[1.0, 0] / 2)
    torch.testing.assert_close(values[1.0, 4], values[1.0, 0] / 2)  # the second of four steps
    torch.testing.assert_close(values[1.0, 1], values[1.0, 0])


def test_seed_alone_decides() -> None:
    results = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        state = torch.get_rng_state()
        results.append(step_of()(features(-1), features(1), 0)[0])
        assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(*results)
    assert not torch.equal(step_of(seed=1)(features(-1), features(1), 0)[0], results[0])


def test_weight_zero_is_the_plain_method_bit_for_bit() -> None:
    states = []
    for adversarial in (None, step_of(0.0)):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(8, 8), nn.Dropout(0.5), nn.Linear(8, 8))
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        for step in range(5):
            first, second = model(features(-1, step)), model(features(1, step))
            loss = (first - second).square().mean()
            if adversarial is not None:
                adversarial_loss, stats = adversarial(first, second, step)
                assert stats is None
                loss = loss + adversarial_loss
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        states.append([*model.state_dict().values(), torch.get_rng_state()])
    assert all(torch.equal(one, two) for one, two in zip(*states, strict=True))
    assert [*step_of(0.0).parameters()] == []


def test_single_precision_under_autocast() -> None:
    plain, halved = step_of(), step_of()
    with torch.autocast("cpu", torch.bfloat16):
        loss, _ = halved(features(-1), features(1), 0)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, plain(features(-1), features(1), 0)[0], rtol=0, atol=0)


def test_checkpoint_goes_on_where_it_was(tmp_path: Path) -> None:
    one, two = step_of(), step_of(seed=5)
    for step in range(3):
        one(features(-1, step), features(1, step), step)
    torch.save(one.state_dict(), tmp_path / "state.pt")
    two.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    torch.save(two.state_dict(), tmp_path / "again.pt")  # before it is used
    for other in (two, step_of(seed=6)):
        other.load_state_dict(torch.load(tmp_path / "again.pt", weights_only=True))
        losses = [deepcopy(model)(features(-1, 3), features(1, 3), 3)[0] for model in (one, other)]
        torch.testing.assert_close(*losses, rtol=0, atol=0)
        following = [deepcopy(model) for model in (one, other)]
        for step in (3, 4):
            losses = [model(features(-1, step), features(1, step), step)[0] for model in following]
        torch.testing.assert_close(*losses, rtol=0, atol=0)


@pytest.mark.parametrize(("saved", "loaded"), [(0.0, 0.0), (0.0, 1.0), (1.0, 0.0), (1.0, 1.0)])
def test_checkpoint_is_loaded_with_any_weight(saved: float, loaded: float) -> None:
    """As a part of a model, strictly, as Lightning does it. A discriminator without a counterpart is left as it is."""
    one, two = (nn.ModuleDict({"loss": step_of(weight), "net": nn.Linear(2, 2)}) for weight in (saved, loaded))
    one["loss"](features(-1), features(1), 0)
    before = deepcopy(two["loss"].state_dict())
    state = one.state_dict()
    two.load_state_dict(deepcopy(state))
    assert set(state) == set(one.state_dict())  # what was given is not changed
    torch.testing.assert_close(two["net"].weight, one["net"].weight)
    expected = one["loss"].state_dict() if saved == loaded else before
    for name, value in two["loss"].state_dict().items():
        if name != "_extra_state":
            assert torch.equal(value, expected[name])
    two["loss"](features(-1), features(1), 0)


def test_checkpoint_of_other_features_is_left_out() -> None:
    other = AdversarialStep(4, 1.0)
    other(features(0, channels=4), features(1, channels=4), 0)
    adversarial = step_of()
    adversarial.load_state_dict(other.state_dict())
    assert adversarial(features(-1), features(1), 0)[0].isfinite()


def test_gradient_of_the_discriminator_is_clipped(monkeypatch: pytest.MonkeyPatch) -> None:
    for clip_norm in (None, 0, 1e-3):  # 0 is no clipping, as for Lightning
        adversarial, norms = step_of(clip_norm=clip_norm), []
        parameters = [*adversarial.discriminator.parameters()]
        monkeypatch.setattr(
            adversarial.optimizer,
            "step",
            lambda parameters=parameters, norms=norms: norms.append(
                torch.cat([p.grad.flatten() for p in parameters]).norm(),
            ),
        )
        adversarial(features(-1), features(1), 0)
        assert float(norms[0]) == pytest.approx(1e-3, rel=1e-3) if clip_norm else norms[0] > 1e-2


@pytest.mark.parametrize(("arguments", "name"), [({"weight": -1}, "weight"), ({"ramp_steps": -1}, "ramp_steps")])
def test_wrong_arguments(arguments: dict, name: str) -> None:
    with pytest.raises(ValueError, match=f"`{name}` must be at least 0, got -1"):
        step_of(**arguments)
