# Copyright (C) 2026 anomalib-fewshot contributors
# SPDX-License-Identifier: Apache-2.0

"""Features that can be seen: normal and anomalous images on a plane, before and after a training."""

from .embedded import Embedded, embed_images, separation
from .embeddings import embed, has_features, patch_features
from .features import compare_features
from .pictures import draw, draw_one, project, write_page

__all__ = [
    "Embedded",
    "compare_features",
    "draw",
    "draw_one",
    "embed",
    "embed_images",
    "has_features",
    "patch_features",
    "project",
    "separation",
    "write_page",
]
