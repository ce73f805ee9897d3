# Copyright (C) 2026 anomalib-fewshot contributors
# SPDX-License-Identifier: Apache-2.0

"""Callbacks for models of anomalib and others."""

from .adversarial import AdversarialCallback
from .evaluation_check import EvaluationCheck
from .few_shot_run import FewShotRun
from .predict_check import PredictCheck
from .support_threshold import SupportThreshold

__all__ = ["AdversarialCallback", "EvaluationCheck", "FewShotRun", "PredictCheck", "SupportThreshold"]
