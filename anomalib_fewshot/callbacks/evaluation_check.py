# Copyright (C) 2026 anomalib-fewshot contributors
# SPDX-License-Identifier: Apache-2.0

"""Check of anomalib's evaluator for metrics that are undefined on the scored images."""

import logging
from typing import Any

from anomalib.data import ImageBatch
from anomalib.metrics import Evaluator
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn
from torch import nn

from anomalib_fewshot.data import MVTecFolder
from anomalib_fewshot.data.support import SupportDataModule
from anomalib_fewshot.metrics import (
    CategoryEvaluator,
    ScoredImages,
    UndefinedMetric,
    warn_undefined_metrics,
    were_updated,
)

logger = logging.getLogger(__name__)


class EvaluationCheck(Callback):
    """Exclude undefined metrics from a test, for example AUROC and F1 of one class only, or of NaN scores.

    The callback changes anomalib's ``Evaluator`` in tests with the data modules of this package, and nothing in other
    runs. :class:`CategoryEvaluator` has its own check.
    """

    def __init__(self) -> None:
        self._scored = ScoredImages()
        self._evaluator: Evaluator | None = None
        self._metrics = nn.ModuleList()  # all metrics of the evaluator

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Warn about a test without images."""
        del pl_module
        if stage == TrainerFn.TESTING and trainer.limit_test_batches == 0 and _is_own(trainer):
            logger.warning("Not measured: all metrics. Reason: `limit_test_batches` is 0, so no image is scored.")

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Decide whether to check this test."""
        self._restore()
        evaluator = getattr(pl_module, "evaluator", None)
        if _is_own(trainer) and isinstance(evaluator, Evaluator) and not isinstance(evaluator, CategoryEvaluator):
            self._scored, self._evaluator, self._metrics = ScoredImages(), evaluator, evaluator.test_metrics

    def on_test_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,  # noqa: ANN401
        batch: ImageBatch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Count the images, before the evaluator is called."""
        del trainer, pl_module, outputs, batch_idx, dataloader_idx
        if self._evaluator is not None:
            self._scored.update(batch)

    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Remove undefined metrics from the evaluator until the test ends, and warn about them."""
        if self._evaluator is None:
            return
        scored = self._scored.reduce(trainer)
        defined, undefined = [], []
        metrics: list[Any] = list(self._metrics)
        updated = were_updated(metrics, trainer)
        for metric, is_updated in zip(metrics, updated, strict=True):
            reason = scored.undefined_reason(metric)
            if reason:
                undefined.append(UndefinedMetric(metric.name, reason, scored))
            if reason or not is_updated:
                metric.reset()
            else:
                defined.append(metric)
        self._evaluator.test_metrics = nn.ModuleList(defined)
        warn_undefined_metrics(undefined, trainer, pl_module)

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Restore the metrics of the evaluator."""
        del trainer, pl_module
        self._restore()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Restore the metrics of the evaluator."""
        del trainer, pl_module, exception
        self._restore()

    def _restore(self) -> None:
        if self._evaluator is not None:
            self._evaluator.test_metrics = self._metrics
        self._evaluator, self._metrics = None, nn.ModuleList()


def _is_own(trainer: Trainer) -> bool:
    return isinstance(getattr(trainer, "datamodule", None), SupportDataModule | MVTecFolder)
