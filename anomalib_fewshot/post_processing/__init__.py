# Copyright (C) 2026 anomalib-fewshot contributors
# SPDX-License-Identifier: Apache-2.0

"""Post-processors: what becomes of raw scores and maps."""

from .calibration_scheme import CalibrationScheme
from .support_post_processor import UNKNOWN, VERDICTS, CalibrationScores, SupportPostProcessor

__all__ = ["UNKNOWN", "VERDICTS", "CalibrationScores", "CalibrationScheme", "SupportPostProcessor"]
