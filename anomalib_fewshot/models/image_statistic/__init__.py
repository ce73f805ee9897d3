# Copyright (C) 2026 anomalib-fewshot contributors
# SPDX-License-Identifier: Apache-2.0

"""ImageStatistic: one number of an image, as a control."""

from .lightning_model import ImageStatistic

__all__ = ["ImageStatistic"]
