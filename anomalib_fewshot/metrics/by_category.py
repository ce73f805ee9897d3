# Copyright (C) 2026 anomalib-fewshot contributors
# SPDX-License-Identifier: Apache-2.0

"""Any anomalib metric for each category, and the mean over categories. Scores of categories are never pooled."""

from collections.abc import Iterable, Mapping
from copy import deepcopy
from itertools import chain

import torch
from anomalib.data import ImageBatch
from anomalib.metrics import AnomalibMetric
from torch import nn
from torchmetrics import Metric


class CategoryMetric(Metric):
    """A metric for the images of one category.

    Args:
        metric (AnomalibMetric): Metric to compute.
        category (str): Category, which becomes part of the name: ``bottle/image_AUROC``.
        categories (Mapping[str, str]): Category of each image by its path.
    """

    full_state_update = True

    def __init__(self, metric: AnomalibMetric, category: str, categories: Mapping[str, str]) -> None:
        super().__init__()
        self.metric = metric
        self.name = f"{category}/{metric.name}"
        self.category = category
        self.categories = categories
        self.is_defined = True  # False: the mean excludes it

    def update(self, batch: ImageBatch) -> None:
        """Update the metric if the batch belongs to its category."""
        if self.categories[batch.image_path[0]] == self.category:  # type: ignore[index]  # every data module sets it
            self.metric.compute_on_cpu = self.compute_on_cpu  # type: ignore[attr-defined]  # the evaluator sets it here
            self.metric.update(batch)

    def compute(self) -> torch.Tensor | None:
        """Return the value. ``None`` if a metric that is not strict had no input, for example no masks."""
        return self.metric.compute()

    def reset(self) -> None:
        """Reset the state."""
        super().reset()
        self.metric.reset()  # type: ignore[attr-defined]  # from torchmetrics


class MacroMean(Metric):
    """Mean of a metric over the categories in which it is defined.

    Args:
        metrics (Iterable[CategoryMetric]): The metric of each category. They are updated separately.
        name (str): Name of the metric.
    """

    full_state_update = True

    def __init__(self, metrics: Iterable[CategoryMetric], name: str) -> None:
        super().__init__()
        self.parts = list(metrics)  # not a module list, because each part is logged separately
        self.name = name

    def update(self, batch: ImageBatch) -> None:
        """Do nothing: the parts are updated separately."""

    def compute(self) -> torch.Tensor | None:
        """Return the mean. ``None`` if the metric is defined in no category."""
        values = [part.compute() for part in self.parts if part.is_defined]
        defined = [value for value in values if value is not None]
        return torch.stack(defined).mean() if defined else None


def by_category(
    metrics: Iterable[AnomalibMetric],
    categories: Mapping[str, str],
) -> nn.ModuleList:
    """Return each metric for each category, and its mean over categories under the name of the metric.

    All images of a batch must belong to one category.

    Args:
        metrics (Iterable[AnomalibMetric]): Metrics of an evaluator.
        categories (Mapping[str, str]): Category of each image by its path.
    """
    names = dict.fromkeys(categories.values())
    groups = [[CategoryMetric(deepcopy(metric), name, categories) for name in names] for metric in metrics]
    means = [MacroMean(group, group[0].metric.name) for group in groups]  # logged first
    return nn.ModuleList([*means, *chain.from_iterable(groups)])
