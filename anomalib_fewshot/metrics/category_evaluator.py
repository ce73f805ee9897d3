# Copyright (C) 2026 anomalib-fewshot contributors
# SPDX-License-Identifier: Apache-2.0

"""anomalib's evaluator for data of several categories."""

import logging
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from anomalib.metrics import AnomalibMetric, Evaluator
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn
from torch import nn

from .by_category import by_category
from .one_kind import is_defined

if TYPE_CHECKING:
    from anomalib.data import AnomalibDataset
    from torch.utils.data import ConcatDataset

logger = logging.getLogger(__name__)


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
    metric's own name. What test images of one kind alone do not define, such as an AUROC, is left out and named. But
    for that, with any other data this is anomalib's ``Evaluator``.

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
        """Split the metrics by category, and leave out what the test images do not define."""
        self._restore()  # after a run that was interrupted
        datamodule = getattr(trainer, "datamodule", None)
        categories = datamodule.category_by_path if isinstance(datamodule, HasCategories) else {}
        for name, data in (("val_metrics", "val_data"), ("test_metrics", "test_data")):
            labels = _labels(getattr(datamodule, data, None), categories)
            self._pooled[name] = metrics = getattr(self, name)
            if categories:
                setattr(self, name, by_category(metrics, categories, labels))
            else:
                setattr(self, name, nn.ModuleList(m for m in metrics if is_defined(m, labels.get("", ()))))
            if stage == TrainerFn.TESTING and name == "test_metrics":
                _say_what_is_left_out(metrics, labels)
        super().setup(trainer, pl_module, stage)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Take the metrics as given back."""
        del trainer, pl_module, stage
        self._restore()

    def _restore(self) -> None:
        for name, metrics in self._pooled.items():
            setattr(self, name, metrics)
        self._pooled = {}


def _labels(data: "AnomalibDataset | ConcatDataset | None", categories: Mapping[str, str]) -> dict[str, list[int]]:
    """Return the labels of the images of each category, of the category ``""`` if there is only one."""
    labels = defaultdict(list)
    for part in getattr(data, "datasets", [] if data is None else [data]):
        for path, label in zip(part.samples.image_path, part.samples.label_index, strict=True):
            labels[categories.get(path, "")].append(int(label))
    return labels


def _say_what_is_left_out(metrics: Sequence[AnomalibMetric], labels: Mapping[str, Sequence[int]]) -> None:
    for category, own in labels.items():
        names = [metric.name for metric in metrics if not is_defined(metric, own)]
        if names:
            kind = "anomalous" if own[0] else "normal"
            of = f" of {category}" if category else ""
            logger.warning("Not measured: %s. All %d test images%s are %s.", ", ".join(names), len(own), of, kind)
