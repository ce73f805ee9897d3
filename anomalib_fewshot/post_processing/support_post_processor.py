# Copyright (C) 2026 anomalib-fewshot contributors
# SPDX-License-Identifier: Apache-2.0

"""Decision thresholds calibrated on normal images, with a guaranteed false-alarm rate."""

import logging
from collections.abc import Iterable
from dataclasses import dataclass
from math import isfinite
from typing import Any, cast

import numpy as np
import torch
from anomalib import LearningType
from anomalib.data import Batch, ImageBatch, InferenceBatch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn

from anomalib_fewshot._host.post_processing import OpenPostProcessor
from anomalib_fewshot.errors import ArgumentError, NotFittedError

from .calibration_scheme import CalibrationScheme, p_values, rate_bound
from .description import describe_calibration

logger = logging.getLogger(__name__)

MIN_DEFECTS = 10  # in a validation set: with fewer, one or two of them determine the threshold
MIN_WIDTH = 1e-6  # smallest width of a score range, which is a divisor
VERDICTS = ("good", "review", "defect")
RANKED_SCHEMES = {CalibrationScheme.JACKKNIFE_PLUS, CalibrationScheme.CV_PLUS}  # only the highest ranks are distinct
UNKNOWN = "unknown"  # verdict of an image whose score is NaN


@dataclass(frozen=True)
class CalibrationScores:
    """Scores of normal images that determine a threshold.

    Args:
        scheme (CalibrationScheme): How the images were scored, which determines the guarantee.
        batches (Iterable[InferenceBatch]): One score for each image, which a new image must exceed to rank above it,
            shape ``(B,)``; and anomaly maps, shape ``(B, 1, H, W)``, if there are any.
        num_folds (int | None): Number of folds, each scored by a fit without it. The guarantee of ``CV_PLUS`` depends
            on it. Defaults to ``None``: there are no folds.
    """

    scheme: CalibrationScheme
    batches: Iterable[InferenceBatch]
    num_folds: int | None = None


