# Copyright (C) 2026 anomalib-fewshot contributors
# SPDX-License-Identifier: Apache-2.0

"""Thresholds from normal images alone, and what they can promise."""

import logging
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from anomalib import LearningType
from anomalib.data import Batch, ImageBatch, InferenceBatch
from anomalib.post_processing import PostProcessor
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn

from .rule import Rule, needed, p_values, rate_bound

logger = logging.getLogger(__name__)

MIN_DEFECTS = 10  # of a validation; the threshold of fewer is the score of one or two of them
MIN_WIDTH = 1e-6
VERDICTS = ("good", "look", "defect")
UNKNOWN = "unknown"  # verdict of an image whose score is NaN


@dataclass(frozen=True)
class NormalScores:
    """Scores of normal images that a threshold can be taken from.

    Args:
        rule (Rule): How they were scored, which decides what they can promise.
        batches (Iterable[InferenceBatch]): Scores that a new image must be above to beat each of them, one of each
            image, shape ``(B,)``; and their anomaly maps, shape ``(B, 1, H, W)``, if there are any.
        num_folds (int | None): Number of folds, of which each was scored by a fit without it. The guarantee of
            ``Rule.FOLDS`` depends on it. Defaults to ``None``: there are no folds.
    """

    rule: Rule
    batches: Iterable[InferenceBatch]
    num_folds: int | None = None


