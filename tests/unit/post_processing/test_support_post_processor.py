# Copyright (C) 2026 anomalib-fewshot contributors
# SPDX-License-Identifier: Apache-2.0

"""Thresholds and ranges of normal scores alone, in closed form."""

import pytest
import torch
from anomalib.data import InferenceBatch
from anomalib.post_processing import PostProcessor

from anomalib_fewshot import SupportPostProcessor

BATCHES = [
    InferenceBatch(pred_score=torch.tensor([1.0, 3.0]), anomaly_map=torch.tensor([0.0, 4.0]).view(2, 1, 1, 1)),
    InferenceBatch(pred_score=torch.tensor([2.0]), anomaly_map=torch.tensor([-1.0]).view(1, 1, 1, 1)),
]


def limits(post_processor: PostProcessor, level: str) -> list[float]:
    names = (f"_{level}_threshold", f"{level}_min", f"{level}_max")
    return [float(getattr(post_processor, name)) for name in names]


def test_threshold_is_the_highest_score_and_the_range_is_wider() -> None:
    post_processor = SupportPostProcessor()
    post_processor.fit_normal(iter(BATCHES))
    assert limits(post_processor, "image") == [3, 1, 3 + 9 * 2]
    assert limits(post_processor, "pixel") == [4, -1, 4 + 1 * 5]


def test_highest_normal_score_is_on_the_threshold_and_another_above_it() -> None:
    post_processor = SupportPostProcessor()
    post_processor.fit_normal(BATCHES)
    raw = InferenceBatch(pred_score=torch.tensor([3.0, 3.1, 12.0, 13.0]), anomaly_map=torch.zeros(4, 1, 2, 2))
    result = post_processor(raw)
    assert result.pred_label.tolist() == [False, True, True, True]
    torch.testing.assert_close(result.pred_score, torch.tensor([0.5, 0.505, 0.95, 1.0]))


def test_a_single_score_has_a_range_too() -> None:
    post_processor = SupportPostProcessor(image_headroom=2.0)
    post_processor.fit_normal([InferenceBatch(pred_score=torch.tensor([-4.0]))])
    assert limits(post_processor, "image") == [-4, -4, -4 + 2 * 4]
    assert all(value != value for value in limits(post_processor, "pixel"))  # noqa: PLR0124  nan: there are no maps


def test_what_is_switched_off_is_not_fitted() -> None:
    post_processor = SupportPostProcessor(enable_thresholding=False)
    post_processor.fit_normal(BATCHES)
    assert post_processor.image_threshold.isnan()
    assert post_processor.image_min == 1
    post_processor = SupportPostProcessor(enable_normalization=False)
    post_processor.fit_normal(BATCHES)
    assert post_processor.image_threshold == 3
    assert post_processor.image_min.isnan()


def test_settings_survive_a_checkpoint() -> None:
    settings = {"image_headroom": 2.0, "pixel_headroom": 0.5, "image_sensitivity": 0.7, "enable_normalization": False}
    loaded = SupportPostProcessor()
    loaded.load_checkpoint_config(SupportPostProcessor(**settings).checkpoint_config())
    assert {name: getattr(loaded, name) for name in settings} == settings


def test_wrong_arguments() -> None:
    with pytest.raises(ValueError, match="`image_headroom` must not be below 0, got -1"):
        SupportPostProcessor(image_headroom=-1.0)