class SupportPostProcessor(OpenPostProcessor):
    """anomalib's post-processor with thresholds that can be calibrated on normal images only.

    A score is relative to normal images: 1 is the highest score of a held-out normal image. Maps are normalized to
    values between 0 and 1, with the threshold at 0.5. Both are not clipped: scores that differ before the normalization
    differ after it. With anomalib's own threshold, scores are normalized as in anomalib.

    Two thresholds give three verdicts: *defect* above the upper one, *review* between the two, *good* below the lower
    one. anomalib's label is True for a defect, and the mask is empty where the label is False. With a single normal
    image no image is called a defect, and the label is True for *review*.

    An image whose score is NaN has the verdict *unknown*, no p-value, and the label True, so it cannot pass as good.

    Without validation images, the model calls :meth:`fit_normal`. Normal validation images are used for split
    calibration. If there are anomalous validation images, anomalib's own threshold is fitted.

    Args:
        false_alarm_rate (float | None): Highest fraction of normal images that may be called a defect, averaged over
            support sets. Defaults to ``None``: 5 %, or the lowest rate that k normal images can guarantee,
            ``1 / (k + 1)``, if that is higher.
        **kwargs: Arguments of anomalib's ``PostProcessor``.

    Attributes:
        scheme (CalibrationScheme | None): How the threshold was calibrated. ``None`` for anomalib's own threshold.
        num_folds (int | None): Number of folds of the calibration. ``None`` without folds.
        calibration_scores (torch.Tensor): Raw score that an image must exceed to rank above each normal image,
            ascending, shape ``(k,)``.
        review_threshold (torch.Tensor): Raw score above which the verdict is at least "review", a scalar. NaN for
            anomalib's own threshold.
        has_manual_thresholds (bool): Whether :meth:`set_verdict_thresholds` has replaced the calibrated thresholds.

    Raises:
        ValueError: If ``false_alarm_rate`` is not between 0 and 1.
    """

    checkpoint_keys = ("false_alarm_rate", "scheme", "num_folds", "has_manual_thresholds")

    def __init__(
        self,
        false_alarm_rate: float | None = None,
        **kwargs: Any,  # noqa: ANN401
    ) -> None:
        super().__init__(**kwargs)
        if false_alarm_rate is not None and not 0 < false_alarm_rate < 1:
            msg = f"`false_alarm_rate` must be between 0 and 1, got {false_alarm_rate}."
            raise ValueError(msg)
        self.false_alarm_rate = false_alarm_rate
        self.scheme: CalibrationScheme | None = None
        self.num_folds: int | None = None
        self.has_manual_thresholds = False
        self.register_buffer("calibration_scores", torch.zeros(0))
        self.register_buffer("review_threshold", torch.tensor(float("nan")))
        self.calibration_scores: torch.Tensor
        self.review_threshold: torch.Tensor
        self._validation: list[tuple[InferenceBatch, torch.Tensor]] = []

    def checkpoint_config(self) -> dict[str, Any]:
        """Return the settings for a checkpoint, as plain values."""
        return super().checkpoint_config() | {"scheme": None if self.scheme is None else self.scheme.value}

    def load_checkpoint_config(self, config: dict[str, Any]) -> None:
        """Restore the settings of a checkpoint."""
        super().load_checkpoint_config(config)
        self.scheme = None if self.scheme is None else CalibrationScheme(self.scheme)

    def _load_from_state_dict(self, state_dict: dict[str, torch.Tensor], prefix: str, *args: Any) -> None:  # noqa: ANN401
        """Resize the buffer to the number of scores in a checkpoint."""
        calibration_scores = state_dict.get(f"{prefix}calibration_scores")
        if calibration_scores is not None:
            self.calibration_scores = self.calibration_scores.new_zeros(len(calibration_scores))
        super()._load_from_state_dict(state_dict, prefix, *args)

    @torch.no_grad()
    def fit_normal(self, normal: CalibrationScores) -> None:
        """Set thresholds and normalization ranges from scores of normal images.

        Args:
            normal (CalibrationScores): Scores of normal images.

        Raises:
            ValueError: If the number of images cannot guarantee ``false_alarm_rate``.
        """
        scores, limits = [], []
        for batch in normal.batches:
            if batch.pred_score is not None:
                scores.append(batch.pred_score.flatten().float())
            if batch.anomaly_map is not None:
                maps = batch.anomaly_map.flatten(1).float()
                limits.append(torch.stack([maps.amin(1), maps.amax(1)]))
        self.scheme, self.num_folds = normal.scheme, normal.num_folds
        self.calibration_scores = torch.cat(scores).sort().values.to(self.calibration_scores.device)
        self.has_manual_thresholds = False
        rank = self.rank
        if self.scheme is CalibrationScheme.SELF_VIEWS:
            self.calibration_scores = self.calibration_scores[-1:]  # all views belong to one image
        self.review_threshold.copy_(self._calibrated_review_threshold)
        self._set("image", self.calibration_scores, rank)
        if limits:
            lowest, highest = torch.cat(limits, dim=1)
            self._set("pixel", highest.sort().values, rank, lowest=lowest.amin())
        level = (
            logging.WARNING
            if self.scheme in {CalibrationScheme.SELF_VIEWS, CalibrationScheme.TRAINING}
            else logging.INFO
        )
        logger.log(level, self.describe())

    def set_verdict_thresholds(self, thresholds: tuple[float, float | None] | None) -> None:
        """Replace the calibrated thresholds of the verdicts, or restore them.

        Args:
            thresholds (tuple[float, float | None] | None): Scores, as :meth:`forward` returns them, above which the
                verdict is at least "review" and above which it is "defect". The false-alarm rate is then no longer
                guaranteed. Without the second one, no image is called a defect, which requires a single normal image.
                ``None`` restores the calibrated thresholds.

        Raises:
            ArgumentError: If the thresholds are not finite, or if the first is higher than the second.
            NotFittedError: If no thresholds have been calibrated on normal images.
        """
        if self.scheme is None or not self.enable_thresholding:
            msg = "Thresholds must be calibrated on normal images before a change. Fit the model with `FewShot`."
            raise NotFittedError(msg)
        self.has_manual_thresholds = thresholds is not None
        if thresholds is None:
            self.review_threshold.copy_(self._calibrated_review_threshold)
            self.set_threshold("image", self._at_rank(self.calibration_scores, self.rank))
            return
        review, defect = thresholds
        if defect is None and len(self.calibration_scores) == 1:
            defect = review
        if defect is None or not (isfinite(review) and isfinite(defect) and review <= defect):
            msg = f"`review` must be finite and not higher than `defect`, got review={review}, defect={defect}."
            raise ArgumentError(msg)
        sensitivity = 2 * float(super().normalized_image_threshold)
        self.review_threshold.copy_(self._raw(review))
        self.set_threshold("image", self._raw(defect / sensitivity))

    def _raw(self, score: float) -> torch.Tensor:
        """Return the raw score of a score as :meth:`forward` returns it."""
        if not self.enable_normalization:
            return torch.tensor(score)
        return score * (self.image_max - self.image_min) + self.image_min

    @property
    def _calibrated_review_threshold(self) -> torch.Tensor:
        """Raw score of the review threshold that follows from the calibration."""
        if self.scheme is None:
            return self.review_threshold
        review_rank = self.scheme.review_rank(self.rank, len(self.calibration_scores), self.num_folds)
        return self._at_rank(self.calibration_scores, review_rank)

    @property
    def _calls_defects(self) -> bool:
        """Whether an image can be called a defect. With a single normal image, only a manual threshold does so."""
        return len(self.calibration_scores) > 1 or bool(self.image_threshold > self.review_threshold)

    def _threshold_metadata(self) -> dict[str, float | None]:
        """Return the current and the calibrated thresholds as scores. Without a defect threshold, it is ``None``."""
        sensitivity = 2 * float(super().normalized_image_threshold)
        calibrated = sensitivity * float(self._shown(self._at_rank(self.calibration_scores, self.rank)))
        return {
            "review_score": float(self._shown(self.review_threshold)),
            "defect_score": float(self.normalized_image_threshold) if self._calls_defects else None,
            "calibrated_review_score": float(self._shown(self._calibrated_review_threshold)),
            "calibrated_defect_score": calibrated if len(self.calibration_scores) > 1 else None,
        }

    @property
    def rank(self) -> int:
        """Rank m: a defect ranks above all normal images but m - 1."""
        if self.scheme is None or self.scheme is CalibrationScheme.SELF_VIEWS:
            return 1
        return self.scheme.rank(self.false_alarm_rate, len(self.calibration_scores))

    @staticmethod
    def _at_rank(ascending: torch.Tensor, rank: int) -> torch.Tensor:
        """Return the m-th highest value, or the lowest if there are fewer than m."""
        return ascending[max(0, len(ascending) - rank)]

    def _set(self, level: str, ascending: torch.Tensor, rank: int, lowest: torch.Tensor | None = None) -> None:
        """Set the threshold to the m-th highest value, and the normalization range to all values and 0.

        Without 0, the range of a few similar images would be too narrow.
        """
        highest = ascending[-1]
        lowest = ascending[0] if lowest is None else lowest
        width = torch.maximum(highest - lowest, highest.abs()).clamp_min(MIN_WIDTH)
        if self.enable_thresholding:
            self.set_threshold(level, self._at_rank(ascending, rank))
        if self.enable_normalization:
            getattr(self, f"{level}_min").copy_(highest - width)
            getattr(self, f"{level}_max").copy_(highest)

    def normalize_scores(
        self,
        level: str,
        preds: torch.Tensor | None,
        norm_min: torch.Tensor,
        norm_max: torch.Tensor,
        threshold: torch.Tensor,
    ) -> torch.Tensor | None:
        """Return scores relative to the highest one of a normal image, or map values between 0 and 1.

        A value of a map has anomalib's slope at the threshold, but no clipping.
        """
        shown = super().normalize_scores(level, preds, norm_min, norm_max, threshold)
        if preds is None or shown is None or self.scheme is None:  # anomalib's own range includes the highest scores
            return shown
        if level == "image":
            return (preds - norm_min) / (norm_max - norm_min)
        z = 2 * (preds - threshold) / (norm_max - norm_min)
        soft = 0.5 + 0.5 * z / (1 + z.abs())
        return torch.where(torch.isnan(z), shown, soft)

    @property
    def normalized_image_threshold(self) -> torch.Tensor:
        """Threshold of a score as :meth:`forward` returns it. ``image_sensitivity`` of 0.5 does not change it."""
        anomalib_threshold = super().normalized_image_threshold
        if self.scheme is None:
            return anomalib_threshold
        threshold = self._shown(self.image_threshold)
        return 2 * anomalib_threshold.to(threshold) * threshold

    def threshold_scores(self, preds: torch.Tensor | None, threshold: torch.Tensor) -> torch.Tensor | None:
        """Return which predictions are above a threshold. NaN counts as above."""
        above = super().threshold_scores(preds, threshold)
        if (
            preds is None or above is None or above.dtype != torch.bool
        ):  # without a threshold, anomalib returns the scores
            return above
        return ~(preds <= threshold)

    @property
    def guaranteed_fpr(self) -> float | None:
        """Guaranteed mean false-alarm rate. ``None`` without a guarantee."""
        if self.scheme is None or self.has_manual_thresholds:
            return None
        return self.scheme.guaranteed_fpr(self.rank, len(self.calibration_scores), self.num_folds)

    @property
    def _rate_bound(self) -> float | None:
        """95 % confidence bound of the false-alarm rate, for split calibration."""
        if self.scheme is not CalibrationScheme.SPLIT or self.has_manual_thresholds:
            return None
        return rate_bound(self.rank, len(self.calibration_scores))

    def p_value(self, scores: torch.Tensor) -> torch.Tensor:
        """Return the rank p-value of each score.

        Args:
            scores (torch.Tensor): Scores as :meth:`forward` returns them, shape ``(B,)``.

        Returns:
            torch.Tensor: ``(1 + number of normal images that the score does not exceed) / (k + 1)``, shape ``(B,)``.
            NaN for a scheme without p-values, and where the score is NaN. With jackknife+ and CV+, also NaN for the
            verdict "good": such images are not compared with each normal image.
        """
        if self.scheme in {None, CalibrationScheme.SELF_VIEWS, CalibrationScheme.TRAINING}:
            return torch.full_like(scores, float("nan"))
        scores, calibration_scores = scores.double().cpu(), self._shown(self.calibration_scores).double().cpu()
        values = torch.as_tensor(p_values(scores.numpy(), calibration_scores.numpy()))
        if self.scheme in RANKED_SCHEMES:
            values[scores <= float(self._shown(self._calibrated_review_threshold))] = torch.nan
        return values

    def verdicts(self, scores: torch.Tensor) -> list[str]:
        """Return the verdict of each score.

        Args:
            scores (torch.Tensor): Scores as :meth:`forward` returns them, shape ``(B,)``.

        Returns:
            list[str]: One of ``VERDICTS``, or ``UNKNOWN``, for each score.
        """
        review = self._shown(self.review_threshold)
        defect = self.normalized_image_threshold
        above = torch.stack([scores > float(threshold) for threshold in (review, defect)]).sum(0)
        highest = 2 if self._calls_defects else 1
        verdicts = [VERDICTS[min(count, highest)] for count in above.tolist()]
        return [UNKNOWN if np.isnan(score) else v for v, score in zip(verdicts, scores.tolist(), strict=True)]

    def _shown(self, raw: torch.Tensor) -> torch.Tensor:
        """Return raw scores with the normalization of :meth:`forward`."""
        if not self.enable_normalization:
            return raw
        shown = self.normalize_scores("image", raw, self.image_min, self.image_max, self.image_threshold)
        return cast("torch.Tensor", shown)  # None only for None

    def forward(self, predictions: InferenceBatch) -> InferenceBatch:
        """Return normalized scores and maps, labels, and masks that are empty where the label is False."""
        result = super().forward(predictions)
        if result.pred_mask is None or result.pred_label is None:
            return result
        return result._replace(pred_mask=_within(result.pred_mask, result.pred_label))

    def threshold_batch(self, batch: Batch) -> None:
        """Set labels, and masks that are empty where the label is False."""
        super().threshold_batch(batch)
        if batch.pred_mask is not None and batch.pred_label is not None and batch.pred_label.dtype == torch.bool:
            batch.pred_mask = _within(batch.pred_mask, batch.pred_label)

    def on_predict_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Batch,
        *args: Any,  # noqa: ANN401
        **kwargs: Any,  # noqa: ANN401
    ) -> None:
        """Post-process a batch, and add verdicts and p-values as explanations."""
        super().on_predict_batch_end(trainer, pl_module, outputs, *args, **kwargs)
        if self.scheme is not None and isinstance(outputs, ImageBatch) and outputs.pred_score is not None:
            verdicts = self.verdicts(outputs.pred_score)
            p_values = self.p_value(outputs.pred_score).tolist()
            outputs.explanation = [
                verdict if np.isnan(p) else f"{verdict}, p = {p:.2g}"
                for verdict, p in zip(verdicts, p_values, strict=True)
            ]

    def on_validation_batch_end(  # type: ignore[override]
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Batch,
        *args: Any,  # noqa: ANN401
        **kwargs: Any,  # noqa: ANN401
    ) -> None:
        """Update anomalib's statistics, and record the scores of the batch."""
        if not sets_thresholds(trainer):
            return
        super().on_validation_batch_end(trainer, pl_module, outputs, *args, **kwargs)
        if trainer.world_size == 1 and outputs.gt_label is not None and outputs.pred_score is not None:
            limits = None
            if outputs.anomaly_map is not None:
                maps = outputs.anomaly_map.flatten(1)
                limits = torch.stack([maps.amin(1), maps.amax(1)], dim=1)[:, None, None]  # (B, 1, 1, 2)
            self._validation.append((InferenceBatch(outputs.pred_score, None, limits), outputs.gt_label.bool()))

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Discard the scores of an interrupted validation."""
        del trainer, pl_module
        self._validation = []

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Calibrate on the normal images, or fit anomalib's own threshold if there are anomalous images.

        Only the validation within a fit does so: ``Engine.validate`` changes no threshold.
        """
        if not sets_thresholds(trainer):
            return
        batches, self._validation = self._validation, []
        super().on_validation_epoch_end(trainer, pl_module)
        self.scheme = self.num_folds = None
        anomalous = sum(int(labels.sum()) for _, labels in batches)
        if batches and anomalous == 0:
            self.fit_normal(CalibrationScores(CalibrationScheme.SPLIT, [batch for batch, _ in batches]))
        elif anomalous > 0 and self.enable_thresholding and self.false_alarm_rate is not None:
            logger.warning(
                "`false_alarm_rate` requires normal validation images only, got %d anomalous images. The threshold of "
                "anomalib is used instead. To calibrate on the support set, set `FewShot(validation='support')`.",
                anomalous,
            )
        elif 0 < anomalous < MIN_DEFECTS and self.enable_thresholding:
            logger.warning(
                "The threshold was fitted to %d anomalous validation images only, which is unreliable. Provide at "
                "least %d, or calibrate on the support set: `FewShot(validation='support')`.",
                anomalous,
                MIN_DEFECTS,
            )

    def describe(self) -> str:
        """Return a description of the calibration of the threshold and its guarantee."""
        if self.scheme is not None and self.has_manual_thresholds:
            review, defect = float(self._shown(self.review_threshold)), float(self.normalized_image_threshold)
            shown = f"review above {review:.3f}" + (f", defect above {defect:.3f}" if self._calls_defects else "")
            return f"Thresholds set by hand: {shown}. The false-alarm rate is no longer guaranteed."
        count = len(self.calibration_scores)
        return describe_calibration(self.scheme, count, self.rank, self.guaranteed_fpr, self.num_folds)

    def metadata(self) -> dict[str, Any]:
        """Return the settings for a deployment. The names follow anomalib's plan for ``metadata.json``."""
        values: dict[str, Any] = {
            "image_sensitivity": self.image_sensitivity,
            "pixel_sensitivity": self.pixel_sensitivity,
            "image_threshold": float(self.image_threshold),
            "pixel_threshold": float(self.pixel_threshold),
            "description": self.describe(),
        }
        if self.scheme is not None:
            calibration_scores = self._shown(self.calibration_scores)
            levels = []
            for score, p in zip(calibration_scores.tolist(), self.p_value(calibration_scores).tolist(), strict=True):
                levels.append({"score_up_to": score, "p": None if np.isnan(p) else p})
            values |= {
                "scheme": self.scheme.value,
                "manual_thresholds": self.has_manual_thresholds,
                "num_normal": len(calibration_scores),
                "guaranteed_false_alarm_rate": self.guaranteed_fpr,
                "false_alarm_rate_bound": self._rate_bound,
                **self._threshold_metadata(),
                "p_values": levels,
            }
        return values


def sets_thresholds(trainer: Trainer) -> bool:
    """Return whether a validation may set thresholds: in a fit, or for models that anomalib fits in a validation."""
    learning_type = getattr(trainer.lightning_module, "learning_type", None)
    return trainer.state.fn == TrainerFn.FITTING or learning_type in {LearningType.FEW_SHOT, LearningType.ZERO_SHOT}


def _within(masks: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Return masks, shape ``(B, ...)``, that are False for images whose label, shape ``(B,)``, is False."""
    return masks & labels.view(-1, *[1] * (masks.ndim - 1))
