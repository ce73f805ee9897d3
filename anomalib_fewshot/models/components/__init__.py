# Copyright (C) 2026 anomalib-fewshot contributors
# SPDX-License-Identifier: Apache-2.0

"""Components shared by the models."""

from .adversarial import ADVERSARIAL_RAMP, AdversarialStep, Discriminator, DiscriminatorStats
from .anomaly_synthesis import synthesize_anomalies
from .backbone import Backbone
from .backbone_mixin import BackboneMixin
from .checks import check_at_least, height_and_width
from .collapse import std_of_l2_normalized
from .feature_norm import scale_by_norm
from .fitted import FittedMixin
from .gaussian import lower_triangle, oas_covariance, symmetric_whitening
from .image_size import AutoSizePreProcessor, choose_image_size
from .moments import Moments, in_double_precision
from .nearest import coreset, nearest_distances
from .ranked_score import RankedScore
from .scoring import ScoringMixin, micro_batches
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
    "AutoSizePreProcessor",
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
    "choose_image_size",
    "coreset",
    "cut_paste",
    "scale_by_norm",
    "fixed_views",
    "height_and_width",
    "isolated_seed",
    "in_double_precision",
    "lower_triangle",
    "nearest_distances",
    "normalization",
    "normalization_of",
    "oas_covariance",
    "micro_batches",
    "rotated_views",
    "seeded",
    "seeded_generator",
    "step_progress",
    "std_of_l2_normalized",
    "symmetric_whitening",
    "symmetry",
    "synthesize_anomalies",
]
