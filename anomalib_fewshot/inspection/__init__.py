# Copyright (C) 2026 anomalib-fewshot contributors
# SPDX-License-Identifier: Apache-2.0

"""From a folder of good pictures to verdicts on a page."""

from .inspection import inspect

__all__ = ["inspect"]
