# Copyright (C) 2026 anomalib-fewshot contributors
# SPDX-License-Identifier: Apache-2.0

"""Metrics over several categories."""

from .by_category import CategoryMetric, MacroMean, by_category
from .category_evaluator import CategoryEvaluator
from .single_class import ScoredImages, Undefined, warn_of_undefined, were_updated

__all__ = [
    "CategoryEvaluator",
    "CategoryMetric",
    "MacroMean",
    "ScoredImages",
    "Undefined",
    "by_category",
    "warn_of_undefined",
    "were_updated",
]
