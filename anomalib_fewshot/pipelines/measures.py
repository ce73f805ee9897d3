# Copyright (C) 2026 anomalib-fewshot contributors
# SPDX-License-Identifier: Apache-2.0

"""What is measured of a run: anomalib's own metrics on the raw scores, and what the run costs."""

import ctypes
import gc
import hashlib
import time
from collections.abc import Collection
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import torch
from anomalib.data import Batch, ImageBatch
from anomalib.metrics import AUPR, AUPRO, AUROC, AnomalibMetric, F1Score
from anomalib.models import AnomalibModule
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import nn

MIB = 2**20
WARM_UP = 5  # forward passes before latency is measured


@dataclass
class Predictions:
    """Raw outputs of a model on all test images, N of them.

    Args:
        paths (list[str]): Path of each image.
        scores (torch.Tensor): Scores before any normalisation, shape ``(N,)``.
        labels (torch.Tensor): Whether each image is anomalous, shape ``(N,)``.
        maps (torch.Tensor | None): Anomaly maps before any normalisation, shape ``(N, H, W)``.
        masks (torch.Tensor | None): Which pixels are anomalous, shape ``(N, H, W)``.
    """

    paths: list[str]
    scores: torch.Tensor
    labels: torch.Tensor
    maps: torch.Tensor | None
    masks: torch.Tensor | None


