# Copyright (C) 2026 anomalib-fewshot contributors
# SPDX-License-Identifier: Apache-2.0

"""Drift: what chance does."""

import numpy as np
import pytest

from anomalib_fewshot.inspection.drift import describe_drift, level_p_value

LEVELS = [0.125, 0.25, 0.375, 0.5]


@pytest.mark.parametrize(("num_good", "num_new"), [(4, 20), (8, 50), (3, 10)])
def test_p_value_is_that_of_exchangeable_scores(num_good: int, num_new: int) -> None:
    generator = np.random.default_rng(0)
    scores = generator.random((20000, num_good + num_new))
    median = np.sort(scores[:, :num_good], axis=1)[:, (num_good + 1) // 2 - 1]
    above = (scores[:, num_good:] > median[:, None]).sum(1)
    for number in (num_new // 2, num_new - 2, num_new):
        assert level_p_value(number, num_new, num_good) == pytest.approx((above >= number).mean(), abs=0.012)


def test_few_good_pictures_need_many_new_ones() -> None:
    assert level_p_value(10, 10, 4) > 0.01 > level_p_value(50, 50, 4)
    assert level_p_value(10, 10, 32) < 0.01
    assert level_p_value(0, 10, 4) == pytest.approx(1)


def test_words() -> None:
    generator = np.random.default_rng(0)
    assert not describe_drift([0.1] * 7, LEVELS)
    assert not describe_drift([0.1] * 50, LEVELS[:1])
    usual = describe_drift(generator.random(40).tolist(), LEVELS)
    assert "chance may do" in usual
    assert "Kendall" not in usual
    high = describe_drift((0.6 + 0.3 * generator.random(60)).tolist(), LEVELS)
    assert high.startswith("60 of 60 new pictures are above the median of the held-out good ones, which chance does in")
    assert "4 good pictures are no longer enough" in high
    assert "later pictures have higher scores" in describe_drift(np.linspace(0, 1, 40).tolist(), LEVELS)
    assert "later pictures have lower scores" in describe_drift(np.linspace(1, 0, 40).tolist(), LEVELS)
    assert "Kendall" not in describe_drift([0.3] * 40, LEVELS)  # all equal
