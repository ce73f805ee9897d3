# Copyright (C) 2026 anomalib-fewshot contributors
# SPDX-License-Identifier: Apache-2.0

"""Detect undefined metrics. anomalib reports an AUROC of 0 for a single class, and arbitrary values for NaN scores."""

import logging
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import asdict, astuple, dataclass

import torch
from anomalib.data import ImageBatch
from anomalib.metrics import AUPR, AUPRO, AUROC, PRO, AnomalibMetric, F1Max, F1Score
from lightning.pytorch import LightningModule, Trainer
from torchmetrics import Metric

logger = logging.getLogger(__name__)

NUM_SHOWN = 4  # highest number of names in a warning
NEED_BOTH_CLASSES = (AUROC, AUPR, AUPRO, PRO, F1Max, F1Score)
IMAGE_OUTPUTS, PIXEL_OUTPUTS = {"pred_score", "pred_label"}, {"anomaly_map", "pred_mask"}


@dataclass
class ScoredImages:
    """Numbers of images that the metrics were updated with.

    Args:
        normal (int): Normal images.
        anomalous (int): Anomalous images.
        unlabelled (int): Images without a label.
        nan_scores (int): Images whose score is NaN.
        nan_maps (int): Images whose anomaly map contains NaN.
    """

    normal: int = 0
    anomalous: int = 0
    unlabelled: int = 0
    nan_scores: int = 0
    nan_maps: int = 0

    @property
    def number(self) -> int:
        """Number of images."""
        return self.normal + self.anomalous + self.unlabelled

    def update(self, batch: ImageBatch) -> None:
        """Count the images of a batch."""
        if batch.gt_label is None:
            self.unlabelled += batch.batch_size
        else:
            anomalous = int(batch.gt_label.sum())
            self.anomalous += anomalous
            self.normal += batch.gt_label.numel() - anomalous
        if batch.pred_score is not None:
            self.nan_scores += int(batch.pred_score.isnan().sum())
        if batch.anomaly_map is not None:
            self.nan_maps += int(batch.anomaly_map.flatten(1).isnan().any(dim=1).sum())

    def reduce(self, trainer: Trainer) -> "ScoredImages":
        """Return the sum over all processes."""
        counts = torch.tensor(astuple(self), device=trainer.strategy.root_device)
        return ScoredImages(*trainer.strategy.reduce(counts, reduce_op="sum").tolist())

    def undefined_reason(self, metric: AnomalibMetric) -> str:
        """Return the reason why a metric is undefined on these images, as a format string. Empty if it is defined.

        Args:
            metric (AnomalibMetric): Image or pixel metric. Anomalous images have pixels of both classes.

        Example:
            >>> ScoredImages(normal=2).undefined_reason(AUROC(fields=["pred_score", "gt_label"]))
            'all {number} images are normal'
        """
        outputs = set(metric.fields)
        if not self.number:
            return "no image was scored"
        if self.nan_scores and outputs & IMAGE_OUTPUTS:
            return "the scores of {nan_scores} of {number} images are NaN"
        if self.nan_maps and outputs & PIXEL_OUTPUTS:
            return "the anomaly maps of {nan_maps} of {number} images hold NaN"
        needs_both = isinstance(metric, NEED_BOTH_CLASSES) and not self.unlabelled
        if needs_both and not self.anomalous:
            return "all {number} images are normal"
        if needs_both and not self.normal and "gt_label" in outputs:
            return "all {number} images are anomalous"
        return ""


def were_updated(metrics: Sequence[Metric], trainer: Trainer) -> list[bool]:
    """Return for each metric whether any process has updated it.

    A pixel metric is not updated if the images have no masks, and torchmetrics warns if it is computed. All processes
    get the same answer, because ``compute`` synchronizes them.

    Args:
        metrics (Sequence[Metric]): Metrics, in the same order in all processes.
        trainer (Trainer): Trainer of the run.
    """
    called = torch.tensor([int(metric.update_called) for metric in metrics], device=trainer.strategy.root_device)
    return [count > 0 for count in trainer.strategy.reduce(called, reduce_op="sum").tolist()]


@dataclass(frozen=True)
class UndefinedMetric:
    """A metric without a value.

    Args:
        name (str): Name of the metric.
        reason (str): Result of :meth:`ScoredImages.undefined_reason`.
        scored (ScoredImages): Scored images of its category.
    """

    name: str
    reason: str
    scored: ScoredImages


def warn_undefined_metrics(undefined: Iterable[UndefinedMetric], trainer: Trainer, model: LightningModule) -> None:
    """Log one warning for each reason why metrics are undefined.

    Args:
        undefined (Iterable[UndefinedMetric]): Undefined metrics of all categories.
        trainer (Trainer): Trainer. Its data module has the size of the support set.
        model (LightningModule): Model that scored the images.
    """
    groups = defaultdict(list)
    for each in undefined:
        groups[each.reason].append(each)
    for reason, group in groups.items():
        names = [each.name for each in group]
        shown = ", ".join(names[:NUM_SHOWN]) + (f" and {len(names) - NUM_SHOWN} more" if names[NUM_SHOWN:] else "")
        counts = _total({id(each.scored): each.scored for each in group}.values())
        advice = _advice(trainer, model) if "NaN" in reason else ""
        logger.warning("Not measured: %s. Reason: %s.%s", shown, reason.format(**counts), advice)


def _total(parts: Iterable[ScoredImages]) -> dict[str, int]:
    totals: Counter[str] = Counter()
    for part in parts:
        totals.update(asdict(part), number=part.number)
    return totals


def _advice(trainer: Trainer, model: LightningModule) -> str:
    k_shot = getattr(getattr(trainer, "datamodule", None), "k_shot", None)
    if k_shot is None:
        return f" {type(model).__name__} cannot score them."
    return f" {type(model).__name__} may need more support images than {k_shot}. Try `--data.k_shot {k_shot + 1}`."
