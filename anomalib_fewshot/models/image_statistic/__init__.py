# Copyright (C) 2026 anomalib-fewshot contributors
# SPDX-License-Identifier: Apache-2.0

"""ImageStatistic: a control that scores images with one summary statistic."""

from .lightning_model import ImageStatistic

__all__ = ["ImageStatistic"]
