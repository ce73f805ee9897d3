# Copyright (C) 2026 anomalib-fewshot contributors
# SPDX-License-Identifier: Apache-2.0

"""Pre-processing as a backbone's weights ask."""

from anomalib.pre_processing import PreProcessor
from torchvision.transforms.v2 import Compose, Normalize, Resize

from anomalib_fewshot.pre_processing import ExportablePreProcessor

from .weights import PACKAGED_BACKBONE, normalization


class BackboneMixin:
    """Part of an anomalib model with a timm backbone: its images are normalized as the backbone's weights ask."""

    @staticmethod
    def configure_pre_processor(
        image_size: tuple[int, int] | None = None,
        backbone: str = PACKAGED_BACKBONE,
    ) -> PreProcessor:
        """Return the pre-processor: resize, and normalize as the backbone's weights ask."""
        mean, std = normalization(backbone)
        resize = Resize(image_size or (224, 224), antialias=True)
        return ExportablePreProcessor(Compose([resize, Normalize(mean, std)]))
