# Copyright (C) 2026 anomalib-fewshot contributors
# SPDX-License-Identifier: Apache-2.0

"""What two models share, and nothing else."""

from .adversarial import ADVERSARIAL_RAMP, AdversarialStep, Discriminator, DiscriminatorStats
from .backbone import Backbone
from .backbone_mixin import BackboneMixin
from .checks import check_at_least, height_and_width
from .collapse import std_of_l2_normalized
from .feature_length import divide_by_length
from .fitted import FittedMixin
from .moments import Moments, in_double_precision
from .ranked_score import RankedScore
from .scoring import ScoringMixin, parts_of
from .seeding import isolated_seed, seeded, seeded_generator
from .smooth_upsampling import SmoothUpsampling, upsample_smoothly
from .stages import backbone_stages
from .step_progress import StepProgress, StepReport, show_steps
from .support_augmentation import (
    NUM_FIXED_VIEWS,
    SupportAugmentation,
    cut_paste,
    fixed_views,
    symmetry,
    turned_views,
)
from .weights import normalization, normalization_of

__all__ = [
    "ADVERSARIAL_RAMP",
    "NUM_FIXED_VIEWS",
    "AdversarialStep",
    "Backbone",
    "BackboneMixin",
    "Discriminator",
    "DiscriminatorStats",
    "FittedMixin",
    "Moments",
    "RankedScore",
    "ScoringMixin",
    "SmoothUpsampling",
    "StepProgress",
    "StepReport",
    "SupportAugmentation",
    "backbone_stages",
    "check_at_least",
    "cut_paste",
    "divide_by_length",
    "fixed_views",
    "height_and_width",
    "isolated_seed",
    "in_double_precision",
    "normalization",
    "normalization_of",
    "parts_of",
    "seeded",
    "seeded_generator",
    "show_steps",
    "std_of_l2_normalized",
    "symmetry",
    "turned_views",
    "upsample_smoothly",
]
