# Copyright (C) 2026 anomalib-fewshot contributors
# SPDX-License-Identifier: Apache-2.0

"""Raw test predictions, and anomalib's metrics computed on them."""

from collections.abc import Collection
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from anomalib.data import Batch, ImageBatch
from anomalib.metrics import AUPIMO, AUPR, AUPRO, AUROC, AnomalibMetric, F1Max, F1Score, create_anomalib_metric
from lightning.pytorch import Callback, LightningModule, Trainer
from torchmetrics.classification import BinaryAveragePrecision

AveragePrecision = create_anomalib_metric(BinaryAveragePrecision)
PIXEL_METRICS = {"AUROC": AUROC, "AUPRO": AUPRO, "AP": AveragePrecision, "F1Max": F1Max, "AUPIMO": AUPIMO}


@dataclass
class Predictions:
    """Raw outputs of a model on N test images.

    Args:
        paths (list[str]): Path of each image.
        scores (torch.Tensor): Scores before normalization, shape ``(N,)``.
        labels (torch.Tensor): Whether each image is anomalous, shape ``(N,)``.
        maps (torch.Tensor | None): Anomaly maps before normalization, shape ``(N, H, W)``.
        masks (torch.Tensor | None): Whether each pixel is anomalous, shape ``(N, H, W)``.
    """

    paths: list[str]
    scores: torch.Tensor
    labels: torch.Tensor
    maps: torch.Tensor | None
    masks: torch.Tensor | None


class Recorder(Callback):
    """Callback that records the raw outputs of a test.

    anomalib computes metrics on scores that are normalized and clipped to [0, 1]. Clipping turns high scores into ties,
    which changes the AUROC. This callback sees the raw scores, because the engine calls it before the post-processor.
    """

    def __init__(self) -> None:
        self._batches: list[Predictions] = []

    def on_test_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,  # noqa: ANN401  a batch of anomalib
        batch: Batch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Record the outputs of a batch."""
        del trainer, pl_module, batch, batch_idx, dataloader_idx
        maps = None if outputs.anomaly_map is None else outputs.anomaly_map.squeeze(1).float().cpu()
        masks = None if outputs.gt_mask is None else outputs.gt_mask.bool().cpu()
        scores, labels = outputs.pred_score.flatten().float().cpu(), outputs.gt_label.bool().cpu()
        self._batches.append(Predictions(list(outputs.image_path), scores, labels, maps, masks))

    def predictions(self, paths: Collection[str] | None = None) -> Predictions:
        """Return the recorded outputs.

        Args:
            paths (Collection[str] | None): Image paths of one category. Each batch must contain only one category.
                Defaults to ``None``: all images.
        """
        batches = [batch for batch in self._batches if paths is None or batch.paths[0] in paths]
        return Predictions(
            paths=[path for batch in batches for path in batch.paths],
            scores=torch.cat([batch.scores for batch in batches]),
            labels=torch.cat([batch.labels for batch in batches]),
            maps=_cat([batch.maps for batch in batches]),
            masks=_cat([batch.masks for batch in batches]),
        )


def compute_metrics(predictions: Predictions, threshold: float) -> dict[str, float]:
    """Return anomalib's metrics on raw predictions.

    The metrics treat scores outside [0, 1] as logits and apply a sigmoid, which turns large scores into ties.
    Therefore all scores are first scaled linearly to [0, 1], which preserves their order.

    Args:
        predictions (Predictions): Raw predictions of a test.
        threshold (float): Images with a higher score are predicted as anomalous. NaN if the model has no threshold.

    Returns:
        dict[str, float]: ``image_AUROC``, ``image_AUPR`` and ``image_F1Max``; ``image_F1Score``, ``false_alarms`` and
        ``recall`` at the threshold; ``pixel_`` and the names of ``PIXEL_METRICS``. Metrics without a threshold, masks
        or maps are NaN, and so is AUPIMO if there are too few normal pixels.

    Raises:
        ValueError: If a score or map is not finite, or if the test images are all normal or all anomalous.
    """
    _validate(predictions)
    images = ImageBatch(
        image=torch.zeros(len(predictions.paths), 3, 1, 1),
        pred_score=_to_unit(predictions.scores),
        pred_label=predictions.scores > threshold,
        gt_label=predictions.labels,
    )
    fields = ["pred_score", "gt_label"]
    metrics = {
        "image_AUROC": _compute(AUROC(fields=fields), images),
        "image_AUPR": _compute(AUPR(fields=fields), images),
        "image_F1Max": _compute(F1Max(fields=fields), images),
    }
    f1_score = _compute(F1Score(fields=["pred_label", "gt_label"]), images)
    above = (predictions.scores > threshold).double()
    at_threshold = {
        "image_F1Score": f1_score,
        "false_alarms": float(above[~predictions.labels].mean()),
        "recall": float(above[predictions.labels].mean()),
    }
    metrics |= dict.fromkeys(at_threshold, float("nan")) if np.isnan(threshold) else at_threshold
    metrics |= {f"pixel_{name}": float("nan") for name in PIXEL_METRICS}
    if predictions.maps is not None and predictions.masks is not None and predictions.masks.any():
        images.anomaly_map, images.gt_mask = _to_unit(predictions.maps)[:, None], predictions.masks
        for name, metric in PIXEL_METRICS.items():
            with suppress(RuntimeError, ValueError) if metric is AUPIMO else nullcontext():  # too few pixels
                metrics[f"pixel_{name}"] = _compute(metric(fields=["anomaly_map", "gt_mask"]), images)
    return metrics


def _validate(predictions: Predictions) -> None:
    infinite = int((~predictions.scores.isfinite()).sum())
    if infinite:
        msg = f"The scores of {infinite} of {len(predictions.paths)} test images are not finite."
        raise ValueError(msg)
    if predictions.maps is not None and not predictions.maps.isfinite().all():
        msg = "The anomaly maps of the test images contain values that are not finite."
        raise ValueError(msg)
    anomalous = int(predictions.labels.sum())
    if anomalous in {0, len(predictions.paths)}:
        msg = (
            f"The test set must have normal and anomalous images, got {len(predictions.paths) - anomalous} normal and "
            f"{anomalous} anomalous images."
        )
        raise ValueError(msg)


def _to_unit(scores: torch.Tensor) -> torch.Tensor:
    """Return scores scaled linearly to [0, 1]."""
    scores = scores.double()  # rounding in float32 would create ties
    low, high = scores.min(), scores.max()
    return (scores - low) / (high - low if high > low else 1)


def _compute(metric: AnomalibMetric, batch: Batch) -> float:
    metric.update(batch)
    return float(metric.compute())


def _cat(parts: list[torch.Tensor | None]) -> torch.Tensor | None:
    """Return the concatenated tensors, or ``None`` if a part is missing."""
    tensors = [part for part in parts if part is not None]
    return torch.cat(tensors) if parts and len(tensors) == len(parts) else None
