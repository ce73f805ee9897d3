# Copyright (C) 2026 anomalib-fewshot contributors
# SPDX-License-Identifier: Apache-2.0

"""PlainStatistic: one number of an image, as a control for what a data set gives away without being understood."""

from typing import Any

from anomalib import LearningType
from anomalib.data import Batch
from anomalib.metrics import AUROC, Evaluator, F1Score
from anomalib.models.components import AnomalibModule
from anomalib.post_processing import PostProcessor
from anomalib.pre_processing import PreProcessor
from anomalib.visualization import Visualizer
from lightning.pytorch.utilities.types import STEP_OUTPUT
from torch import nn
from torchvision.transforms.v2 import Resize

from .torch_model import PlainStatisticModel


class PlainStatistic(AnomalibModule):
    """Score an image by how far one number of it is from the mean of that number over the good pictures.

    What this control tells apart needs no model. It learns nothing else and has no anomaly map.

    Args:
        statistic (str): Of the grey values, which are the mean of the channels: their ``"mean"``; their ``"spread"``,
            the standard deviation; or ``"border"``, the mean of a strip along the border, 1/16 of the shorter side
            wide. Defaults to ``"mean"``.
        image_size (int | tuple[int, int]): Size that images are resized to. Defaults to ``224``.
        pre_processor (nn.Module | bool): Defaults to ``True``: resize, and do not normalise.
        post_processor (PostProcessor | bool): Defaults to ``True``.
        evaluator (Evaluator | bool): Defaults to ``True``: the metrics of images, not those of pixels.
        visualizer (Visualizer | bool): Defaults to ``True``.

    Raises:
        ValueError: If there is no such statistic, or ``image_size`` is below 16.
    """

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
            raise ValueError(msg)
        super().__init__(
            pre_processor=self.configure_pre_processor((height, width)) if pre_processor is True else pre_processor,
            post_processor=post_processor,
            evaluator=evaluator,
            visualizer=visualizer,
        )
        self.model = PlainStatisticModel(statistic)

    @staticmethod
    def configure_pre_processor(image_size: tuple[int, int] | None = None) -> PreProcessor:
        """Return the pre-processor, which resizes."""
        return PreProcessor(Resize(image_size or (224, 224), antialias=True))

    @staticmethod
    def configure_evaluator() -> Evaluator:
        """Return the metrics of images."""
        return Evaluator(
            test_metrics=[
                AUROC(fields=["pred_score", "gt_label"], prefix="image_"),
                F1Score(fields=["pred_label", "gt_label"], prefix="image_"),
            ],
        )

    def configure_optimizers(self) -> None:
        """Return nothing: there is nothing to optimise."""

    def on_train_start(self) -> None:
        """Forget the images of an earlier fit."""
        self.model.reset()

    def training_step(self, batch: Batch, batch_idx: int) -> None:
        """Take the images into the mean."""
        del batch_idx
        self.model.collect(batch.image)

    def validation_step(self, batch: Batch, batch_idx: int) -> STEP_OUTPUT:
        """Score a batch."""
        del batch_idx
        return batch.update(**self.model(batch.image)._asdict())

    def on_validation_start(self) -> None:
        """Refuse to score without training images."""
        if self.model.count == 0:
            msg = "PlainStatistic must be trained before it scores. Train it, or give a checkpoint: `ckpt_path`."
            raise RuntimeError(msg)

    on_test_start = on_predict_start = on_validation_start

    @property
    def trainer_arguments(self) -> dict[str, Any]:
        """One epoch, on one device."""
        return {"max_epochs": 1, "num_sanity_val_steps": 0, "log_every_n_steps": 1, "devices": 1}

    @property
    def learning_type(self) -> LearningType:
        """One class: anomalib's engine does not train models that say they are few-shot."""
        return LearningType.ONE_CLASS
