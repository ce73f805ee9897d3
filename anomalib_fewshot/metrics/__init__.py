# Copyright (C) 2026 anomalib-fewshot contributors
# SPDX-License-Identifier: Apache-2.0

"""Metrics over several categories."""

from .by_category import CategoryMetric, MacroMean, by_category

__all__ = ["CategoryMetric", "MacroMean", "by_category"]
