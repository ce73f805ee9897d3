# Copyright (C) 2026 anomalib-fewshot contributors
# SPDX-License-Identifier: Apache-2.0

"""What two models share, and nothing else."""

from .adversarial import ADVERSARIAL_RAMP, AdversarialHealth, AdversarialLoss, Discriminator
from .backbone import Backbone, backbone_stages, height_and_width, normalization, normalization_of
from .backbone_mixin import BackboneMixin, normal_batch, warn_of_single_image
from .collapse import spread
from .moments import Moments, in_double_precision
from .seeding import seeded, seeded_generator
from .smooth_upsampling import upsample_smoothly
from .support_augmentation import NUM_FIXED_VIEWS, SupportAugmentation, cut_paste, fixed_views

__all__ = [
    "ADVERSARIAL_RAMP",
    "NUM_FIXED_VIEWS",
    "AdversarialHealth",
    "AdversarialLoss",
    "Backbone",
    "BackboneMixin",
    "Discriminator",
    "Moments",
    "SupportAugmentation",
    "backbone_stages",
    "cut_paste",
    "fixed_views",
    "height_and_width",
    "in_double_precision",
    "normal_batch",
    "normalization",
    "normalization_of",
    "seeded",
    "seeded_generator",
    "spread",
    "upsample_smoothly",
    "warn_of_single_image",
]
