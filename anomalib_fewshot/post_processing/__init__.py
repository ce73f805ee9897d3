# Copyright (C) 2026 anomalib-fewshot contributors
# SPDX-License-Identifier: Apache-2.0

"""Post-processors: what becomes of raw scores and maps."""

from .rule import Rule
from .support_post_processor import VERDICTS, NormalScores, SupportPostProcessor

__all__ = ["VERDICTS", "NormalScores", "Rule", "SupportPostProcessor"]
