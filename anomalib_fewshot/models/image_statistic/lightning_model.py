# Copyright (C) 2026 anomalib-fewshot contributors
# SPDX-License-Identifier: Apache-2.0

"""ImageStatistic: one number of an image, as a control for what a data set gives away without being understood."""

from typing import Any

import torch
from anomalib.data import Batch, InferenceBatch
from anomalib.metrics import AUROC, Evaluator, F1Score
from anomalib.models.components import AnomalibModule
from anomalib.post_processing import PostProcessor
from anomalib.pre_processing import PreProcessor
from anomalib.visualization import Visualizer
from lightning.pytorch.utilities.types import STEP_OUTPUT
from torch import nn
from torchvision.transforms.v2 import Resize

from anomalib_fewshot.errors import ArgumentError
from anomalib_fewshot.metrics import CategoryEvaluator
from anomalib_fewshot.models.components import FittedMixin
from anomalib_fewshot.post_processing import CalibrationScheme, CalibrationScores
from anomalib_fewshot.pre_processing import ExportablePreProcessor

from .torch_model import ImageStatisticModel


class ImageStatistic(FittedMixin, AnomalibModule):
    """Score an image by the distance of one number of it from its mean over the support.

    What this control solves needs no model. It has no anomaly map.

    Args:
        statistic (str): Of the grey values, which are the mean of the channels: their ``"mean"``; their ``"std"``,
            the standard deviation; or ``"border"``, the mean of a strip along the border, 1/16 of the shorter side
            wide. Defaults to ``"mean"``.
        image_size (int | tuple[int, int]): Size that images are resized to. Defaults to ``224``.
        pre_processor (nn.Module | bool): Defaults to ``True``: resize, and do not normalize.
        post_processor (PostProcessor | bool): Defaults to ``True``.
        evaluator (Evaluator | bool): Defaults to ``True``: the metrics of images, not those of pixels.
        visualizer (Visualizer | bool): Defaults to ``True``.

    Raises:
        ArgumentError: If there is no such statistic, or ``image_size`` is below 16.
    """

    score_arguments = ("statistic", "image_size")

    def __init__(
        self,
        statistic: str = "mean",
        image_size: int | tuple[int, int] = 224,
        pre_processor: nn.Module | bool = True,
        post_processor: PostProcessor | bool = True,
        evaluator: Evaluator | bool = True,
        visualizer: Visualizer | bool = True,
    ) -> None:
        height, width = (image_size, image_size) if isinstance(image_size, int) else image_size
        if min(height, width) < 16:
            msg = f"`image_size` must be at least 16, got {image_size}."
            raise ArgumentError(msg)
        super().__init__(
            pre_processor=self.configure_pre_processor((height, width)) if pre_processor is True else pre_processor,
            post_processor=post_processor,
            evaluator=evaluator,
            visualizer=visualizer,
        )
        self.model = ImageStatisticModel(statistic)

    @staticmethod
    def configure_pre_processor(image_size: tuple[int, int] | None = None) -> PreProcessor:
        """Return the pre-processor, which resizes."""
        return ExportablePreProcessor(Resize(image_size or (224, 224), antialias=True))

    @staticmethod
    def configure_evaluator() -> CategoryEvaluator:
        """Return the metrics of images."""
        return CategoryEvaluator(
            test_metrics=[
                AUROC(fields=["pred_score", "gt_label"], prefix="image_"),
                F1Score(fields=["pred_label", "gt_label"], prefix="image_"),
            ],
        )

    def configure_optimizers(self) -> None:
        """Return nothing: there is nothing to optimise."""

    def training_step(self, batch: Batch, batch_idx: int) -> STEP_OUTPUT:
        """Return a loss that changes nothing."""
        del batch, batch_idx
        return self.zero_loss()

    def fit(self) -> CalibrationScores:
        """Fit the mean to the support.

        Returns:
            CalibrationScores: Scores of each image by the mean of the others.
        """
        held_out = self.model.fit(torch.cat([self.model.values(images) for images in self.support()]))
        return CalibrationScores(
            CalibrationScheme.LEAVE_ONE_OUT if len(held_out) > 1 else CalibrationScheme.SELF_VIEWS,
            [InferenceBatch(pred_score=held_out)],
        )

    @property
    def trainer_arguments(self) -> dict[str, Any]:
        """An epoch that changes nothing, and a validation at its end."""
        return {
            "max_epochs": 1,
            "val_check_interval": 1.0,
            "check_val_every_n_epoch": 1,
            "num_sanity_val_steps": 0,
            "devices": 1,
        }
