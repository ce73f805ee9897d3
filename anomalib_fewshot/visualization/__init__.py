# Copyright (C) 2026 anomalib-fewshot contributors
# SPDX-License-Identifier: Apache-2.0

"""Features that can be seen: normal and anomalous images on a plane, before and after a training."""

from .embeddings import embed, patch_features
from .features import Embedded, compare_features, separation
from .pictures import draw, project, write_page

__all__ = ["Embedded", "compare_features", "draw", "embed", "patch_features", "project", "separation", "write_page"]
