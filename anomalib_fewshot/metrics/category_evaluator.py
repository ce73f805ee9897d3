# Copyright (C) 2026 anomalib-fewshot contributors
# SPDX-License-Identifier: Apache-2.0

"""anomalib's evaluator for data of several categories."""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, cast

from anomalib.data import ImageBatch
from anomalib.metrics import AnomalibMetric, Evaluator
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities.types import STEP_OUTPUT
from torchmetrics import Metric

from anomalib_fewshot.data.support import SupportDataModule

from .by_category import CategoryMetric, MacroMean, by_category
from .single_class import ScoredImages, UndefinedMetric, warn_undefined_metrics, were_updated

if TYPE_CHECKING:
    from torch.nn import ModuleList


class CategoryEvaluator(Evaluator):
    """Compute metrics for each category. Scores of several categories are never pooled.

    With ``MultiCategory`` each metric is reported for each category (``bottle/image_AUROC``), and as the mean over
    categories (``image_AUROC``). Metrics that are undefined on the scored images are not logged, but listed in a
    warning: for example the AUROC of one class only, or of NaN scores. Otherwise this is anomalib's ``Evaluator``.

    Args:
        val_metrics (AnomalibMetric | Sequence[AnomalibMetric] | None): Validation metrics. Defaults to ``None``.
        test_metrics (AnomalibMetric | Sequence[AnomalibMetric] | None): Test metrics. Defaults to ``None``: the default
            metrics of anomalib.
        compute_on_cpu (bool): Compute the metrics on the CPU. Defaults to ``True``.
    """

    def __init__(
        self,
        val_metrics: AnomalibMetric | Sequence[AnomalibMetric] | None = None,
        test_metrics: AnomalibMetric | Sequence[AnomalibMetric] | None = None,
        compute_on_cpu: bool = True,
    ) -> None:
        if test_metrics is None:
            # At the top of the file, this would be a circular import: it loads the plug-ins.
            from anomalib.models.components import AnomalibModule

            defaults: Any = AnomalibModule.configure_evaluator().test_metrics
            test_metrics = list(defaults)
        super().__init__(val_metrics, test_metrics, compute_on_cpu)
        self.measures_by_category = True
        self._pooled: dict[str, ModuleList] = {}  # the original metrics, from setup to teardown
        self._category_by_path: dict[str, str] = {}
        self._scored: defaultdict[str, ScoredImages] = defaultdict(ScoredImages)  # by category

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Split the metrics by category."""
        self._restore()  # after an interrupted run
        datamodule = getattr(trainer, "datamodule", None)
        if isinstance(datamodule, SupportDataModule):
            self._category_by_path = dict(datamodule.category_by_path)
        if self._category_by_path:
            for name in ("val_metrics", "test_metrics"):
                metrics: Any = getattr(self, name)
                self._pooled[name] = metrics
                setattr(self, name, by_category(metrics, self._category_by_path))
        super().setup(trainer, pl_module, stage)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Restore the original metrics."""
        del trainer, pl_module, stage
        self._restore()

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: STEP_OUTPUT | None,
        batch: Any,  # noqa: ANN401
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Update the metrics and count the images."""
        super().on_validation_batch_end(trainer, pl_module, outputs, batch, batch_idx, dataloader_idx)
        self._count(batch)

    def on_test_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: STEP_OUTPUT | None,
        batch: Any,  # noqa: ANN401
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Update the metrics and count the images."""
        super().on_test_batch_end(trainer, pl_module, outputs, batch, batch_idx, dataloader_idx)
        self._count(batch)

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log the metrics that are defined on the scored images."""
        self._log_metrics(cast("Iterable[Any]", self.val_metrics), trainer, pl_module)

    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log the metrics that are defined on the scored images, and warn about the others."""
        self._log_metrics(cast("Iterable[Any]", self.test_metrics), trainer, pl_module)

    def _count(self, batch: ImageBatch) -> None:
        category = self._category_by_path[batch.image_path[0]] if self._category_by_path else ""  # type: ignore[index]
        self._scored[category].update(batch)

    def _log_metrics(self, metrics: Iterable[Any], trainer: Trainer, pl_module: LightningModule) -> None:
        categories = dict.fromkeys(self._category_by_path.values()) or [""]
        scored = {category: self._scored[category].reduce(trainer) for category in categories}
        self._scored.clear()
        undefined = _mark_undefined(metrics, scored, trainer)
        for metric in metrics:
            if isinstance(metric, MacroMean):
                is_defined = any(part.is_defined for part in metric.parts)
            else:
                is_defined = metric not in undefined
            if not is_defined:
                metric.reset()
                continue
            self.log(metric.name, metric)  # type: ignore[operator]  # Lightning sets it
            if trainer.barebones:  # as in the base class, because logging is disabled
                value = metric.compute()
                trainer.callback_metrics[metric.name] = trainer.logged_metrics[metric.name] = value
        if not trainer.sanity_checking:
            warn_undefined_metrics(filter(None, undefined.values()), trainer, pl_module)

    def _restore(self) -> None:
        for name, metrics in self._pooled.items():
            setattr(self, name, metrics)
        self._pooled, self._category_by_path = {}, {}
        self._scored.clear()


def _mark_undefined(
    metrics: Iterable[Any],
    scored: Mapping[str, ScoredImages],
    trainer: Trainer,
) -> dict[Metric, UndefinedMetric | None]:
    """Return the undefined metrics, and mark them so that the mean excludes them.

    The value is ``None`` for a pixel metric without masks, which needs no warning.
    """
    singles = [metric for metric in metrics if not isinstance(metric, MacroMean)]
    wrapped: list[Any] = [metric.metric if isinstance(metric, CategoryMetric) else metric for metric in singles]
    undefined: dict[Metric, UndefinedMetric | None] = {}
    for metric, anomalib_metric, is_updated in zip(singles, wrapped, were_updated(wrapped, trainer), strict=True):
        images = scored[metric.category if isinstance(metric, CategoryMetric) else ""]
        reason = images.undefined_reason(anomalib_metric)
        if reason:
            undefined[metric] = UndefinedMetric(metric.name, reason, images)
        elif not is_updated:
            undefined[metric] = None
        if isinstance(metric, CategoryMetric):
            metric.is_defined = metric not in undefined
    return undefined
