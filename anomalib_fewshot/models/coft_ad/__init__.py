# Copyright (C) 2026 anomalib-fewshot contributors
# SPDX-License-Identifier: Apache-2.0

"""CoftAD: contrastive fine-tuning of a pretrained backbone on a few normal images."""

from .lightning_model import CoftAD

__all__ = ["CoftAD"]
