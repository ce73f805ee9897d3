# Copyright (C) 2026 anomalib-fewshot contributors
# SPDX-License-Identifier: Apache-2.0

"""What the models with a timm backbone share as Lightning modules."""

import logging
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from anomalib import LearningType
from anomalib.data import Batch, ImageBatch, InferenceBatch
from anomalib.metrics.threshold import F1AdaptiveThreshold
from anomalib.post_processing import PostProcessor
from anomalib.pre_processing import PreProcessor
from lightning.pytorch import LightningModule
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.utilities.types import STEP_OUTPUT
from torchvision.transforms.v2 import Compose, Normalize, Resize

from .backbone import PACKAGED_BACKBONE, normalization
from .moments import Moments

logger = logging.getLogger(__name__)

HEADROOM = {"image": 9, "pixel": 1}  # by how many of its widths the range of normal scores is raised


class BackboneMixin(LightningModule):
    """Part of an anomalib model whose ``backbone``, ``pre_trained`` and ``weights`` are arguments.

    Attributes:
        is_fitted (torch.Tensor | bool): Whether the model can score.
    """

    is_fitted: Any

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

    def on_test_start(self) -> None:
        """Refuse to score without a training."""
        self.check_fitted()

    def on_predict_start(self) -> None:
        """Refuse to score without a training."""
        self.check_fitted()

    def check_fitted(self) -> None:
        """Raise if the model cannot score.

        Raises:
            RuntimeError: If it was not trained.
        """
        if not self.is_fitted:
            name = type(self).__name__
            msg = f"{name} must be trained before it scores. Train it, or give a checkpoint of a finished training."
            raise RuntimeError(msg)

    def to_torch(self, *args: Any, **kwargs: Any) -> Path:  # noqa: ANN401
        """Export as anomalib does, but no model that cannot score."""
        self.check_fitted()
        return super().to_torch(*args, **kwargs)  # type: ignore[misc]

    def to_onnx(self, *args: Any, **kwargs: Any) -> Path:  # type: ignore[override]  # noqa: ANN401
        """Export as anomalib does, but no model that cannot score."""
        self.check_fitted()
        return super().to_onnx(*args, **kwargs)  # type: ignore[return-value]

    def preprocess(self, images: torch.Tensor) -> torch.Tensor:
        """Return images of a datamodule as the backbone takes them, on the model's device."""
        transform = getattr(self.pre_processor, "transform", None)
        images = images.to(self.device)
        return images if transform is None else transform(images)

    def no_loss(self) -> torch.Tensor:
        """Return a loss that changes nothing: on several devices Lightning needs one of all parameters."""
        return torch.stack([0 * parameter.sum() for parameter in self.parameters() if parameter.requires_grad]).sum()

    def sum_over_processes(self, moments: Moments) -> Moments:
        """Return the moments of what all processes have seen."""
        if self.trainer.world_size == 1:
            return moments
        return Moments(*(torch.as_tensor(self.all_gather(part)).sum(0) for part in moments))

    def fit_threshold(self, scored: Iterable[ImageBatch]) -> None:
        """Let anomalib's post-processor take threshold and range from scored batches, as from those of a validation.

        The range of normal scores alone is widened: anomalib cuts what is half of it above the threshold to 1.
        """
        if not isinstance(self.post_processor, PostProcessor):
            return
        has_anomalies = False
        for batch in scored:
            has_anomalies |= bool(torch.as_tensor(batch.gt_label).any())
            self.post_processor.on_validation_batch_end(self.trainer, self, batch)
        warner = logging.getLogger(F1AdaptiveThreshold.__module__)
        warner.disabled = True  # it says of normal images that they were used in validation
        try:
            self.post_processor.on_validation_epoch_end(self.trainer, self)
        finally:
            warner.disabled = False
        if not has_anomalies:
            for level, factor in HEADROOM.items():
                lowest, highest = (getattr(self.post_processor, f"{level}_{end}") for end in ("min", "max"))
                width = torch.where(highest > lowest, highest - lowest, highest.abs())  # of one score: the score
                highest += factor * width

    def keep_checkpoint(self) -> None:
        """Write a checkpoint where Lightning, which does so at a validation, has had none."""
        if isinstance(self.trainer.checkpoint_callback, ModelCheckpoint):
            path = self.trainer.checkpoint_callback.format_checkpoint_name({})
            self.trainer.save_checkpoint(path, weights_only=False)
            self.trainer.checkpoint_callback.best_model_path = path  # which a user asks the engine for

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Leave nothing to load from elsewhere: the checkpoint holds the backbone's weights."""
        super().on_save_checkpoint(checkpoint)
        checkpoint["hyper_parameters"] |= {"pre_trained": False, "weights": None}

    @property
    def learning_type(self) -> LearningType:
        """One class: anomalib's engine does not train models that say they are few-shot."""
        return LearningType.ONE_CLASS


def warn_of_single_image() -> None:
    """Warn of a threshold that was made from views of one image."""
    logger.warning(
        "The threshold is the highest score of views of a single picture: expect most new pictures above it. Give two "
        "pictures or more, or pictures to validate by.",
    )


def normal_batch(scores: InferenceBatch) -> ImageBatch:
    """Return scores of normal images as a validation has them: with labels and masks."""
    maps: Any = scores.anomaly_map  # (B, 1, H, W)
    normal = torch.zeros_like(maps[:, 0], dtype=torch.bool)
    images = maps.expand(-1, 3, -1, -1)  # which nothing looks at
    return ImageBatch(image=images, gt_label=normal[:, 0, 0], gt_mask=normal, **scores._asdict())