class Recorder(Callback):
    """Keeps the raw outputs of a test, and how long validations and the start of a test take.

    anomalib normalises scores and cuts them off at 0 and 1 before it measures: far scores become ties, and an AUROC
    moves by them. Callbacks that are given to the engine are called before the post-processor's.

    Attributes:
        validation_seconds (float): Seconds from the first batch of each validation to its end.
        preparation_seconds (float): Seconds from the start of the test to its first batch. A model that has learnt from
            other categories takes the support in them.
    """

    def __init__(self) -> None:
        self.validation_seconds = self.preparation_seconds = 0.0
        self._since: float | None = None
        self._batches: list[Predictions] = []

    def on_validation_batch_start(self, *_args: Any, **_kwargs: Any) -> None:  # noqa: ANN401
        """Start the clock: what a model does before the first batch belongs to its training."""
        self._since = time.perf_counter() if self._since is None else self._since

    def on_validation_end(self, *_args: Any, **_kwargs: Any) -> None:  # noqa: ANN401
        """Stop the clock."""
        if self._since is not None:
            self.validation_seconds += time.perf_counter() - self._since
        self._since = None

    def on_test_start(self, *_args: Any, **_kwargs: Any) -> None:  # noqa: ANN401
        """Start the clock. Callbacks are called before the model."""
        self._since = time.perf_counter()

    def on_test_batch_start(self, *_args: Any, **_kwargs: Any) -> None:  # noqa: ANN401
        """Stop the clock at the first batch."""
        if self._since is not None:
            self.preparation_seconds = time.perf_counter() - self._since
        self._since = None

    def on_test_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,  # noqa: ANN401  a batch of anomalib's
        batch: Batch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Keep the outputs of a batch."""
        del trainer, pl_module, batch, batch_idx, dataloader_idx
        maps = None if outputs.anomaly_map is None else outputs.anomaly_map.squeeze(1).float().cpu()
        masks = None if outputs.gt_mask is None else outputs.gt_mask.bool().cpu()
        scores, labels = outputs.pred_score.flatten().float().cpu(), outputs.gt_label.bool().cpu()
        self._batches.append(Predictions(list(outputs.image_path), scores, labels, maps, masks))

    def predictions(self, paths: Collection[str] | None = None) -> Predictions:
        """Return the outputs on the test images.

        Args:
            paths (Collection[str] | None): The images of one category, where batches are of one category each. Defaults
                to ``None``: all images.
        """
        batches = [batch for batch in self._batches if paths is None or batch.paths[0] in paths]
        return Predictions(
            paths=[path for batch in batches for path in batch.paths],
            scores=torch.cat([batch.scores for batch in batches]),
            labels=torch.cat([batch.labels for batch in batches]),
            maps=_cat([batch.maps for batch in batches]),
            masks=_cat([batch.masks for batch in batches]),
        )


def accuracy(predictions: Predictions, threshold: float) -> dict[str, float]:
    """Return anomalib's metrics of raw predictions.

    The metrics read scores outside [0, 1] as logits, whose sigmoid makes ties of large ones. So all scores are first
    moved to [0, 1] by one linear map, which keeps their order.

    Args:
        predictions (Predictions): Raw predictions of a test.
        threshold (float): Score above which an image counts as anomalous, for the F1 score. NaN if there is none.

    Returns:
        dict[str, float]: ``image_AUROC``, ``image_AUPR`` and ``image_F1Score``; with masks and maps also
        ``pixel_AUROC`` and ``pixel_AUPRO``. What is not defined is NaN.

    Raises:
        ValueError: If a score is not finite, or if the test images are all normal or all anomalous.
    """
    _check(predictions)
    images = ImageBatch(
        image=torch.zeros(len(predictions.paths), 3, 1, 1),
        pred_score=_to_unit(predictions.scores),
        pred_label=predictions.scores > threshold,
        gt_label=predictions.labels,
    )
    fields = ["pred_score", "gt_label"]
    figures = {f"image_{type(m).__name__}": _compute(m, images) for m in (AUROC(fields=fields), AUPR(fields=fields))}
    f1_score = _compute(F1Score(fields=["pred_label", "gt_label"]), images)
    figures["image_F1Score"] = float("nan") if np.isnan(threshold) else f1_score
    figures |= {"pixel_AUROC": float("nan"), "pixel_AUPRO": float("nan")}
    if predictions.maps is not None and predictions.masks is not None and predictions.masks.any():
        images.anomaly_map, images.gt_mask = _to_unit(predictions.maps)[:, None], predictions.masks
        fields = ["anomaly_map", "gt_mask"]
        figures["pixel_AUROC"] = _compute(AUROC(fields=fields), images)
        figures["pixel_AUPRO"] = _compute(AUPRO(fields=fields), images)
    return figures


def _check(predictions: Predictions) -> None:
    infinite = int((~predictions.scores.isfinite()).sum())
    if infinite:
        msg = f"The scores of {infinite} of {len(predictions.paths)} test images are not finite numbers."
        raise ValueError(msg)
    if predictions.maps is not None and not predictions.maps.isfinite().all():
        msg = "The anomaly maps of the test images hold values that are not finite numbers."
        raise ValueError(msg)
    anomalous = int(predictions.labels.sum())
    if anomalous in {0, len(predictions.paths)}:
        msg = (
            f"A test must have normal and anomalous images, got {len(predictions.paths) - anomalous} normal and "
            f"{anomalous} anomalous ones."
        )
        raise ValueError(msg)


def _to_unit(scores: torch.Tensor) -> torch.Tensor:
    scores = scores.double()  # so that no two scores become one
    least, most = scores.min(), scores.max()
    return (scores - least) / (most - least if most > least else 1)


def _compute(metric: AnomalibMetric, batch: Batch) -> float:
    metric.update(batch)
    return float(metric.compute())


def _cat(parts: list[torch.Tensor | None]) -> torch.Tensor | None:
    tensors = [part for part in parts if part is not None]
    return torch.cat(tensors) if parts and len(tensors) == len(parts) else None


@torch.no_grad()
def latency(model: AnomalibModule, image: torch.Tensor, runs: int) -> dict[str, float]:
    """Return the median and the 95th percentile of the milliseconds that one image takes, after a warm-up.

    Args:
        model (AnomalibModule): Trained model. It pre-processes, scores and post-processes.
        image (torch.Tensor): Image in [0, 1], shape ``(3, H, W)``.
        runs (int): Number of forward passes that are measured. With 0, both figures are NaN.
    """
    model.eval()
    batch = image[None].to(model.device)
    seconds = []
    for _ in range(WARM_UP + runs if runs else 0):
        start = time.perf_counter()
        model(batch)
        if batch.is_cuda:
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - start)
    p50, p95 = np.percentile(seconds[WARM_UP:], [50, 95]) * 1e3 if runs else (float("nan"), float("nan"))
    return {"latency_p50_ms": float(p50), "latency_p95_ms": float(p95)}


def weights_hash(module: nn.Module) -> str:
    """Return eight digits of the SHA-256 of a module's tensors: equal for equal weights."""
    digest = hashlib.sha256()
    for name, value in sorted(module.state_dict().items()):
        if not isinstance(value, torch.Tensor):  # the state of an optimiser
            continue
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:8]


class PeakMemory:
    """By how much the memory of this process grows at most, in MiB, and what the GPU holds at most.

    The system keeps the peak of a process. Linux lets a process set it back; elsewhere the figure is NaN.

    Attributes:
        host_mib (float): Growth of the memory in use, after the context was left.
        gpu_mib (float): Peak of torch's memory on the GPU. NaN without one.
    """

    def __enter__(self) -> "PeakMemory":
        """Set the peak back."""
        self.host_mib = self.gpu_mib = float("nan")
        gc.collect()
        with suppress(AttributeError, OSError):  # glibc gives back what earlier runs have freed
            ctypes.CDLL(None).malloc_trim(0)
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()
        try:
            Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
            self._start = _status("VmRSS")
        except OSError:  # another system, or not allowed here
            self._start = float("nan")
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Read the peak."""
        del kind, value, trace
        if not np.isnan(self._start):
            self.host_mib = _status("VmHWM") - self._start
        if torch.cuda.is_available():
            self.gpu_mib = torch.cuda.max_memory_allocated() / MIB


def _status(field: str) -> float:
    """Return a figure that Linux keeps of this process, in MiB."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{field}:")) / 1024
