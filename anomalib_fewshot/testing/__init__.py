# Copyright (C) 2026 anomalib-fewshot contributors
# SPDX-License-Identifier: Apache-2.0

"""Conformance checks for your own few-shot models."""

from .checks import CHECKS, EXPORTS, FewShotCheck, check_fewshot_model, fewshot_checks
from .trial import Trial

__all__ = ["CHECKS", "EXPORTS", "FewShotCheck", "Trial", "check_fewshot_model", "fewshot_checks"]
