# Copyright (C) 2026 anomalib-fewshot contributors
# SPDX-License-Identifier: Apache-2.0

"""What the models with a timm backbone share as Lightning modules."""

from typing import Any

import torch
from anomalib import LearningType
from anomalib.data import Batch, ImageBatch
from anomalib.pre_processing import PreProcessor
from lightning.pytorch import LightningModule
from lightning.pytorch.utilities.types import STEP_OUTPUT
from torchvision.transforms.v2 import Compose, Normalize, Resize

from .backbone import PACKAGED_BACKBONE, normalization


class BackboneMixin(LightningModule):
    """Part of an anomalib model whose ``backbone``, ``pre_trained`` and ``weights`` are arguments."""

    @staticmethod
    def configure_pre_processor(
        image_size: tuple[int, int] | None = None,
        backbone: str = PACKAGED_BACKBONE,
    ) -> PreProcessor:
        """Return the pre-processor: resize, and normalise as the backbone's weights ask."""
        mean, std = normalization(backbone)
        return PreProcessor(Compose([Resize(image_size or (224, 224), antialias=True), Normalize(mean, std)]))

    def validation_step(self, batch: Batch, batch_idx: int) -> STEP_OUTPUT:
        """Score a batch."""
        del batch_idx
        return batch.update(**self.model(batch.image)._asdict())

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Leave nothing to load from elsewhere: the checkpoint holds the backbone's weights."""
        super().on_save_checkpoint(checkpoint)
        checkpoint["hyper_parameters"] |= {"pre_trained": False, "weights": None}

    @property
    def learning_type(self) -> LearningType:
        """One class: anomalib's engine does not train models that say they are few-shot."""
        return LearningType.ONE_CLASS


def normal_batch(images: torch.Tensor) -> ImageBatch:
    """Return normal images, shape ``(B, C, H, W)``, as a validation has them: with labels and masks."""
    labels, masks = torch.zeros_like(images[:, 0, 0, 0]), torch.zeros_like(images[:, 0])
    return ImageBatch(image=images, gt_label=labels.bool(), gt_mask=masks.bool())
