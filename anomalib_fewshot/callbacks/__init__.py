# Copyright (C) 2026 anomalib-fewshot contributors
# SPDX-License-Identifier: Apache-2.0

"""Callbacks for models of this package, anomalib and others."""

from lightning.pytorch import Callback

from .adversarial import AdversarialCallback
from .evaluation_check import EvaluationCheck
from .few_shot_run import FewShotRun
from .predict_check import PredictCheck
from .rotated_references import RotatedReferences
from .support_threshold import SupportThreshold


def run_callbacks() -> list[Callback]:
    """Return the callbacks of a run with a model or a data module of this package."""
    return [SupportThreshold(), FewShotRun(), EvaluationCheck(), PredictCheck()]


__all__ = [
    "AdversarialCallback",
    "EvaluationCheck",
    "FewShotRun",
    "PredictCheck",
    "RotatedReferences",
    "SupportThreshold",
    "run_callbacks",
]
