# Copyright (C) 2026 anomalib-fewshot contributors
# SPDX-License-Identifier: Apache-2.0

"""Callbacks for models of anomalib and others."""

from .adversarial import AdversarialCallback
from .evaluation_check import EvaluationCheck
from .predict_check import PredictCheck

__all__ = ["AdversarialCallback", "EvaluationCheck", "PredictCheck"]
