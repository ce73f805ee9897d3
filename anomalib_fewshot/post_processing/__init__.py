# Copyright (C) 2026 anomalib-fewshot contributors
# SPDX-License-Identifier: Apache-2.0

"""Post-processors: what becomes of raw scores and maps."""

from .rule import Rule
from .support_post_processor import UNKNOWN, VERDICTS, NormalScores, SupportPostProcessor

__all__ = ["UNKNOWN", "VERDICTS", "NormalScores", "Rule", "SupportPostProcessor"]
