# Copyright (C) 2026 anomalib-fewshot contributors
# SPDX-License-Identifier: Apache-2.0

"""Thresholds from normal images alone."""

from .support_post_processor import SupportPostProcessor

__all__ = ["SupportPostProcessor"]
