# Copyright (C) 2026 anomalib-fewshot contributors
# SPDX-License-Identifier: Apache-2.0

"""CoftAD: contrastive fine-tuning of a pretrained backbone on a few normal images.

Paper: https://arxiv.org/abs/2402.18998 (IEEE TIP 33, 2024). There is no public code: this follows the published
description, and settings that the description does not give are this package's.
"""

import logging
from collections.abc import Iterator, Sequence
from functools import reduce
from typing import Any

import torch
from anomalib import LearningType
from anomalib.data import Batch, ImageBatch
from anomalib.metrics import Evaluator
from anomalib.models.components import AnomalibModule
from anomalib.post_processing import PostProcessor
from anomalib.pre_processing import PreProcessor
from anomalib.visualization import Visualizer
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities.types import STEP_OUTPUT
from torch import nn
from torch.nn import functional as F  # noqa: N812
from torchvision.transforms.v2 import Compose, Normalize, Resize

from anomalib_fewshot.models.components import (
    Moments,
    StepProgress,
    SupportAugmentation,
    cut_paste,
    normalization,
)

from .loss import CoftADLoss
from .torch_model import CoftADModel

logger = logging.getLogger(__name__)

MAX_FOLDS = 8  # densities that a threshold without validation images takes


class CoftAD(AnomalibModule):
    """Contrastive fine-tuning on a few normal images, then a Gaussian of their embeddings.

    The loss draws two views of an image together and, weighted by ``positive_weight``, views of different images
    (cross-instance positive pairs). Weighted by ``negative_weight``, which is 0 by default, it pushes an image away
    from an anomaly made of it. Then the density is fitted to augmented views, and a Mahalanobis distance is the score.

    Args:
        backbone (str): Name of a timm model, convolutional or ViT. Defaults to ``"tf_efficientnet_lite0"``, whose
            weights come with this package.
        layers (list[int] | None): Feature maps that the anomaly map is made of, as indices in timm's ``feature_info``.
            Defaults to ``None``: strides 8 and 16, or the blocks at two thirds and at the end of a ViT.
        pre_trained (bool): Load pretrained weights. Defaults to ``True``.
        weights (str | None): File with the backbone's weights, in timm's naming. Defaults to ``None``: the package that
            carries them, else timm's hub and its cache.
        image_size (int | tuple[int, int]): Size that images are resized to. Defaults to ``224``.
        num_steps (int): Number of optimiser steps. 0 is no fine-tuning. Defaults to ``30``.
        learning_rate (float): Learning rate of AdamW. Defaults to ``3e-5``.
        weight_decay (float): Weight decay of AdamW. Defaults to ``1e-4``.
        positive_weight (float): Weight of the cross-instance positive pairs. Defaults to ``1.0``.
        negative_weight (float): Weight of the negative pairs. Defaults to ``0.0``.
        augmentation (str): Views that count as normal: ``"none"``, ``"mild"`` or ``"strong"``. Defaults to ``"mild"``.
        num_views (int): Views of each image that the density is fitted to, the image itself among them.
            Defaults to ``16``.
        covariance_floor (float): Variance added to the covariance, as a fraction of its mean variance.
            Defaults to ``0.01``.
        image_score (str): ``"embedding"``, the published score; ``"map"``, the highest 1 % of the anomaly map; or
            ``"mean"`` of both. Defaults to ``"map"``, which sees defects that are small in the image.
        seed (int): Seed of the heads and of all views. The global seed has no influence. Defaults to ``0``.
        pre_processor (nn.Module | bool): Defaults to ``True``: resize, and normalise as the weights ask.
        post_processor (nn.Module | bool): Defaults to ``True``.
        evaluator (Evaluator | bool): Defaults to ``True``.
        visualizer (Visualizer | bool): Defaults to ``True``.

    Raises:
        ValueError: If an argument is out of its range, or as :class:`CoftADModel` does.

    Example:
        >>> from anomalib.engine import Engine
        >>> from anomalib_fewshot import ELPV, CoftAD, FewShot
        >>> Engine().train(CoftAD(), datamodule=FewShot(ELPV(), k_shot=4))  # doctest: +SKIP
    """

    def __init__(
        self,
        backbone: str = "tf_efficientnet_lite0",
        layers: list[int] | None = None,
        pre_trained: bool = True,
        weights: str | None = None,
        image_size: int | tuple[int, int] = 224,
        num_steps: int = 30,
        learning_rate: float = 3e-5,
        weight_decay: float = 1e-4,
        positive_weight: float = 1.0,
        negative_weight: float = 0.0,
        augmentation: str = "mild",
        num_views: int = 16,
        covariance_floor: float = 0.01,
        image_score: str = "map",
        seed: int = 0,
        pre_processor: nn.Module | bool = True,
        post_processor: nn.Module | bool = True,
        evaluator: Evaluator | bool = True,
        visualizer: Visualizer | bool = True,
    ) -> None:
        for name, value, least in (("num_steps", num_steps, 0), ("num_views", num_views, 1)):
            if value < least:
                msg = f"`{name}` must be at least {least}, got {value}."
                raise ValueError(msg)
        if pre_processor is True:
            pre_processor = self.configure_pre_processor(_pair(image_size), backbone)
        super().__init__(
            pre_processor=pre_processor,
            post_processor=post_processor,
            evaluator=evaluator,
            visualizer=visualizer,
        )
        self.num_steps = num_steps
        self.learning_rate = learning_rate
        self.weight_decay = weight_decay
        self.num_views = num_views
        self.seed = seed
        self.augmentation = SupportAugmentation(augmentation, *normalization(backbone))
        self.loss = CoftADLoss(positive_weight, negative_weight)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.model = CoftADModel(
                backbone,
                layers,
                pre_trained,
                weights,
                _pair(image_size),
                covariance_floor,
                image_score,
            )
        self.register_buffer("is_fitted", torch.tensor(data=False))
        self.is_fitted: torch.Tensor

    @staticmethod
    def configure_pre_processor(
        image_size: tuple[int, int] | None = None,
        backbone: str = "tf_efficientnet_lite0",
    ) -> PreProcessor:
        """Return the pre-processor: resize, and normalise as the backbone's weights ask."""
        mean, std = normalization(backbone)
        return PreProcessor(Compose([Resize(image_size or (224, 224), antialias=True), Normalize(mean, std)]))

    def configure_callbacks(self) -> Sequence[Callback]:
        """Return anomalib's callbacks, and one that makes the progress bar count steps."""
        callbacks = super().configure_callbacks()
        return [*(callbacks if isinstance(callbacks, Sequence) else [callbacks]), StepProgress()]

    def configure_optimizers(self) -> torch.optim.Optimizer | None:
        """Return AdamW of all parameters, or nothing if there is no fine-tuning."""
        if self.num_steps == 0:
            return None
        return torch.optim.AdamW(self.model.parameters(), lr=self.learning_rate, weight_decay=self.weight_decay)

    def training_step(self, batch: Batch, batch_idx: int) -> STEP_OUTPUT:
        """Return the contrastive loss of two views of each image."""
        del batch_idx
        if self.num_steps == 0:
            return None
        generator = self._generator(self.global_step * self.trainer.world_size + self.global_rank)
        embeddings = [self.model.embed(self.augmentation(batch.image, generator)) for _ in range(2)]
        (first, first_prediction), (second, second_prediction) = (self.model.project(e) for e in embeddings)
        clean = anomalous = None
        if self.loss.negative_weight > 0:
            clean = self.model.embed(batch.image)
            anomalous = self.model.embed(cut_paste(batch.image, generator)[0])
        loss = self.loss((first_prediction, second_prediction), (first, second), clean, anomalous)
        self.log("train_loss", loss, prog_bar=True)
        self.log("spread", _spread(torch.cat(embeddings).detach()), prog_bar=True)
        return loss

    def validation_step(self, batch: Batch, batch_idx: int) -> STEP_OUTPUT:
        """Score a batch."""
        del batch_idx
        return batch.update(**self.model(batch.image)._asdict())

    @torch.no_grad()
    def fit(self) -> None:
        """Fit the density to augmented views of the training images."""
        logger.info("Fitting the density to %d views of each training image.", self.num_views)
        training = self.model.training
        self.model.eval()
        image, position = reduce(_add, (self.model.moments(views) for _, views in self._views()))
        self.model.fit(self._sum_processes(image), self._sum_processes(position))
        self.model.train(training)
        self.is_fitted.fill_(value=True)

    def _images(self) -> Iterator[tuple[list[str], torch.Tensor]]:
        """Yield the paths and the pre-processed training images, a batch at a time."""
        for batch in self.trainer.train_dataloader or []:
            images = batch.image.to(self.device)
            if self.pre_processor is not None:
                images = self.pre_processor.transform(images)
            yield batch.image_path, images

    def _views(self) -> Iterator[tuple[list[str], torch.Tensor]]:
        """Yield each batch of training images, and then its augmented views."""
        generator = self._generator(self.num_steps * self.trainer.world_size + self.global_rank)
        for paths, images in self._images():
            yield paths, images
            for _ in range(self.num_views - 1):
                yield paths, self.augmentation(images, generator)

    @torch.no_grad()
    def _calibrate(self) -> None:
        """Let anomalib's post-processor take the highest score of a left-out normal image for the threshold.

        Each image in turn is left out of the density (of more than eight, an eighth of them) and scored by that of the
        others. A single image has no others: its augmented views are scored by its own density, which is too kind.
        """
        if not isinstance(self.post_processor, PostProcessor):
            return
        training = self.model.training
        self.model.eval()
        folds: dict[str, int] = {}
        parts: dict[int, tuple[Moments, Moments]] = {}
        for paths, views in self._views():
            image, position = self.model.unit_embeddings(views)
            for row, path in enumerate(paths):
                fold = folds.setdefault(path, len(folds) % MAX_FOLDS)
                part = Moments.of(image[row, None]), Moments.of(position[row])
                parts[fold] = _add(parts[fold], part) if fold in parts else part
        parts = {fold: (self._sum_processes(part[0]), self._sum_processes(part[1])) for fold, part in parts.items()}
        for fold, own in parts.items():
            others = [part for other, part in parts.items() if other != fold]
            self.model.fit(*reduce(_add, others or [own]))
            for paths, images in self._images() if others else self._views():
                left_out = images[[folds[path] == fold for path in paths]]
                if len(left_out) > 0:
                    self.post_processor.on_validation_batch_end(self.trainer, self, self._score_normal(left_out))
        self.post_processor.on_validation_epoch_end(self.trainer, self)
        self.model.fit(*reduce(_add, parts.values()))
        self.model.train(training)

    def _score_normal(self, images: torch.Tensor) -> ImageBatch:
        """Return the scores of normal images, as a validation gives them."""
        labels, masks = torch.zeros_like(images[:, 0, 0, 0]), torch.zeros_like(images[:, 0])
        batch = ImageBatch(image=images, gt_label=labels.bool(), gt_mask=masks.bool())
        return batch.update(**self.model(images)._asdict())

    def _sum_processes(self, moments: Moments) -> Moments:
        if self.trainer.world_size == 1:
            return moments
        return Moments(*(torch.as_tensor(self.all_gather(part)).sum(0) for part in moments))

    def on_fit_start(self) -> None:
        """Forget the density of an earlier fit."""
        self.is_fitted.fill_(value=False)

    def on_validation_start(self) -> None:
        """Fit the density before it is validated."""
        if self.trainer.state.fn == TrainerFn.FITTING:
            self.fit()
        self._check_fitted()

    def on_train_end(self) -> None:
        """Do what is else done at the validation, if there was none: fit, set the threshold, keep a checkpoint."""
        if self.is_fitted:
            return
        self.fit()
        self._calibrate()
        if isinstance(self.trainer.checkpoint_callback, ModelCheckpoint):
            path = self.trainer.checkpoint_callback.format_checkpoint_name({})
            self.trainer.save_checkpoint(path, weights_only=False)

    def on_test_start(self) -> None:
        """Refuse to score without a density."""
        self._check_fitted()

    def on_predict_start(self) -> None:
        """Refuse to score without a density."""
        self._check_fitted()

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Leave nothing to load from elsewhere: the checkpoint holds the backbone's weights."""
        super().on_save_checkpoint(checkpoint)
        checkpoint["hyper_parameters"] |= {"pre_trained": False, "weights": None}

    @property
    def trainer_arguments(self) -> dict[str, Any]:
        """Length of the training in optimiser steps, whatever the number of images, and one validation at its end."""
        if self.num_steps == 0:
            return {"max_epochs": 1, "num_sanity_val_steps": 0, "log_every_n_steps": 1}
        return {
            "max_epochs": self.num_steps,  # an epoch has a step or more
            "max_steps": self.num_steps,
            "val_check_interval": self.num_steps,
            "check_val_every_n_epoch": None,
            "num_sanity_val_steps": 0,
            "log_every_n_steps": 1,
        }

    @property
    def learning_type(self) -> LearningType:
        """One class: anomalib's engine does not train models that say they are few-shot."""
        return LearningType.ONE_CLASS

    def _generator(self, step: int) -> torch.Generator:
        """Return the generator of a step, which needs no state between steps."""
        return torch.Generator().manual_seed((self.seed << 32) + step)

    def _check_fitted(self) -> None:
        if not self.is_fitted:
            msg = "CoftAD must be trained before it scores. Train it, or give a checkpoint: `ckpt_path`."
            raise RuntimeError(msg)


def _add(first: tuple[Moments, Moments], second: tuple[Moments, Moments]) -> tuple[Moments, Moments]:
    return first[0].plus(second[0]), first[1].plus(second[1])


def _pair(image_size: int | Sequence[int]) -> tuple[int, int]:
    height, width = (image_size, image_size) if isinstance(image_size, int) else image_size
    if min(height, width) < 32:
        msg = f"`image_size` must be at least 32, got {image_size}."
        raise ValueError(msg)
    return height, width


def _spread(embeddings: torch.Tensor) -> torch.Tensor:
    """Return how far unit embeddings spread: 1 in all directions, 0 if they have collapsed to one."""
    return F.normalize(embeddings, dim=-1).std(0, correction=0).mean() * embeddings.shape[-1] ** 0.5
