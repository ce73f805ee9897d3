# Copyright (C) 2026 anomalib-fewshot contributors
# SPDX-License-Identifier: Apache-2.0

"""Thresholds, ranges and verdicts of normal scores alone, in closed form."""

import json
import logging
from types import SimpleNamespace

import pytest
import torch
from anomalib.data import ImageBatch, InferenceBatch
from anomalib.post_processing import PostProcessor
from lightning.pytorch.trainer.states import TrainerFn

from anomalib_fewshot import SupportPostProcessor
from anomalib_fewshot.errors import ArgumentError, NotFittedError
from anomalib_fewshot.post_processing import CalibrationScheme, CalibrationScores

BATCHES = [
    InferenceBatch(pred_score=torch.tensor([1.0, 3.0]), anomaly_map=torch.tensor([0.0, 4.0]).view(2, 1, 1, 1)),
    InferenceBatch(pred_score=torch.tensor([2.0]), anomaly_map=torch.tensor([-1.0]).view(1, 1, 1, 1)),
]
RANKED = [InferenceBatch(pred_score=torch.arange(1.0, 5.0))]  # of four held-out images


def fitted(
    scheme: CalibrationScheme = CalibrationScheme.LEAVE_ONE_OUT,
    batches: list = BATCHES,
    num_folds: int | None = None,
    **arguments,
) -> SupportPostProcessor:
    post_processor = SupportPostProcessor(**arguments)
    post_processor.fit_normal(CalibrationScores(scheme, iter(batches), num_folds))
    return post_processor


def limits(post_processor: PostProcessor, level: str) -> list[float]:
    names = (f"_{level}_threshold", f"{level}_min", f"{level}_max")
    return [float(getattr(post_processor, name)) for name in names]


def test_threshold_is_the_highest_score_and_range_covers_all() -> None:
    post_processor = fitted()
    assert limits(post_processor, "image") == [3, 0, 3]
    assert limits(post_processor, "pixel") == [4, -1, 4]


def test_only_scores_above_the_highest_normal_score_are_defects() -> None:
    raw = InferenceBatch(torch.tensor([-97.0, 2.0, 3.0, 4.0, 6.0, 1e4]), None, torch.zeros(6, 1, 2, 2))
    result = fitted()(raw)
    assert result.pred_label.tolist() == [False, False, False, True, True, True]
    torch.testing.assert_close(result.pred_score, raw.pred_score / 3)  # 1 is the highest normal score
    assert (result.pred_score.diff() > 0).all()
    torch.testing.assert_close(result.anomaly_map, torch.full((6, 1, 2, 2), 0.5 - 0.5 * 1.6 / 2.6))


def test_rate_changes_both_thresholds() -> None:
    scores = [InferenceBatch(pred_score=torch.arange(1.0, 10.0))]  # nine of them
    assert fitted(batches=scores).image_threshold == 9
    for scheme, rank in (
        (CalibrationScheme.SPLIT, 3),
        (CalibrationScheme.JACKKNIFE_PLUS, 2),
    ):  # 3 / 10, (2 * 2 - 1) / 10
        post_processor = fitted(scheme, scores, false_alarm_rate=0.3)
        assert post_processor.image_threshold == 10 - rank
        assert post_processor.review_threshold == 10 - 2 * rank
        assert post_processor.guaranteed_fpr == pytest.approx(0.3)
    with pytest.raises(ValueError, match=r"must be at least 0.1 with 9 normal images, got 0.05. Provide 19 images"):
        fitted(batches=scores, false_alarm_rate=0.05)


def test_verdicts_and_p_values_of_ranked_scores() -> None:
    """Of four images: above all is a defect, above three is to be looked at, and the p-value is that of the rank."""
    post_processor = fitted(CalibrationScheme.JACKKNIFE_PLUS, RANKED)
    raw = torch.tensor([0.1, 1.6, 2.4, 3.2, 4.2, 50.0])
    shown = original = post_processor(InferenceBatch(pred_score=raw)).pred_score
    assert post_processor.verdicts(shown) == ["good", "good", "good", "review", "defect", "defect"]
    expected = torch.tensor([torch.nan, torch.nan, torch.nan, 0.4, 0.2, 0.2]).double()
    torch.testing.assert_close(post_processor.p_value(shown), expected, equal_nan=True)
    by_leave_one_out = fitted(CalibrationScheme.LEAVE_ONE_OUT, RANKED).p_value(shown)
    torch.testing.assert_close(by_leave_one_out, torch.tensor([1.0, 0.8, 0.6, 0.4, 0.2, 0.2]).double())
    higher = fitted(CalibrationScheme.JACKKNIFE_PLUS, RANKED, false_alarm_rate=0.7)
    shown = higher(InferenceBatch(pred_score=raw)).pred_score
    assert higher.verdicts(shown) == [
        "good",
        "good",
        "good",
        "defect",
        "defect",
        "defect",
    ]  # a lower line is worth nothing
    torch.testing.assert_close(higher.p_value(shown), post_processor.p_value(original), equal_nan=True)