class SupportPostProcessor(PostProcessor):
    """anomalib's post-processor, whose thresholds can also come from normal images alone.

    Scores and maps are shown between 0 and 1, with the threshold at 0.5, and none is cut off: two anomalies that differ
    do so still.

    There are two lines, and three verdicts: what is above the upper one, the threshold, is a *defect*; *look* is what
    is above the lower one; the rest is *good*. anomalib's label is True for a defect, and a mask is empty where it is
    False. With a single image there is no defect, and the label is True for *look*.

    An image whose score is NaN has the verdict *unknown*, no p-value, and the label True: it must not pass as good.

    Without validation images a model calls :meth:`fit_normal`. A validation by normal images alone is taken as images
    that were kept apart; one with anomalous images fits the threshold as upstream does.

    Args:
        false_alarm_rate (float | None): Part of the good images that may be called a defect, on average over supports.
            Defaults to ``None``: the lowest that the number k of normal images can have, ``1 / (k + 1)``.
        **kwargs: Arguments of anomalib's ``PostProcessor``.

    Attributes:
        rule (Rule | None): What the threshold is from. ``None`` if it was fitted as upstream does.
        num_folds (int | None): Number of folds that the normal images were scored in. ``None`` if there were none.
        levels (torch.Tensor): Raw scores that an image must be above to beat each normal image, ascending, ``(k,)``.

    Raises:
        ValueError: If the rate is not between 0 and 1.
    """

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
        self.rule: Rule | None = None
        self.num_folds: int | None = None
        self.register_buffer("levels", torch.zeros(0))
        self.register_buffer("_look_threshold", torch.tensor(float("nan")))
        self.levels: torch.Tensor
        self._look_threshold: torch.Tensor
        self._validation: list[tuple[InferenceBatch, torch.Tensor]] = []

    @property
    def _checkpoint_config_keys(self) -> tuple[str, ...]:
        return (*super()._checkpoint_config_keys, "false_alarm_rate", "rule", "num_folds")

    def checkpoint_config(self) -> dict[str, Any]:
        """Return the settings to keep in a checkpoint, which holds plain values alone."""
        return super().checkpoint_config() | {"rule": None if self.rule is None else self.rule.value}

    def load_checkpoint_config(self, config: dict[str, Any]) -> None:
        """Take the settings of a checkpoint."""
        super().load_checkpoint_config(config)
        self.rule = None if self.rule is None else Rule(self.rule)

    def _load_from_state_dict(self, state_dict: dict[str, torch.Tensor], prefix: str, *args: Any) -> None:  # noqa: ANN401
        """Take as many levels as a checkpoint has."""
        levels = state_dict.get(f"{prefix}levels")
        if levels is not None:
            self.levels = self.levels.new_zeros(len(levels))
        super()._load_from_state_dict(state_dict, prefix, *args)

    @torch.no_grad()
    def fit_normal(self, normal: NormalScores) -> None:
        """Take thresholds and ranges from scores of normal images.

        Args:
            normal (NormalScores): Scores of normal images.

        Raises:
            ValueError: If ``false_alarm_rate`` is lower than that many images can have.
        """
        scores, limits = [], []
        for batch in normal.batches:
            if batch.pred_score is not None:
                scores.append(batch.pred_score.flatten().float())
            if batch.anomaly_map is not None:
                maps = batch.anomaly_map.flatten(1).float()
                limits.append(torch.stack([maps.amin(1), maps.amax(1)]))
        self.rule, self.num_folds = normal.rule, normal.num_folds
        self.levels = torch.cat(scores).sort().values.to(self.levels.device)
        rank = self.rank
        if self.rule is Rule.VIEWS:
            self.levels = self.levels[-1:]  # views of one image are one image
        self._look_threshold.copy_(
            self._at_rank(self.levels, self.rule.look_rank(rank, len(self.levels), self.num_folds)),
        )
        self._set("image", self.levels, rank)
        if limits:
            lowest, highest = torch.cat(limits, dim=1)
            self._set("pixel", highest.sort().values, rank, lowest=lowest.amin())
        level = logging.WARNING if self.rule in {Rule.VIEWS, Rule.SEEN} else logging.INFO
        logger.log(level, self.describe())

    @property
    def rank(self) -> int:
        """The m of the rule: a defect beats all normal images but m - 1."""
        if self.rule is None or self.rule is Rule.VIEWS:
            return 1
        return self.rule.rank(self.false_alarm_rate, len(self.levels))

    def told_apart(self, rule: Rule, count: int, num_folds: int | None = None) -> int:
        """Return how many of the highest ranks decide a verdict: those down to the line of "look".

        Args:
            rule (Rule): How a new image is compared with normal ones.
            count (int): Number k of normal images.
            num_folds (int | None): Number of folds, which ``Rule.FOLDS`` needs. Defaults to ``None``.
        """
        possible = self.false_alarm_rate is None or needed(self.false_alarm_rate) <= count
        return rule.look_rank(rule.rank(self.false_alarm_rate if possible else None, count), count, num_folds)

    @staticmethod
    def _at_rank(ascending: torch.Tensor, rank: int) -> torch.Tensor:
        """Return the m-th highest value, the lowest if there are fewer."""
        return ascending[max(0, len(ascending) - rank)]

    def _set(self, level: str, ascending: torch.Tensor, rank: int, lowest: torch.Tensor | None = None) -> None:
        """Set the threshold to the m-th highest value, and the range to that of all values, or up to 0 if that is more.

        Scores of two images are near each other, for they are of the same distance: their range alone says nothing.
        """
        highest = ascending[-1]
        lowest = ascending[0] if lowest is None else lowest
        width = torch.maximum(highest - lowest, highest.abs()).clamp_min(MIN_WIDTH)
        if self.enable_thresholding:
            getattr(self, f"_{level}_threshold").copy_(self._at_rank(ascending, rank))
        if self.enable_normalization:
            getattr(self, f"{level}_min").copy_(highest - width)
            getattr(self, f"{level}_max").copy_(highest)

    def _normalize(  # type: ignore[override]
        self,
        preds: torch.Tensor | None,
        norm_min: torch.Tensor,
        norm_max: torch.Tensor,
        threshold: torch.Tensor,
    ) -> torch.Tensor | None:
        """Return scores between 0 and 1, with upstream's slope at the threshold, but no end that cuts them off."""
        shown = super()._normalize(preds, norm_min, norm_max, threshold)
        if preds is None or self.rule is None:  # there, upstream's range has the highest scores in it
            return shown
        z = 2 * (preds - threshold) / (norm_max - norm_min)
        soft = 0.5 + 0.5 * z / (1 + z.abs())
        return torch.where(torch.isnan(z), shown, soft)

    @staticmethod
    def _apply_threshold(preds: torch.Tensor | None, threshold: torch.Tensor) -> torch.Tensor | None:
        """Return which predictions are above a threshold, NaN among them."""
        above = PostProcessor._apply_threshold(preds, threshold)  # noqa: SLF001
        if preds is None or above is None or above.dtype != torch.bool:  # there is no threshold
            return above
        return ~(preds <= threshold)

    @property
    def look_threshold(self) -> torch.Tensor:
        """Raw score above which an image is to be looked at. NaN if the threshold was fitted as upstream does."""
        return self._look_threshold

    @property
    def promised_rate(self) -> float | None:
        """Highest mean rate of good images that are called a defect. ``None`` if nothing is promised."""
        return None if self.rule is None else self.rule.promised_rate(self.rank, len(self.levels), self.num_folds)

    def p_value(self, scores: torch.Tensor) -> torch.Tensor:
        """Return the rank p-value of each score: how many of k normal images and itself it does not beat.

        Args:
            scores (torch.Tensor): Scores as :meth:`forward` returns them, shape ``(B,)``.

        Returns:
            torch.Tensor: ``(1 + number of normal images not beaten) / (k + 1)``, shape ``(B,)``. NaN without normal
            images, if there is a single one, which is beaten by all, or where the score is NaN.
        """
        if self.rule in {None, Rule.VIEWS, Rule.SEEN}:
            return torch.full_like(scores, float("nan"))
        levels = self._shown(self.levels)
        return torch.as_tensor(p_values(scores.double().cpu().numpy(), levels.double().cpu().numpy()))

    def verdicts(self, scores: torch.Tensor) -> list[str]:
        """Return one of ``VERDICTS``, or ``UNKNOWN``, for each score of :meth:`forward`, shape ``(B,)``."""
        look = self._shown(self._look_threshold)
        defect = self.normalized_image_threshold if self.enable_normalization else self.image_threshold
        above = [(scores > float(line)).cpu().int() for line in (look, defect)]
        highest = 1 if self.rule is Rule.VIEWS else 2
        verdicts = [VERDICTS[min(count, highest)] for count in np.add(*above).tolist()]
        return [UNKNOWN if np.isnan(score) else v for v, score in zip(verdicts, scores.tolist(), strict=True)]

    def _shown(self, raw: torch.Tensor) -> torch.Tensor:
        """Return raw scores as :meth:`forward` shows them."""
        if not self.enable_normalization:
            return raw
        return self._normalize(raw, self.image_min, self.image_max, self.image_threshold)

    def forward(self, predictions: InferenceBatch) -> InferenceBatch:
        """Return scores between 0 and 1, labels, and masks that are empty where the label is False."""
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
        """Post-process a batch, and explain its labels by verdicts and p-values."""
        super().on_predict_batch_end(trainer, pl_module, outputs, *args, **kwargs)
        if self.rule is not None and isinstance(outputs, ImageBatch) and outputs.pred_score is not None:
            verdicts = self.verdicts(outputs.pred_score)
            p_values = self.p_value(outputs.pred_score).tolist()
            outputs.explanation = [  # type: ignore[assignment]
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
        """Update upstream's statistics, and keep the scores of normal images."""
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
        """Forget the scores of a validation that was interrupted."""
        del trainer, pl_module
        self._validation = []

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Fit the threshold as upstream does, or to normal images if there are no others.

        Only the validation of a fit does so: ``Engine.validate`` changes no threshold.
        """
        if not sets_thresholds(trainer):
            return
        batches, self._validation = self._validation, []
        super().on_validation_epoch_end(trainer, pl_module)
        self.rule = self.num_folds = None
        anomalous = sum(int(labels.sum()) for _, labels in batches)
        if batches and anomalous == 0:
            self.fit_normal(NormalScores(Rule.APART, [batch for batch, _ in batches]))
        elif anomalous > 0 and self.enable_thresholding and self.false_alarm_rate is not None:
            logger.warning(
                "`false_alarm_rate` must have a validation by good pictures alone, got %d anomalous ones: the "
                "threshold is upstream's. Take it from the good pictures: `FewShot(validation='support')`.",
                anomalous,
            )
        elif 0 < anomalous < MIN_DEFECTS and self.enable_thresholding:
            logger.warning(
                "The threshold is from %d anomalous validation images: it is the score of one of them. Give %d or "
                "more, or take it from the good pictures: `FewShot(validation='support')`.",
                anomalous,
                MIN_DEFECTS,
            )

    def describe(self) -> str:
        """Say in words what the threshold is from, and what it promises."""
        if self.rule is None:
            return "The threshold was fitted to validation images, and promises no rate of false alarms."
        count, rank = len(self.levels), self.rank
        rate = self.promised_rate
        words = {
            Rule.HELD_OUT: f"{count} good pictures, each held out of the fit that it is compared by",
            Rule.FOLDS: f"{count} good pictures, held out in {self.num_folds} parts",
            Rule.APART: f"{count} good pictures that were kept apart",
            Rule.ONE_FIT: f"{count} good pictures, each held out in turn",
            Rule.VIEWS: "views of a single good picture",
            Rule.SEEN: f"{count} good pictures that the model was trained on",
        }
        text = f"The threshold is from {words[self.rule]}. "
        if self.rule is Rule.VIEWS:
            return text + (
                "It promises nothing, and nothing is called a defect: rank pictures by their scores, and look at what "
                "is above it. Give two good pictures or more."
            )
        if self.rule is Rule.SEEN:
            return text + (
                "It promises nothing: many new good pictures are above it. Give pictures to validate by: "
                "`FewShot(validation='source')`."
            )
        if rate is None:
            return text + (
                f"Good pictures of the same kind are above it about {rank} times in {count + 1}, but no rate is "
                "promised."
            )
        text += f"Of new good pictures it calls {rate:.2g} or less a defect, on average over choices of these ones"
        if self.rule is Rule.APART:
            return f"{text}, and with these, at 95 % confidence, {rate_bound(rank, count):.2g} or less."
        return f"{text}. For 0.05 it takes {needed(0.05)} of them." if rate > 0.05 else f"{text}."

    def metadata(self) -> dict[str, Any]:
        """Return what a deployment has to know, with the names of anomalib's plan for ``metadata.json``."""
        values: dict[str, Any] = {
            "image_sensitivity": self.image_sensitivity,
            "pixel_sensitivity": self.pixel_sensitivity,
            "image_threshold": float(self.image_threshold),
            "pixel_threshold": float(self.pixel_threshold),
            "description": self.describe(),
        }
        if self.rule is not None:
            levels = self._shown(self.levels).tolist()
            p = p_values(np.asarray(levels), np.asarray(levels)).tolist()
            values |= {
                "rule": self.rule.value,
                "num_normal": len(levels),
                "promised_false_alarm_rate": self.promised_rate,
                "false_alarm_rate_bound": rate_bound(self.rank, len(levels)) if self.rule is Rule.APART else None,
                "look_score": float(self._shown(self._look_threshold)),
                "defect_score": float(self.normalized_image_threshold),
                "p_values": [{"score_up_to": level, "p": value} for level, value in zip(levels, p, strict=True)],
            }
        return values


def sets_thresholds(trainer: Trainer) -> bool:
    """Return whether the validation belongs to a fit. anomalib fits its few-shot models in ``Trainer.validate``."""
    learning_type = getattr(trainer.lightning_module, "learning_type", None)
    return trainer.state.fn == TrainerFn.FITTING or learning_type in {LearningType.FEW_SHOT, LearningType.ZERO_SHOT}


def _within(masks: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Return masks, ``(B, ...)``, that are False where the label, ``(B,)``, is."""
    return masks & labels.view(-1, *[1] * (masks.ndim - 1))
