# Copyright (C) 2026 anomalib-fewshot contributors
# SPDX-License-Identifier: Apache-2.0

"""Features that can be seen: normal and anomalous images on a plane, before and after a training."""

from anomalib_fewshot._extras import extra_required

from .embedded import Embedded, embed_images, separation
from .embeddings import POOLINGS, embed, has_features, patch_features

with extra_required("benchmark", "`anomalib_fewshot.visualization`"):
    from .pictures import PROJECTIONS, draw, draw_one, project, write_page

__all__ = [
    "POOLINGS",
    "PROJECTIONS",
    "Embedded",
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
