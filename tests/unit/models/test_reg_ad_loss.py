# Copyright (C) 2026 anomalib-fewshot contributors
# SPDX-License-Identifier: Apache-2.0

"""RegAD's loss, against loops."""

import pytest
import torch
from torch.nn import functional as F  # noqa: N812

from anomalib_fewshot.models.reg_ad.loss import RegADLoss, negative_cosine_similarity


def maps(seed: int = 0, batch: int = 2) -> torch.Tensor:
    return torch.randn(batch, 5, 2, 3, generator=torch.Generator().manual_seed(seed))


def test_similarity_is_that_of_a_slow_loop() -> None:
    one, two = maps(1), maps(2)
    values = [
        F.cosine_similarity(one[b, :, y, x], two[b, :, y, x], dim=0)
        for b in range(2)
        for y in range(2)
        for x in range(3)
    ]
    torch.testing.assert_close(negative_cosine_similarity(one, two), -torch.stack(values).mean())


def test_values_in_closed_form() -> None:
    loss = RegADLoss()
    x, y = maps(1), torch.zeros(2, 5, 2, 3)
    assert loss((x, x), (x, x)) == pytest.approx(-1)
    assert loss((x, -x), (x, x)) == pytest.approx(0)
    assert loss((x, x), (y, y)) == 0


def test_symmetric_in_the_branches_and_free_of_lengths() -> None:
    loss, (p, q, z, s) = RegADLoss(), (maps(seed) for seed in range(4))
    expected = (negative_cosine_similarity(p, s) + negative_cosine_similarity(q, z)) / 2
    torch.testing.assert_close(loss((p, q), (z, s)), expected)
    torch.testing.assert_close(loss((q, p), (s, z)), expected)
    torch.testing.assert_close(loss((2 * p, q / 3), (z * 7, s)), expected)


def test_gradient_stops_at_the_encodings() -> None:
    p, q, z, s = (maps(seed).requires_grad_() for seed in range(4))
    RegADLoss()((p, q), (z, s)).backward()
    assert p.grad.abs().sum() > 0
    assert q.grad.abs().sum() > 0
    assert z.grad is None
    assert s.grad is None


def test_gradient_is_right() -> None:
    """By central differences, as the loss computes in single precision."""
    x, y, step = maps(1).requires_grad_(), maps(2), 1e-2
    negative_cosine_similarity(x, y).backward()
    for index in ((0, 0, 0, 0), (1, 3, 1, 2)):
        ends = []
        for sign in (1, -1):
            moved = x.detach().clone()
            moved[index] += sign * step
            ends.append(negative_cosine_similarity(moved, y))
        torch.testing.assert_close(x.grad[index], (ends[0] - ends[1]) / (2 * step), rtol=1e-2, atol=1e-4)


def test_shapes_must_agree() -> None:
    with pytest.raises(ValueError, match=r"must have the same shape, got \(2, 5, 2, 3\) and \(1, 5, 2, 3\)"):
        negative_cosine_similarity(maps(), maps(batch=1))
