# Copyright (C) 2026 anomalib-fewshot contributors
# SPDX-License-Identifier: Apache-2.0

"""Synthesised anomalies: small, visible, where the mask says, and the same for the same generator."""

import pytest
import torch

from anomalib_fewshot.models.components.anomaly_synthesis import MIN_CHANGE, synthesize_anomalies


def stripes(height: int = 96, width: int = 128, count: int = 2) -> torch.Tensor:
    wave = 0.5 + 0.3 * torch.sin(torch.arange(width) / 3) * torch.cos(torch.arange(height) / 7)[:, None]
    noise = 0.05 * torch.rand(count, 3, height, width, generator=torch.Generator().manual_seed(0))
    return (wave + noise).clamp(0, 1)


def synthesize(images: torch.Tensor, per_kind: int = 2, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    return synthesize_anomalies(images, torch.Generator().manual_seed(seed), per_kind)


def test_shapes_and_range() -> None:
    anomalous, masks = synthesize(stripes())
    assert anomalous.shape == (24, 3, 96, 128)
    assert masks.shape == (24, 96, 128)
    assert masks.dtype == torch.bool
    assert 0 <= anomalous.min() <= anomalous.max() <= 1


def test_a_crack_has_one_grey_value() -> None:
    anomalous, masks = synthesize(stripes(count=1))
    change = (anomalous[10:] - stripes()[0]).flatten(1)  # the last kind is brighter or darker throughout
    assert (change.amax(1) <= 1e-6).logical_or(change.amin(1) >= -1e-6).all()
    assert masks.any(1).any(1).all()


def test_what_is_outside_of_the_mask_stays() -> None:
    anomalous, masks = synthesize(stripes(count=1), per_kind=5)
    change = (anomalous - stripes(count=1)).abs().mean(1)
    assert change[~masks].max() <= MIN_CHANGE
    assert change[masks].min() > MIN_CHANGE


def test_defects_can_be_seen_and_are_small() -> None:
    _, masks = synthesize(stripes(), per_kind=10)
    shares = masks.flatten(1).float().mean(1)
    assert (shares > 0).all()
    assert shares.max() < 0.15


@pytest.mark.parametrize("size", [(32, 32), (64, 200)])
def test_other_sizes_and_grey_images(size: tuple[int, int]) -> None:
    grey = stripes(*size)[:, :1].expand(-1, 3, -1, -1)
    anomalous, _ = synthesize(grey, per_kind=3)
    assert anomalous.isfinite().all()
    torch.testing.assert_close(anomalous[:, 0], anomalous[:, 2])  # no colour comes from nowhere


def test_the_generator_alone_decides() -> None:
    torch.manual_seed(1)
    first = synthesize(stripes())
    torch.manual_seed(2)
    second, other = synthesize(stripes()), synthesize(stripes(), seed=1)
    assert torch.equal(first[0], second[0])
    assert torch.equal(first[1], second[1])
    assert not torch.equal(first[0], other[0])


def test_an_image_without_any_texture_does_not_stop_it() -> None:
    """Nothing can be seen that is pasted there; the others can."""
    _, masks = synthesize(torch.full((1, 3, 64, 64), 0.5), per_kind=4)
    assert masks.flatten(1).any(1).sum() >= 8
