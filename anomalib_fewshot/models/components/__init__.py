# Copyright (C) 2026 anomalib-fewshot contributors
# SPDX-License-Identifier: Apache-2.0

"""Building blocks of the models."""

from .adversarial import ADVERSARIAL_RAMP, AdversarialStep, Discriminator, DiscriminatorStats
from .anomaly_synthesis import synthesize_anomalies
from .backbone import Backbone
from .backbone_mixin import BackboneMixin
from .checks import check_at_least, height_and_width
from .collapse import std_of_l2_normalized
from .feature_length import divide_by_length
from .fitted import FittedMixin
from .gaussian import lower_triangle, oas_covariance, symmetric_whitening
from .moments import Moments, in_double_precision
from .nearest import coreset, nearest_distances
from .ranked_score import RankedScore
from .scoring import ScoringMixin, parts_of
from .seeding import isolated_seed, seeded, seeded_generator
from .smooth_upsampling import SmoothUpsampling
from .stages import backbone_stages
from .step_progress import StepProgress, StepReport, step_progress
from .support_augmentation import (
    NUM_FIXED_VIEWS,
    SupportAugmentation,
    cut_paste,
    fixed_views,
    rotated_views,
    symmetry,
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
    "coreset",
    "cut_paste",
    "divide_by_length",
    "fixed_views",
    "height_and_width",
    "isolated_seed",
    "in_double_precision",
    "lower_triangle",
    "nearest_distances",
    "normalization",
    "normalization_of",
    "oas_covariance",
    "parts_of",
    "rotated_views",
    "seeded",
    "seeded_generator",
    "step_progress",
    "std_of_l2_normalized",
    "symmetric_whitening",
    "symmetry",
    "synthesize_anomalies",
]
