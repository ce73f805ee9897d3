# Copyright (C) 2026 anomalib-fewshot contributors
# SPDX-License-Identifier: Apache-2.0

"""Metrics over several categories."""

from .by_category import CategoryMetric, MacroMean, by_category
from .category_evaluator import CategoryEvaluator, HasCategories
from .one_kind import is_defined, is_one_kind

__all__ = [
    "CategoryEvaluator",
    "CategoryMetric",
    "HasCategories",
    "MacroMean",
    "by_category",
    "is_defined",
    "is_one_kind",
]
