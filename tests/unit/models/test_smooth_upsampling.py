# Copyright (C) 2026 anomalib-fewshot contributors
# SPDX-License-Identifier: Apache-2.0

"""Upsampling and blur by matrices, against anomalib's."""

import pytest
import torch
from anomalib.models.components import GaussianBlur2d
from torch.nn import functional as F  # noqa: N812

from anomalib_fewshot.models.components import SmoothUpsampling


@pytest.mark.parametrize(("grid", "size"), [((28, 28), (224, 224)), ((8, 12), (64, 96)), ((7, 5), (50, 33))])
def test_it_is_interpolation_and_blur(grid: tuple[int, int], size: tuple[int, int]) -> None:
    maps = torch.rand(3, *grid, generator=torch.Generator().manual_seed(0))
    blur = GaussianBlur2d(kernel_size=(33, 33), sigma=(4.0, 4.0), channels=1)
    expected = blur(F.interpolate(maps[:, None], size, mode="bilinear", align_corners=False))[:, 0]
    torch.testing.assert_close(SmoothUpsampling(grid, size)(maps), expected)


def test_its_matrices_are_buffers_that_no_checkpoint_holds() -> None:
    model = SmoothUpsampling((3, 4), (40, 41))
    assert not model.state_dict()
    assert model.to("meta")(torch.zeros(2, 3, 4, device="meta")).shape == (2, 40, 41)


def test_a_constant_stays_and_small_maps_are_possible() -> None:
    torch.testing.assert_close(SmoothUpsampling((2, 2), (8, 8))(torch.full((1, 2, 2), 3.0)), torch.full((1, 8, 8), 3.0))


def test_gradient() -> None:
    maps = torch.rand(1, 3, 4, requires_grad=True)
    SmoothUpsampling((3, 4), (40, 41))(maps).sum().backward()
    assert maps.grad.isfinite().all()
