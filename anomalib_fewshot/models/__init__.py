# Copyright (C) 2026 anomalib-fewshot contributors
# SPDX-License-Identifier: Apache-2.0

"""Few-shot anomaly detection models."""

import anomalib.models  # noqa: F401  must be first: it registers the plug-ins, which import the modules below

from .coft_ad import CoftAD
from .image_statistic import ImageStatistic
from .reg_ad import RegAD
from .uni_ad import UniAD

__all__ = ["CoftAD", "ImageStatistic", "RegAD", "UniAD"]
