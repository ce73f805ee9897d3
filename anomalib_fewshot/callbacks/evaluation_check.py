# Copyright (C) 2026 anomalib-fewshot contributors
# SPDX-License-Identifier: Apache-2.0

"""Metrics of anomalib's evaluator that the scored images do not define."""

import logging
from typing import Any

from anomalib.data import ImageBatch
from anomalib.metrics import Evaluator
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn
from torch import nn

from anomalib_fewshot.data import MVTecFolder
from anomalib_fewshot.data.support import SupportDataModule
from anomalib_fewshot.metrics import CategoryEvaluator, ScoredImages, Undefined, warn_of_undefined, were_updated

logger = logging.getLogger(__name__)


class EvaluationCheck(Callback):
    """Leave metrics out of a test that are not defined: AUROC and F1 of one class, or of scores that are NaN.

    It acts on anomalib's ``Evaluator`` in tests on the datamodules of this package. Other runs stay as they are. The
    evaluator of this package, :class:`CategoryEvaluator`, does the same by itself.
    """

    def __init__(self) -> None:
        self._scored = ScoredImages()
        self._evaluator: Evaluator | None = None
        self._metrics = nn.ModuleList()  # as the evaluator has them

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Warn of a test without images."""
        del pl_module
        if stage == TrainerFn.TESTING and trainer.limit_test_batches == 0 and _is_own(trainer):
            logger.warning("Not measured: all metrics. Reason: `limit_test_batches` is 0, so no image is scored.")

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Look whether the test is one to check."""
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
        """Count the images. The evaluator comes after this callback."""
        del trainer, pl_module, outputs, batch_idx, dataloader_idx
        if self._evaluator is not None:
            self._scored.update(batch)

    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take the metrics that are not defined from the evaluator until the test is over, and warn of them."""
        if self._evaluator is None:
            return
        scored = self._scored.reduce(trainer)
        defined, undefined = [], []
        updated = were_updated(list(self._metrics), trainer)
        for metric, is_updated in zip(self._metrics, updated, strict=True):
            reason = scored.why_undefined(metric)
            if reason:
                undefined.append(Undefined(metric.name, reason, scored))
            if reason or not is_updated:
                metric.reset()
            else:
                defined.append(metric)
        self._evaluator.test_metrics = nn.ModuleList(defined)
        warn_of_undefined(undefined, trainer, pl_module)

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Give the evaluator its metrics back."""
        del trainer, pl_module
        self._restore()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Give the evaluator its metrics back."""
        del trainer, pl_module, exception
        self._restore()

    def _restore(self) -> None:
        if self._evaluator is not None:
            self._evaluator.test_metrics = self._metrics
        self._evaluator, self._metrics = None, nn.ModuleList()


def _is_own(trainer: Trainer) -> bool:
    return isinstance(getattr(trainer, "datamodule", None), SupportDataModule | MVTecFolder)
