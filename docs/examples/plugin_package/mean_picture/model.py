# Copyright (C) 2026 anomalib-fewshot contributors
# SPDX-License-Identifier: Apache-2.0

"""The Lightning model: its life is that of all models here, see `FittedMixin`."""

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

from .torch_model import MeanPictureModel


class MeanPicture(FittedMixin, AnomalibModule):
    """Score a pixel by its distance from the mean of the good pictures, which must lie alike.

    Args:
        image_size (int): Size that images are resized to. Defaults to ``64``.
        visualizer (bool): Whether heat maps are written. Defaults to ``True``.
    """

    score_arguments = ("image_size",)  # a checkpoint of another size is refused

    def __init__(self, image_size: int = 64, visualizer: bool = True) -> None:
        super().__init__(pre_processor=self.configure_pre_processor((image_size, image_size)), visualizer=visualizer)
        self.model = MeanPictureModel(image_size)

    @staticmethod
    def configure_pre_processor(image_size: tuple[int, int] | None = None) -> PreProcessor:
        """Return the pre-processor, which is exported with the model."""
        return ExportablePreProcessor(Resize(image_size or (64, 64), antialias=True))

    def training_step(self, batch: Batch, batch_idx: int) -> STEP_OUTPUT:
        """Return a loss that changes nothing: all is done by the fit."""
        del batch, batch_idx
        return self.zero_loss()

    def fit(self) -> CalibrationScores:
        """Fit the mean to the support.

        Returns:
            CalibrationScores: Scores of each image by the mean of the others; of a single one by itself.
        """
        images = torch.cat(list(self.support()))  # (K, 3, H, W)
        self.model.fit(images)
        if len(images) == 1:
            return CalibrationScores(CalibrationScheme.SELF_VIEWS, [self.model(images)])
        return CalibrationScores(
            CalibrationScheme.LEAVE_ONE_OUT,
            [self._held_out(images, index) for index in range(len(images))],
        )

    @property
    def trainer_arguments(self) -> dict[str, Any]:
        """One epoch, in which nothing is trained."""
        return {"max_epochs": 1, "num_sanity_val_steps": 0, "devices": 1}

    def _held_out(self, images: torch.Tensor, index: int) -> InferenceBatch:
        others = MeanPictureModel(images.shape[-1]).to(images.device)
        others.fit(torch.cat([images[:index], images[index + 1 :]]))
        return others(images[index : index + 1])
