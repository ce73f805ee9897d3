# Copyright (C) 2026 anomalib-fewshot contributors
# SPDX-License-Identifier: Apache-2.0

"""The few-shot benchmark."""

from .pipeline import FewShotBenchmark
from .sweep import benchmark

__all__ = ["FewShotBenchmark", "benchmark"]
