# Copyright (C) 2026 anomalib-fewshot contributors
# SPDX-License-Identifier: Apache-2.0

"""The few-shot benchmark: ``plan`` lists runs, ``run`` makes them, ``results`` keeps them, ``report`` shows them."""

from .benchmark import benchmark

__all__ = ["benchmark"]
