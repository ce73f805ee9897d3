# Copyright (C) 2026 anomalib-fewshot contributors
# SPDX-License-Identifier: Apache-2.0

"""Two-dimensional plots of image embeddings: support set, normal and anomalous test images."""

from anomalib_fewshot._extras import extra_required

from .features import POOLINGS, embed, has_features, patch_features
from .image_embeddings import ImageEmbeddings, embed_images, separation

with extra_required("benchmark", "`anomalib_fewshot.visualization`"):
    from .plots import PROJECTIONS, draw, draw_one, project, write_page

__all__ = [
    "POOLINGS",
    "PROJECTIONS",
    "ImageEmbeddings",
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
