# Copyright (C) 2026 anomalib-fewshot contributors
# SPDX-License-Identifier: Apache-2.0

"""What k normal images can guarantee: against tournaments of exchangeable images."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from anomalib_fewshot.errors import ArgumentError
from anomalib_fewshot.post_processing.calibration_scheme import CalibrationScheme, needed, p_values, rate_bound


def margins(images: np.ndarray, new: int) -> np.ndarray:
    """Return the margins of an image over the others. Scores are distances from the mean of the others."""
    others = [index for index in range(len(images)) if index != new]
    margins = []
    for held_out in others:
        mean = images[[index for index in others if index != held_out]].mean()
        margins.append(abs(images[new] - mean) - abs(images[held_out] - mean))
    return np.array(margins)


@given(st.lists(st.integers(-50, 50), min_size=3, max_size=12), st.integers(1, 5))
def test_guarantee_holds_for_all_arrangements_of_images(values: list[int], rank: int) -> None:
    """Each of k + 1 images is the new one in turn: the part that is called a defect is never above the guarantee.

    This is the theorem. For exchangeable images it bounds the false-alarm rate of any images.
    """
    images = np.array(values, dtype=float)
    count = len(images) - 1
    alarms = [(margins(images, new) > 0).sum() >= count - rank + 1 for new in range(count + 1)]
    assert np.mean(alarms) <= CalibrationScheme.JACKKNIFE_PLUS.guaranteed_fpr(min(rank, count), count) + 1e-9


def test_training_scores_have_no_guarantee() -> None:
    """Of -1, 1 and 3 both ends are further from the mean of the others than these are, which the fit has seen."""
    images = np.array([-1.0, 1.0, 3.0])
    means = [np.delete(images, new).mean() for new in range(3)]
    highest = [abs(np.delete(images, new) - mean).max() for new, mean in enumerate(means)]
    assert [abs(images[new] - means[new]) > highest[new] for new in range(3)] == [True, False, True]  # 2 of 3, not 1
    assert [(margins(images, new) > 0).all() for new in range(3)].count(True) <= 1


@pytest.mark.parametrize("count", [2, 4, 8])
def test_false_alarm_rate_is_as_guaranteed(count: int) -> None:
    rng = np.random.default_rng(count)
    alarms = [(margins(rng.standard_t(3, count + 1), count) > 0).all() for _ in range(4000)]
    assert abs(np.mean(alarms) - 1 / (count + 1)) < 0.03  # six standard errors below a third


def test_images_that_are_not_exchangeable_break_the_guarantee() -> None:
    """A line that drifts: each image is further off than the last, and the new one is the furthest."""
    rng = np.random.default_rng(0)
    drifting = [rng.normal(np.arange(5) ** 2, 0.5) for _ in range(500)]
    assert np.mean([(margins(images, 4) > 0).all() for images in drifting]) > 0.9


@given(st.integers(1, 200), st.floats(0.005, 0.95))
def test_rank_is_the_highest_with_the_rate(count: int, rate: float) -> None:
    for scheme in (CalibrationScheme.JACKKNIFE_PLUS, CalibrationScheme.SPLIT):
        if count < needed(rate):
            with pytest.raises(ValueError, match=f"Provide {needed(rate)} images"):
                scheme.rank(rate, count)
            continue
        rank = scheme.rank(rate, count)
        assert scheme.guaranteed_fpr(rank, count) <= rate + 1e-9
        step = 2 / (count + 1) if scheme is CalibrationScheme.JACKKNIFE_PLUS else 1 / (count + 1)
        assert rank > count // 2 or scheme.guaranteed_fpr(rank, count) + step > rate - 1e-9


def test_rate_without_guarantee_is_an_error() -> None:
    message = r"must be at least 0.2 with 4 normal images, got 0.05. Provide 19 images"
    with pytest.raises(ValueError, match=message):
        CalibrationScheme.JACKKNIFE_PLUS.rank(0.05, 4)
    assert [needed(rate) for rate in (0.5, 0.2, 0.1, 0.05, 0.01)] == [1, 4, 9, 19, 99]


def test_schemes_without_a_guarantee() -> None:
    assert [
        scheme.guaranteed_fpr(1, 4)
        for scheme in (CalibrationScheme.LEAVE_ONE_OUT, CalibrationScheme.SELF_VIEWS, CalibrationScheme.TRAINING)
    ] == [None] * 3
    assert 1 / 65 < CalibrationScheme.CV_PLUS.guaranteed_fpr(1, 64, 32) < 1  # weaker than one by one


@pytest.mark.parametrize(("count", "num_folds"), [(40, 32), (64, 8)])
def test_guarantee_of_folds_in_closed_form(count: int, num_folds: int) -> None:
    """2 a + 2 (1 - a) (1 - 1 / K) / (k / K + 1) with a = 1 / (k + 1)."""
    rate = 1 / (count + 1)
    expected = 2 * rate + 2 * (1 - rate) * (1 - 1 / num_folds) / (count / num_folds + 1)
    assert CalibrationScheme.CV_PLUS.guaranteed_fpr(1, count, num_folds) == pytest.approx(min(1, expected))
    with pytest.raises(ArgumentError, match="`num_folds` must be"):
        CalibrationScheme.CV_PLUS.guaranteed_fpr(1, count)


def test_rate_bound_equals_a_simulation() -> None:
    rng = np.random.default_rng(0)
    for rank, count in ((1, 8), (2, 20)):
        threshold = np.sort(rng.uniform(size=(20000, count)), axis=1)[:, -rank]
        assert abs(np.quantile(1 - threshold, 0.95) - rate_bound(rank, count)) < 0.01


@given(st.lists(st.floats(-5, 5), min_size=1, max_size=9), st.floats(-6, 6))
def test_p_value_is_the_rank(calibration_scores: list[float], score: float) -> None:
    (p,) = p_values(np.array([score]), np.sort(calibration_scores))
    assert p == (1 + sum(level >= score for level in calibration_scores)) / (len(calibration_scores) + 1)
