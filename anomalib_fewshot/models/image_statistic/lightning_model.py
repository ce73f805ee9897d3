# Copyright (C) 2026 anomalib-fewshot contributors
# SPDX-License-Identifier: Apache-2.0

"""ImageStatistic: a control that scores images with one summary statistic.

It shows how much of a data set can be solved without a model.
"""

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
    """Control that compares one statistic of an image with its mean over the support set.

    The score is the absolute difference. A task that this control solves needs no detector. There is no anomaly map.

    Args:
        statistic (str): Statistic of the gray values, which are the mean of the channels. One of ``"mean"``; ``"std"``,
            the standard deviation; and ``"border"``, the mean of a border strip whose width is 1/16 of the shorter
            side. Defaults to ``"mean"``.
        image_size (int | tuple[int, int]): Size that images are resized to. Defaults to ``224``.
        pre_processor (nn.Module | bool): Pre-processor. Defaults to ``True``: resize without normalization.
        post_processor (PostProcessor | bool): Post-processor. Defaults to ``True``.
        evaluator (Evaluator | bool): Evaluator. Defaults to ``True``: image-level metrics only.
        visualizer (Visualizer | bool): Visualizer. Defaults to ``True``.

    Raises:
        ArgumentError: If ``statistic`` is unknown or ``image_size`` is below 16.
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
        self.model: ImageStatisticModel = ImageStatisticModel(statistic)

    @staticmethod
    def configure_pre_processor(image_size: tuple[int, int] | None = None) -> PreProcessor:
        """Return a pre-processor that only resizes."""
        return ExportablePreProcessor(Resize(image_size or (224, 224), antialias=True))

    @staticmethod
    def configure_evaluator() -> CategoryEvaluator:
        """Return image-level metrics."""
        return CategoryEvaluator(
            test_metrics=[
                AUROC(fields=["pred_score", "gt_label"], prefix="image_"),
                F1Score(fields=["pred_label", "gt_label"], prefix="image_"),
            ],
        )

    def configure_optimizers(self) -> None:
        """Return ``None``, because the model has no trainable parameters."""

    def training_step(self, batch: Batch, batch_idx: int) -> STEP_OUTPUT:
        """Return a zero loss."""
        del batch, batch_idx
        return self.zero_loss()

    def fit(self) -> CalibrationScores:
        """Fit the mean to the support set.

        Returns:
            CalibrationScores: Leave-one-out scores of the support set.
        """
        values = torch.cat([self.model.values(images) for images in self.support()])
        scores = self.model.fit(values)
        return CalibrationScores(
            CalibrationScheme.LEAVE_ONE_OUT if len(scores) > 1 else CalibrationScheme.SELF_VIEWS,
            [InferenceBatch(pred_score=scores)],
        )

    @property
    def trainer_arguments(self) -> dict[str, Any]:
        """Trainer arguments for one epoch with a validation at its end."""
        return {
            "max_epochs": 1,
            "val_check_interval": 1.0,
            "check_val_every_n_epoch": 1,
            "num_sanity_val_steps": 0,
            "devices": 1,
        }
