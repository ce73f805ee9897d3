# Copyright (C) 2026 anomalib-fewshot contributors
# SPDX-License-Identifier: Apache-2.0

"""UniAD: a transformer that reconstructs frozen features of all categories and cannot copy its input."""

from .lightning_model import UniAD

__all__ = ["UniAD"]
