# Copyright (C) 2026 anomalib-fewshot contributors
# SPDX-License-Identifier: Apache-2.0

"""UniAD: a transformer that reconstructs frozen features of all categories without being able to copy them."""

from .lightning_model import UniAD

__all__ = ["UniAD"]
