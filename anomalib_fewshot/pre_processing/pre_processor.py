# Copyright (C) 2026 anomalib-fewshot contributors
# SPDX-License-Identifier: Apache-2.0

"""Pre-processor of one resize, exported or not."""

from typing import Any

import torch
from anomalib.pre_processing import PreProcessor
from anomalib.pre_processing.utils.transform import get_exportable_transform
from torchvision.transforms.v2 import Compose, InterpolationMode, Resize, Transform

from .pixel_check import check_pixels
from .resize import ExportableResize

BILINEAR = (
    InterpolationMode.BILINEAR,
    "bilinear",
    2,
)  # what torchvision takes, of which its versions keep one or other


class ExportablePreProcessor(PreProcessor):
    """anomalib's pre-processor, which an exported model keeps its antialiasing with.

    anomalib exports a resize without it, so that a photo has another score after the export. A resize that is not
    bilinear, or to one side alone, is exported as anomalib does. Checkpoints are those of anomalib.

    Images with a NaN, or with values outside 0 to 1, are refused. An exported graph cannot refuse an image: there, a
    NaN gives the score NaN and the label True.

    Args:
        transform (Transform | None): Transform of the images. Defaults to ``None``.
    """

    def __init__(self, transform: Transform | None = None) -> None:
        super().__init__(transform)
        self.export_transform = _exportable(transform)

    def forward(self, batch: torch.Tensor) -> torch.Tensor:
        """Transform images, shape ``(B, 3, H, W)``, as the exported model does.

        Raises:
            DataValidationError: If a value is NaN or outside 0 to 1. Not in an exported graph.
        """
        if not (torch.compiler.is_compiling() or torch.compiler.is_exporting() or torch.jit.is_tracing()):
            check_pixels(batch)
        return super().forward(batch)

    def load_checkpoint_config(self, config: dict[str, Any]) -> None:
        """Restore the transform."""
        super().load_checkpoint_config(config)
        self.export_transform = _exportable(self.transform)


def steps_of(transform: Transform | None) -> list[Transform]:
    """Return the single transforms of a transform in their order, also those of nested compositions."""
    if transform is None:
        return []
    if not isinstance(transform, Compose):
        return [transform]
    steps = []
    for step in transform.transforms:
        steps += steps_of(step)
    return steps


def _exportable(transform: Transform | None) -> Transform | None:
    """Return a transform that is equal when it is exported, as far as there is one."""
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
