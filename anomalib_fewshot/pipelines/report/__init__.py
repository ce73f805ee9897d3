# Copyright (C) 2026 anomalib-fewshot contributors
# SPDX-License-Identifier: Apache-2.0

"""Report of a few-shot benchmark."""

from .report import write_report

__all__ = ["write_report"]
