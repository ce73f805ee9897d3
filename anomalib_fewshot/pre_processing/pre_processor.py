# Copyright (C) 2026 anomalib-fewshot contributors
# SPDX-License-Identifier: Apache-2.0

"""Pre-processor whose resize is equal in PyTorch and in exported models."""

from typing import Any

import torch
from anomalib.pre_processing import PreProcessor
from anomalib.pre_processing.utils.transform import get_exportable_transform
from torchvision.transforms.v2 import Compose, InterpolationMode, Resize, Transform

from .pixel_check import check_pixels
from .resize import ExportableResize

BILINEAR = (InterpolationMode.BILINEAR, "bilinear", 2)  # torchvision accepts all three


class ExportablePreProcessor(PreProcessor):
    """anomalib's pre-processor, with an antialiased resize in exported models.

    anomalib exports a resize without antialiasing, which changes the scores. This class exports bilinear resizes to a
    height and width with antialiasing. Other resizes are exported like in anomalib. Checkpoints have anomalib's format.

    Images with NaN or values outside 0 to 1 raise an error. An exported graph cannot raise errors: there, NaN results
    in the score NaN and the label True.

    Args:
        transform (Transform | None): Transform of the images. Defaults to ``None``.
    """

    def __init__(self, transform: Transform | None = None) -> None:
        super().__init__(transform)
        self.export_transform = _exportable(transform)

    def forward(self, batch: torch.Tensor) -> torch.Tensor:
        """Return the transformed images, shape ``(B, 3, H, W)``.

        Raises:
            DataValidationError: If a value is NaN or outside 0 to 1, except in an exported graph.
        """
        if not (torch.compiler.is_compiling() or torch.compiler.is_exporting() or torch.jit.is_tracing()):
            check_pixels(batch)
        return super().forward(batch)

    def load_checkpoint_config(self, config: dict[str, Any]) -> None:
        """Restore the transform of a checkpoint."""
        super().load_checkpoint_config(config)
        self.export_transform = _exportable(self.transform)


def steps_of(transform: Transform | None) -> list[Transform]:
    """Return the single transforms of a transform in order, including nested ``Compose`` transforms."""
    if transform is None:
        return []
    if not isinstance(transform, Compose):
        return [transform]
    steps = []
    for step in transform.transforms:
        steps += steps_of(step)
    return steps


def _exportable(transform: Transform | None) -> Transform | None:
    """Return an exportable version of a transform, equal to it if possible."""
    if isinstance(transform, Compose):
        return Compose([_exportable(step) for step in transform.transforms])
    if (
        isinstance(transform, Resize)
        and transform.antialias
        and transform.interpolation in BILINEAR
        and len(transform.size or ()) == 2
    ):
        return ExportableResize(tuple(transform.size))
    return get_exportable_transform(transform)
