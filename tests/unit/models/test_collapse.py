# Copyright (C) 2026 anomalib-fewshot contributors
# SPDX-License-Identifier: Apache-2.0

"""Spread of encodings, where it is known."""

import pytest
import torch

from anomalib_fewshot.models.components import std_of_l2_normalized


def test_spread_of_random_directions_is_one_and_of_one_direction_zero() -> None:
    generator = torch.Generator().manual_seed(0)
    assert std_of_l2_normalized(torch.randn(8, 16, 16, 64, generator=generator)) == pytest.approx(1, abs=0.01)
    one = torch.randn(5, generator=generator).expand(4, 3, 3, 5) * torch.rand(4, 3, 3, 1, generator=generator)
    assert std_of_l2_normalized(one) == pytest.approx(0, abs=1e-3)
