# Copyright (C) 2026 anomalib-fewshot contributors
# SPDX-License-Identifier: Apache-2.0

"""Metrics for one or several categories."""

from .by_category import CategoryMetric, MacroMean, by_category
from .category_evaluator import CategoryEvaluator
from .single_class import ScoredImages, UndefinedMetric, warn_undefined_metrics, were_updated

__all__ = [
    "CategoryEvaluator",
    "CategoryMetric",
    "MacroMean",
    "ScoredImages",
    "UndefinedMetric",
    "by_category",
    "warn_undefined_metrics",
    "were_updated",
]
