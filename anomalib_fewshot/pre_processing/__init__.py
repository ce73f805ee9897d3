# Copyright (C) 2026 anomalib-fewshot contributors
# SPDX-License-Identifier: Apache-2.0

"""Pre-processing that is equal in training, prediction and exported models."""

from .pixel_check import check_pixels
from .pre_processor import ExportablePreProcessor, steps_of
from .resize import ExportableResize

__all__ = ["ExportablePreProcessor", "ExportableResize", "check_pixels", "steps_of"]