@pytest.mark.parametrize(
    ("rate", "scheme", "count", "ranks"),
    [
        (None, CalibrationScheme.JACKKNIFE_PLUS, 2, 1),  # "review" would be guaranteed for all good pictures
        (None, CalibrationScheme.JACKKNIFE_PLUS, 3, 2),
        (None, CalibrationScheme.JACKKNIFE_PLUS, 8, 2),
        (0.1, CalibrationScheme.JACKKNIFE_PLUS, 32, 4),
        (0.01, CalibrationScheme.JACKKNIFE_PLUS, 4, 2),  # refused when a threshold is taken
        (None, CalibrationScheme.CV_PLUS, 40, 2),
    ],
)
def test_num_distinct_ranks(rate: float | None, scheme: CalibrationScheme, count: int, ranks: int) -> None:
    assert scheme.num_distinct_ranks(rate, count, num_folds=32) == ranks


@pytest.mark.parametrize("normalized", [True, False])
def test_verdicts_match_the_labels(normalized: bool) -> None:
    post_processor = fitted(enable_normalization=normalized)
    result = post_processor(InferenceBatch(torch.tensor([0.5, 2.5, 3.5]), None, torch.zeros(3, 1, 1, 1)))
    assert post_processor.verdicts(result.pred_score) == ["good", "review", "defect"]
    assert result.pred_label.tolist() == [False, False, True]


def test_single_image_has_no_defect_and_no_p_value() -> None:
    post_processor = fitted(CalibrationScheme.SELF_VIEWS)
    assert post_processor.calibration_scores.tolist() == [3]  # views are one picture
    result = post_processor(InferenceBatch(pred_score=torch.tensor([2.9, 99.0])))
    assert post_processor.verdicts(result.pred_score) == ["good", "review"]
    assert post_processor.p_value(result.pred_score).isnan().all()
    assert result.pred_label.tolist() == [False, True]
    assert post_processor.guaranteed_fpr is None


def test_image_with_verdict_good_has_no_mask() -> None:
    post_processor = fitted()
    maps = torch.full((2, 1, 2, 2), 9.0)
    result = post_processor(InferenceBatch(torch.tensor([2.0, 4.0]), None, maps))
    assert result.pred_mask.flatten(1).all(1).tolist() == [False, True]
    batch = ImageBatch(image=torch.zeros(2, 3, 2, 2), pred_score=torch.tensor([2.0, 4.0]), anomaly_map=maps[:, 0])
    post_processor.post_process_batch(batch)
    assert batch.pred_mask.flatten(1).any(1).tolist() == [False, True]


def test_predictions_have_explanations() -> None:
    batch = ImageBatch(image=torch.zeros(3, 3, 2, 2), pred_score=torch.tensor([0.1, 3.2, 9.0]))
    fitted(CalibrationScheme.JACKKNIFE_PLUS, RANKED).on_predict_batch_end(None, None, batch)
    assert batch.explanation == ["good", "review, p = 0.4", "defect, p = 0.2"]


def test_range_of_a_single_score() -> None:
    post_processor = fitted(batches=[InferenceBatch(pred_score=torch.tensor([-4.0]))])
    assert limits(post_processor, "image") == [-4, -8, -4]
    assert all(value != value for value in limits(post_processor, "pixel"))  # noqa: PLR0124  nan: there are no maps


def test_disabled_parts_are_not_fitted() -> None:
    post_processor = fitted(enable_thresholding=False)
    assert post_processor.image_threshold.isnan()
    assert post_processor.image_max == 3
    post_processor = fitted(enable_normalization=False)
    assert post_processor.image_threshold == 3
    assert post_processor.image_min.isnan()


def validate(
    post_processor: SupportPostProcessor,
    scores: list[float],
    labels: list[bool],
    fn: TrainerFn = TrainerFn.FITTING,
) -> None:
    trainer = SimpleNamespace(world_size=1, state=SimpleNamespace(fn=fn), lightning_module=None)
    post_processor.on_validation_start(trainer, None)
    for score, label in zip(scores, labels, strict=True):
        batch = ImageBatch(
            image=torch.zeros(1, 3, 2, 2),
            pred_score=torch.tensor([score]),
            anomaly_map=torch.full((1, 2, 2), score / 2),
            gt_label=torch.tensor([label]),
        )
        post_processor.on_validation_batch_end(trainer, None, batch)
    post_processor.on_validation_epoch_end(trainer, None)


