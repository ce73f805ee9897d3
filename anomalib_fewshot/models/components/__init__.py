# Copyright (C) 2026 anomalib-fewshot contributors
# SPDX-License-Identifier: Apache-2.0

"""What two models share, and nothing else."""

from .backbone import Backbone, normalization
from .gaussian import Gaussian, Moments
from .step_progress import StepProgress
from .support_augmentation import SupportAugmentation, cut_paste

__all__ = ["Backbone", "Gaussian", "Moments", "StepProgress", "SupportAugmentation", "cut_paste", "normalization"]
