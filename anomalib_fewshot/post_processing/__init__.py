# Copyright (C) 2026 anomalib-fewshot contributors
# SPDX-License-Identifier: Apache-2.0

"""Post-processing: decision thresholds and normalization of scores and anomaly maps."""

from .calibration_scheme import CalibrationScheme
from .support_post_processor import UNKNOWN, VERDICTS, CalibrationScores, SupportPostProcessor

__all__ = ["UNKNOWN", "VERDICTS", "CalibrationScores", "CalibrationScheme", "SupportPostProcessor"]