def test_normal_validation_images_give_a_split_calibration(caplog: pytest.LogCaptureFixture) -> None:
    post_processor = SupportPostProcessor(false_alarm_rate=0.4)
    caplog.set_level(logging.INFO)
    validate(post_processor, [1.0, 4.0, 2.0, 3.0], [False] * 4)
    assert post_processor.scheme is CalibrationScheme.SPLIT
    assert post_processor.image_threshold == 3  # the second highest: 2 of 5
    assert 2 * post_processor.pixel_threshold == 3
    assert "4 good validation images (split calibration)" in caplog.text
    assert "at most 40 % of good parts" in caplog.text
    assert "at most 75 % (95 % confidence)" in caplog.text  # beta.ppf(0.95, 2, 3)


def test_validation_outside_a_fit_changes_nothing() -> None:
    post_processor = fitted(CalibrationScheme.JACKKNIFE_PLUS)
    before = {name: value.clone() for name, value in post_processor.state_dict().items()}
    validate(post_processor, [*range(20)], [index >= 10 for index in range(20)], TrainerFn.VALIDATING)
    assert post_processor.scheme is CalibrationScheme.JACKKNIFE_PLUS
    for name, value in post_processor.state_dict().items():
        torch.testing.assert_close(value, before[name], rtol=0, atol=0, equal_nan=True)


def test_scores_of_an_interrupted_validation_are_discarded() -> None:
    post_processor = SupportPostProcessor()
    trainer = SimpleNamespace(world_size=1, state=SimpleNamespace(fn=TrainerFn.FITTING), lightning_module=None)
    batch = ImageBatch(
        image=torch.zeros(1, 3, 2, 2),
        pred_score=torch.tensor([99.0]),
        gt_label=torch.tensor([False]),
        anomaly_map=torch.full((1, 2, 2), 99.0),
    )
    post_processor.on_validation_batch_end(trainer, None, batch)  # and then the validation stops
    validate(post_processor, [1.0, 2.0], [False] * 2)
    assert post_processor.calibration_scores.tolist() == [1, 2]


def test_few_anomalous_validation_images_are_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    post_processor = fitted(CalibrationScheme.JACKKNIFE_PLUS, RANKED)
    validate(post_processor, [1.0, 2.0, 3.0, 9.0], [False, False, False, True])
    assert post_processor.scheme is None
    assert post_processor.image_threshold == 9  # upstream's: the defect's own score
    assert "fitted to 1 anomalous" in caplog.text
    caplog.clear()
    validate(post_processor, [*range(20)], [index >= 10 for index in range(20)])
    assert "anomalous validation images" not in caplog.text


def test_unused_false_alarm_rate_is_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    validate(fitted(CalibrationScheme.SPLIT, false_alarm_rate=0.5), [*range(20)], [index >= 10 for index in range(20)])
    assert "`false_alarm_rate` requires normal validation images only, got 10" in caplog.text


def test_settings_survive_a_checkpoint() -> None:
    settings = {"image_sensitivity": 0.7, "enable_normalization": False, "false_alarm_rate": 0.5}
    post_processor, loaded = fitted(**settings), SupportPostProcessor()
    config = post_processor.checkpoint_config()
    assert json.loads(json.dumps(config)) == config  # plain values
    loaded.load_checkpoint_config(config)
    loaded.load_state_dict(post_processor.state_dict())
    assert {name: getattr(loaded, name) for name in settings} == settings
    assert loaded.describe() == post_processor.describe()
    assert loaded.calibration_scores.tolist() == [1, 2, 3]


@pytest.mark.parametrize(
    ("scheme", "words"),
    [
        (
            CalibrationScheme.JACKKNIFE_PLUS,
            "at most 25 % of good parts are flagged as defects. For 5 %, provide at least 19",
        ),
        (CalibrationScheme.CV_PLUS, "CV+ with 5 folds"),
        (CalibrationScheme.SPLIT, "For this calibration set: at most 63 % (95 % confidence)"),
        (CalibrationScheme.LEAVE_ONE_OUT, "About 1 in 4 good images of the same kind exceed it"),
        (CalibrationScheme.SELF_VIEWS, "no image is called a defect"),
        (CalibrationScheme.TRAINING, "many new good images exceed this threshold"),
    ],
)
def test_describe(scheme: CalibrationScheme, words: str) -> None:
    assert words in fitted(scheme, num_folds=5).describe()


def test_the_guarantee_follows_from_the_number_of_folds_also_in_a_checkpoint() -> None:
    scheme, batches = CalibrationScheme.CV_PLUS, [InferenceBatch(pred_score=torch.arange(200.0))]
    post_processor = fitted(scheme, batches, num_folds=8)
    loaded = SupportPostProcessor()
    loaded.load_checkpoint_config(post_processor.checkpoint_config())
    loaded.load_state_dict(post_processor.state_dict())
    assert loaded.guaranteed_fpr == post_processor.guaranteed_fpr == scheme.guaranteed_fpr(post_processor.rank, 200, 8)
    assert loaded.guaranteed_fpr < scheme.guaranteed_fpr(post_processor.rank, 200, 32)


