# Copyright (C) 2026 anomalib-fewshot contributors
# SPDX-License-Identifier: Apache-2.0

"""anomalib's evaluator for data of several categories."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from anomalib.metrics import AnomalibMetric, Evaluator
from lightning.pytorch import LightningModule, Trainer

from .by_category import by_category

if TYPE_CHECKING:
    from torch import nn


@runtime_checkable
class HasCategories(Protocol):
    """A datamodule whose test images are of several categories.

    Attributes:
        category_by_path (Mapping[str, str]): Category of each image by its path. Empty if there is only one.
    """

    category_by_path: Mapping[str, str]


class CategoryEvaluator(Evaluator):
    """Measure each category by itself where the data are of several: scores of two categories are never pooled.

    With ``MultiCategory`` each metric becomes one for each category, ``bottle/image_AUROC``, and their mean under the
    metric's own name. With any other data this is anomalib's ``Evaluator``.

    Args:
        val_metrics (AnomalibMetric | Sequence[AnomalibMetric] | None): Metrics of a validation. Defaults to ``None``.
        test_metrics (AnomalibMetric | Sequence[AnomalibMetric] | None): Metrics of a test. Defaults to ``None``: those
            that the models of anomalib have.
        compute_on_cpu (bool): Compute the metrics on the CPU. Defaults to ``True``.
    """

    def __init__(
        self,
        val_metrics: AnomalibMetric | Sequence[AnomalibMetric] | None = None,
        test_metrics: AnomalibMetric | Sequence[AnomalibMetric] | None = None,
        compute_on_cpu: bool = True,
    ) -> None:
        if test_metrics is None:
            from anomalib.models.components import AnomalibModule  # its import loads the plug-ins, which import this

            test_metrics = list(AnomalibModule.configure_evaluator().test_metrics)
        super().__init__(val_metrics, test_metrics, compute_on_cpu)
        self._pooled: dict[str, nn.ModuleList] = {}  # the metrics as given, from setup to teardown

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Split the metrics by category."""
        self._restore()  # after a run that was interrupted
        datamodule = getattr(trainer, "datamodule", None)
        if isinstance(datamodule, HasCategories) and datamodule.category_by_path:
            for name in ("val_metrics", "test_metrics"):
                self._pooled[name] = getattr(self, name)
                setattr(self, name, by_category(self._pooled[name], datamodule.category_by_path))
        super().setup(trainer, pl_module, stage)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Take the metrics as given back."""
        del trainer, pl_module, stage
        self._restore()

    def _restore(self) -> None:
        for name, metrics in self._pooled.items():
            setattr(self, name, metrics)
        self._pooled = {}
