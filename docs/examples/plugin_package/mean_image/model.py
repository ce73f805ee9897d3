# Copyright (C) 2026 anomalib-fewshot contributors
# SPDX-License-Identifier: Apache-2.0

"""Lightning model. `FittedMixin` documents its life cycle."""

from typing import Any

import torch
from anomalib.data import Batch, InferenceBatch
from anomalib.models.components import AnomalibModule
from anomalib.pre_processing import PreProcessor
from lightning.pytorch.utilities.types import STEP_OUTPUT
from torchvision.transforms.v2 import Resize

from anomalib_fewshot import ExportablePreProcessor
from anomalib_fewshot.models.components import FittedMixin
from anomalib_fewshot.post_processing import CalibrationScheme, CalibrationScores

from .torch_model import MeanImageModel


class MeanImage(FittedMixin, AnomalibModule):
    """Score each pixel with its distance from the mean of the support set. Images must be aligned.

    Args:
        image_size (int): Height and width to which images are resized. Defaults to ``64``.
        visualizer (bool): Write heat maps. Defaults to ``True``.
    """

    score_arguments = ("image_size",)  # loading a checkpoint with another size raises an error

    def __init__(self, image_size: int = 64, visualizer: bool = True) -> None:
        super().__init__(pre_processor=self.configure_pre_processor((image_size, image_size)), visualizer=visualizer)
        self.model = MeanImageModel(image_size)

    @staticmethod
    def configure_pre_processor(image_size: tuple[int, int] | None = None) -> PreProcessor:
        """Return the pre-processor. It is exported with the model."""
        return ExportablePreProcessor(Resize(image_size or (64, 64), antialias=True))

    def training_step(self, batch: Batch, batch_idx: int) -> STEP_OUTPUT:
        """Return a zero loss, because `fit` computes the mean."""
        del batch, batch_idx
        return self.zero_loss()

    def fit(self) -> CalibrationScores:
        """Fit the mean to the support set.

        Returns:
            CalibrationScores: Leave-one-out scores. A single image is scored with its own mean.
        """
        images = torch.cat(list(self.support()))  # (K, 3, H, W)
        self.model.fit(images)
        if len(images) == 1:
            return CalibrationScores(CalibrationScheme.SELF_VIEWS, [self.model(images)])
        return CalibrationScores(
            CalibrationScheme.LEAVE_ONE_OUT,
            [self._leave_one_out(images, index) for index in range(len(images))],
        )

    @property
    def trainer_arguments(self) -> dict[str, Any]:
        """Arguments for one epoch without training."""
        return {"max_epochs": 1, "num_sanity_val_steps": 0, "devices": 1}

    def _leave_one_out(self, images: torch.Tensor, index: int) -> InferenceBatch:
        """Score one image with a model fitted to the others."""
        model = MeanImageModel(images.shape[-1]).to(images.device)
        model.fit(torch.cat([images[:index], images[index + 1 :]]))
        return model(images[index : index + 1])
