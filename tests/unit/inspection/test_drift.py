# Copyright (C) 2026 anomalib-fewshot contributors
# SPDX-License-Identifier: Apache-2.0

"""Drift: both tests, their false-alarm rate and the report."""

import numpy as np
import pytest

from anomalib_fewshot.inspection.drift import (
    LEVEL_LIMIT,
    describe_drift,
    level_p_value,
    measure_drift,
    min_new_images,
)

CALIBRATION_SCORES = [0.125, 0.25, 0.375, 0.5]


@pytest.mark.parametrize(("num_good", "num_new"), [(4, 20), (8, 50), (3, 10)])
def test_p_value_of_exchangeable_scores(num_good: int, num_new: int) -> None:
    generator = np.random.default_rng(0)
    scores = generator.random((20000, num_good + num_new))
    median = np.sort(scores[:, :num_good], axis=1)[:, (num_good + 1) // 2 - 1]
    above = (scores[:, num_good:] > median[:, None]).sum(1)
    for number in (num_new // 2, num_new - 2, num_new):
        assert level_p_value(number, num_new, num_good, (num_good + 1) // 2) == pytest.approx(
            (above >= number).mean(),
            abs=0.012,
        )


@pytest.mark.parametrize("num_good", [2, 3, 4, 5, 8, 16, 64])
def test_limit_can_be_reached(num_good: int) -> None:
    rank = (num_good + 1) // 2
    number = min_new_images(num_good, rank)
    assert level_p_value(number, number, num_good, rank) <= LEVEL_LIMIT
    assert number == 8 or level_p_value(number - 1, number - 1, num_good, rank) > LEVEL_LIMIT
    assert level_p_value(0, number, num_good, rank) == pytest.approx(1)


@pytest.mark.parametrize(("num_good", "num_new"), [(4, 8), (4, 30), (8, 50)])
def test_false_alarm_rate(num_good: int, num_new: int) -> None:
    """The combined false-alarm rate of both tests on exchangeable scores."""
    generator = np.random.default_rng(0)
    alarms = 0
    for _ in range(2000):
        scores = generator.normal(size=num_good + num_new).tolist()
        drift = measure_drift(scores[num_good:], sorted(scores[:num_good]))
        assert drift is not None
        alarms += drift.has_level_shift or drift.has_trend
    print(f"k = {num_good}, {num_new} new: {alarms / 2000:.3f}")
    assert alarms / 2000 < 0.06 + 0.016  # three standard deviations


def test_all_new_images_above_the_median_are_drift() -> None:
    """The size of the difference does not matter, and four good images suffice."""
    drift = measure_drift([0.3] * 30, CALIBRATION_SCORES)
    assert drift is not None
    assert (drift.num_above, drift.num_new, drift.num_good) == (30, 30, 4)
    assert drift.has_level_shift
    assert not drift.has_trend  # all scores are equal
    assert "30 of 30 new pictures score above 2 of 4 good pictures" in describe_drift(
        [0.3] * 30,
        CALIBRATION_SCORES,
    )


def test_good_images_with_one_score_have_the_highest_rank() -> None:
    """Three of four good images are at the review threshold, so an image above it exceeds all three."""
    drift = measure_drift([0.45] * 7 + [0.3] * 13, [0.4, 0.4, 0.4, 0.5])
    assert drift is not None
    assert (drift.num_above, drift.rank) == (7, 3)
    assert drift.p_value == level_p_value(7, 20, 4, 3)


def test_normal_images_are_no_drift() -> None:
    drift = measure_drift(np.random.default_rng(0).random(40).tolist(), CALIBRATION_SCORES)
    assert drift is not None
    assert not drift.has_level_shift
    assert not drift.has_trend


@pytest.mark.parametrize(("start", "end", "word"), [(0, 1, "rise"), (1, 0, "fall")])
def test_trend(start: float, end: float, word: str) -> None:
    scores = np.linspace(start, end, 40).tolist()
    drift = measure_drift(scores, CALIBRATION_SCORES)
    assert drift is not None
    assert drift.has_trend
    assert f"Scores {word} " in describe_drift(scores, CALIBRATION_SCORES)


def test_too_few_images() -> None:
    assert measure_drift([0.1] * 7, CALIBRATION_SCORES) is None
    assert measure_drift([0.1] * 50, CALIBRATION_SCORES[:1]) is None
    assert not describe_drift([0.1] * 7, CALIBRATION_SCORES)
    assert "at least 12 new pictures" in describe_drift([0.9] * 10, CALIBRATION_SCORES)  # all of them are above
