# Copyright (C) 2026 anomalib-fewshot contributors
# SPDX-License-Identifier: Apache-2.0

"""Pre-processing that is the same in training, in a prediction and in an exported model."""

from .pre_processor import ExportablePreProcessor
from .resize import ExportableResize

__all__ = ["ExportablePreProcessor", "ExportableResize"]
