# Copyright (C) 2026 anomalib-fewshot contributors
# SPDX-License-Identifier: Apache-2.0

"""RegAD: a registration network trained on other categories, and one Gaussian per position."""

from .lightning_model import RegAD

__all__ = ["RegAD"]
