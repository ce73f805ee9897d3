# Copyright (C) 2026 anomalib-fewshot contributors
# SPDX-License-Identifier: Apache-2.0

"""Which metrics are defined if all test images are normal, or all anomalous: anomalib gives an AUROC of 0 for them."""

from collections.abc import Collection

from anomalib.data.utils import LabelName
from anomalib.metrics import AUPR, AUPRO, AUROC, PRO, AnomalibMetric, F1Max, F1Score

NEED_BOTH = (AUROC, AUPR, AUPRO, PRO, F1Max, F1Score)


def is_one_kind(labels: Collection[int]) -> bool:
    """Return whether images are all normal or all anomalous. No images are of no kind.

    Example:
        >>> is_one_kind([1, 1]), is_one_kind([0, 1])
        (True, False)
    """
    return len(set(labels)) == 1


def is_defined(metric: AnomalibMetric, labels: Collection[int]) -> bool:
    """Return whether a metric can be measured on images with these labels.

    Args:
        metric (AnomalibMetric): Metric of images or pixels. Pixels of anomalous images are of both kinds.
        labels (Collection[int]): Label of each image, 0 or 1.
    """
    if not isinstance(metric, NEED_BOTH) or not is_one_kind(labels):
        return True
    return "gt_label" not in metric.fields and LabelName.NORMAL not in labels