def test_metadata_is_json() -> None:
    assert SupportPostProcessor().metadata()["description"].endswith("The false-alarm rate is not guaranteed.")
    values = fitted(CalibrationScheme.JACKKNIFE_PLUS, RANKED).metadata()
    assert json.loads(json.dumps(values)) == values
    assert (values["scheme"], values["num_normal"], values["guaranteed_false_alarm_rate"]) == ("jackknife+", 4, 0.2)
    assert (values["review_score"], values["defect_score"]) == (0.75, 1.0)
    table = [(row["score_up_to"], row["p"]) for row in values["p_values"]]
    assert table == [(0.25, None), (0.5, None), (0.75, None), (1.0, pytest.approx(0.4))]


@pytest.mark.parametrize("sensitivity", [0.3, 0.5, 0.7])
def test_sensitivity_scales_the_threshold(sensitivity: float) -> None:
    post_processor = fitted(image_sensitivity=sensitivity)
    assert float(post_processor.normalized_image_threshold) == pytest.approx(2 * (1 - sensitivity))
    result = post_processor(InferenceBatch(torch.tensor([1.7, 1.9, 4.1, 4.3]), None, torch.zeros(4, 1, 1, 1)))
    assert result.pred_label.tolist() == [score > 6 * (1 - sensitivity) for score in (1.7, 1.9, 4.1, 4.3)]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"false_alarm_rate": 0.0}, "`false_alarm_rate` must be between 0 and 1, got 0"),
        ({"false_alarm_rate": 5.0}, "`false_alarm_rate` must be between 0 and 1, got 5"),
    ],
)
def test_wrong_arguments(arguments: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SupportPostProcessor(**arguments)


@pytest.mark.parametrize("sensitivity", [0.5, 0.7])
def test_manual_thresholds_set_the_verdicts_until_they_are_restored(sensitivity: float) -> None:
    post_processor = fitted(CalibrationScheme.JACKKNIFE_PLUS, RANKED, image_sensitivity=sensitivity)
    scores = torch.tensor([0.3, 0.5, 0.8, 1.1, 2.0])
    calibrated, p_values = post_processor.verdicts(scores), post_processor.p_value(scores)
    post_processor.set_verdict_thresholds((0.4, 1.5))
    assert post_processor.verdicts(scores) == ["good", "review", "review", "review", "defect"]
    labels = post_processor(InferenceBatch(scores * 4, None, torch.zeros(5, 1, 2, 2))).pred_label
    assert labels.tolist() == [False] * 4 + [True]
    assert post_processor.guaranteed_fpr is None
    assert "no longer guaranteed" in post_processor.describe()
    assert post_processor.metadata()["defect_score"] == pytest.approx(1.5)
    torch.testing.assert_close(post_processor.p_value(scores), p_values, equal_nan=True)
    loaded = SupportPostProcessor()
    loaded.load_state_dict(post_processor.state_dict())
    loaded.load_checkpoint_config(post_processor.checkpoint_config())
    assert loaded.describe() == post_processor.describe()
    post_processor.set_verdict_thresholds(None)
    assert post_processor.verdicts(scores) == calibrated
    assert post_processor.guaranteed_fpr == pytest.approx(0.2)


def test_manual_thresholds_of_a_single_image_call_defects() -> None:
    single = [InferenceBatch(pred_score=torch.tensor([2.0, 4.0]))]
    post_processor = fitted(CalibrationScheme.SELF_VIEWS, single)
    scores = torch.tensor([0.9, 1.1, 3.0])
    assert post_processor.verdicts(scores) == ["good", "review", "review"]
    post_processor.set_verdict_thresholds((1.0, 2.0))
    assert post_processor.verdicts(scores) == ["good", "review", "defect"]
    post_processor.set_verdict_thresholds((0.5, None))
    assert post_processor.verdicts(scores) == ["review"] * 3


@pytest.mark.parametrize(("review", "defect"), [(2.0, 1.0), (float("nan"), 1.0), (0.5, float("inf"))])
def test_manual_thresholds_must_be_ordered_and_finite(review: float, defect: float) -> None:
    with pytest.raises(ArgumentError, match="not higher than `defect`"):
        fitted().set_verdict_thresholds((review, defect))


def test_manual_thresholds_need_a_calibration() -> None:
    with pytest.raises(NotFittedError, match="calibrated on normal images"):
        SupportPostProcessor().set_verdict_thresholds((0.5, 1.0))
