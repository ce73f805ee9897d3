# Copyright (C) 2026 anomalib-fewshot contributors
# SPDX-License-Identifier: Apache-2.0

"""CoftAD: contrastive fine-tuning of a pretrained backbone on a few normal images.

Paper: https://arxiv.org/abs/2402.18998 (IEEE TIP 33, 2024). There is no public code: this follows the published
description, and settings that the description does not give are this package's.
"""

import logging
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from anomalib.data import Batch, InferenceBatch
from anomalib.metrics import Evaluator
from anomalib.models.components import AnomalibModule
from anomalib.visualization import Visualizer
from lightning.pytorch import Callback
from lightning.pytorch.utilities.types import STEP_OUTPUT
from torch import nn

from anomalib_fewshot.models.components import (
    BackboneMixin,
    FittedMixin,
    StepProgress,
    SupportAugmentation,
    check_at_least,
    cut_paste,
    normalization_of,
    parts_of,
    seeded,
    seeded_generator,
    show_steps,
    std_of_l2_normalized,
)
from anomalib_fewshot.post_processing import CalibrationScheme, CalibrationScores, SupportPostProcessor

from .adaptation import AdaptationSettings
from .anomaly_synthesis import checked_kinds, synthesize_anomalies
from .held_out import Features, Fold, describe
from .loss import AdaptationLoss, CoftADLoss
from .torch_model import CoftADModel

FINE_TUNINGS = ("adaptation", "backbone")
TURNS = ("none", "quarter", "any", "auto")
NUM_ANGLES = 12
MAPS_AT_ONCE = 8

logger = logging.getLogger(__name__)


class CoftAD(FittedMixin, BackboneMixin, AnomalibModule):
    """Contrastive fine-tuning on a few normal images, then Gaussians of their embeddings.

    There are two fine-tunings. ``"adaptation"``, the default and this package's, is part of the fit: it changes the
    metric of the Gaussians of patches, which draws held-out images to the Gaussian of the others (cross-instance
    positive pairs) and pushes synthesised anomalies away (negative pairs). The backbone stays as it is.
    ``"backbone"``, as published, is a training of the whole backbone by two views of an image, by two images, and by an
    image and an anomaly synthesised from it.

    A Mahalanobis distance is the score. With one image nothing is adapted.

    Args:
        backbone (str): Name of a timm model, convolutional or ViT. Defaults to ``"tf_efficientnet_lite0"``, whose
            weights come with this package.
        layers (list[int] | None): Feature maps of the anomaly map, beside the last, as indices in timm's
            ``feature_info``. Defaults to ``None``: strides 8 and 16, or the blocks at two thirds and at the end of a
            ViT.
        pre_trained (bool): Load pretrained weights. Defaults to ``True``.
        weights (str | None): File with the backbone's weights, in timm's naming. Defaults to ``None``: the package that
            carries them, else timm's hub and its cache.
        image_size (int | tuple[int, int] | None): Size that images are resized to. 448 sees smaller defects, in nearly
            twice the time. Defaults to ``None``: the size of ``pre_processor``, which is 320 by default.
        fine_tuning (str): ``"adaptation"`` or ``"backbone"``. Defaults to ``"adaptation"``.
        num_steps (int): Number of optimiser steps. 0 is no fine-tuning. Defaults to ``40``.
        learning_rate (float): Learning rate of AdamW. Defaults to ``1e-3``, which is for the adaptation.
        weight_decay (float): Weight decay of AdamW. Defaults to ``0.0``.
        positive_weight (float): Weight of the cross-instance positive pairs. Defaults to ``1.0``.
        negative_weight (float): Weight of the negative pairs. Defaults to ``1.0``.
        anchor_weight (float): Weight of how far the adaptation moves the metric. Defaults to ``20.0``.
        augmentation (str): Views that are normal: ``"none"``, ``"mild"`` or ``"strong"``. Defaults to ``"mild"``.
        num_views (int): Views of each image that the densities are fitted to, the image itself among them.
            Defaults to ``8``.
        turns (str): How views are turned. ``"none"``: not. ``"quarter"``: each view that the densities are fitted to is
            turned by quarter turns and mirrored, another way each. ``"any"``: and the memory bank holds the images at
            12 angles, for a part that lies at any angle. ``"auto"``: as ``"any"`` where held-out images are much nearer
            to turned ones, else as ``"quarter"``. Defaults to ``"auto"``.
        num_anomalies (int): Anomalies of each kind that are synthesised from an image. Defaults to ``4``.
        anomaly_kinds (list[str] | None): Some of ``"cut_paste"``, ``"scar"``, ``"patches"``, ``"stain"``, ``"blur"``
            and ``"crack"``: leave out what is normal on the part. Defaults to ``None``: all.
        image_score (str): ``"embedding"``, the published score, or ``"map"``, the highest 0.5 % of the anomaly map.
            Defaults to ``"map"``, which sees defects that are small in the image.
        seed (int): Seed of the heads and of all views. The global seed has no influence. Defaults to ``0``.
        pre_processor (nn.Module | bool): Defaults to ``True``: resize, and normalize as the weights ask.
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

    default_image_size = (320, 320)
    score_arguments = ("backbone", "layers", "image_size", "image_score", "fine_tuning")

    def __init__(
        self,
        backbone: str = "tf_efficientnet_lite0",
        layers: list[int] | None = None,
        pre_trained: bool = True,
        weights: str | None = None,
        image_size: int | tuple[int, int] | None = None,
        fine_tuning: str = "adaptation",
        num_steps: int = 40,
        learning_rate: float = 1e-3,
        weight_decay: float = 0.0,
        positive_weight: float = 1.0,
        negative_weight: float = 1.0,
        anchor_weight: float = 20.0,
        augmentation: str = "mild",
        num_views: int = 8,
        turns: str = "auto",
        num_anomalies: int = 4,
        anomaly_kinds: list[str] | None = None,
        image_score: str = "map",
        seed: int = 0,
        pre_processor: nn.Module | bool = True,
        post_processor: nn.Module | bool = True,
        evaluator: Evaluator | bool = True,
        visualizer: Visualizer | bool = True,
    ) -> None:
        check_at_least(0, num_steps=num_steps)
        check_at_least(1, num_views=num_views, num_anomalies=num_anomalies)
        if fine_tuning not in FINE_TUNINGS:
            msg = f"`fine_tuning` must be one of {FINE_TUNINGS}, got {fine_tuning!r}."
            raise ValueError(msg)
        if turns not in TURNS:
            msg = f"`turns` must be one of {TURNS}, got {turns!r}."
            raise ValueError(msg)
        pre_processor, size = self.match_pre_processor(pre_processor, image_size, backbone)
        super().__init__(
            pre_processor=pre_processor,
            post_processor=post_processor,
            evaluator=evaluator,
            visualizer=visualizer,
        )
        self.hparams["image_size"] = image_size or size
        self.fine_tuning = fine_tuning
        self.num_steps = num_steps
        self.learning_rate = learning_rate
        self.weight_decay = weight_decay
        self.num_views = num_views
        self.turns = turns
        self.num_anomalies = num_anomalies
        self.anomaly_kinds = checked_kinds(anomaly_kinds)
        self.seed = seed
        self.augmentation = augmentation
        self.loss = CoftADLoss(positive_weight, negative_weight)
        self.adaptation_loss = AdaptationLoss(positive_weight, negative_weight, anchor_weight)
        with seeded(seed):
            self.model = CoftADModel(backbone, layers, pre_trained, weights, size, image_score)
            if fine_tuning != "backbone":
                self.model.backbone.fold_batch_norm()
        self.model.requires_grad_(fine_tuning == "backbone")
        self.views()  # a wrong argument is refused now

    def configure_callbacks(self) -> Sequence[Callback]:
        """Return anomalib's callbacks, and one that makes the progress bar count steps."""
        callbacks = super().configure_callbacks()
        return [*(callbacks if isinstance(callbacks, Sequence) else [callbacks]), StepProgress()]

    def configure_optimizers(self) -> torch.optim.Optimizer | None:
        """Return AdamW of the backbone and the heads, or nothing if they are not trained."""
        if not self._trains_backbone:
            return None
        return torch.optim.AdamW(self.model.parameters(), lr=self.learning_rate, weight_decay=self.weight_decay)

    def training_step(self, batch: Batch, batch_idx: int) -> STEP_OUTPUT:
        """Return the contrastive loss of two views of each image: the published fine-tuning."""
        del batch_idx
        if not self._trains_backbone:
            return self.zero_loss()
        rng = seeded_generator(self.seed, 0, self.global_step, self.global_rank)
        augment = self.views()
        embeddings = [self.model.image_embedding(augment(batch.image, rng)) for _ in range(2)]
        (first, first_prediction), (second, second_prediction) = (self.model.project(e) for e in embeddings)
        clean = anomalous = None
        if self.loss.negative_weight > 0:
            clean = self.model.image_embedding(batch.image)
            anomalous = self.model.image_embedding(cut_paste(batch.image, rng)[0])
        loss = self.loss((first_prediction, second_prediction), (first, second), clean, anomalous)
        self.log("train_loss", loss, prog_bar=True)
        self.log("embedding_std", std_of_l2_normalized(torch.cat(embeddings).detach()), prog_bar=True)
        return loss

    def fit(self) -> CalibrationScores:
        """Fit the Gaussians to augmented views of the support, and once more without each of its images.

        Returns:
            CalibrationScores: Out-of-fold scores of the support set. The views of a single image are scored.
        """
        num_steps = self.num_steps if self.fine_tuning == "adaptation" else 0
        folds = describe(
            self._features,
            self.support(),
            self.views(),
            num_views=self.num_views,
            seed=self.seed,
            synthesize=self.synthesize if num_steps > 0 else None,
            quarter_turns=self.turns != "none",
            num_angles=NUM_ANGLES if self.turns in {"auto", "any"} else 0,
        )
        total = num_steps * (1 + (len(folds) if len(folds) > 2 else 0))  # a single image is not adapted to
        settings = AdaptationSettings(num_steps, self.learning_rate, self.weight_decay, self.seed)
        steps = self.model.fit(folds, self.adaptation_loss, settings, always_turned=self.turns == "any")
        show_steps(steps, total, "Adapting", self.trainer.progress_bar_callback)
        if self.model.neighbors.is_turned[0]:
            logger.info("The part comes turned: patches of turned images are kept too.")
        return self._held_out_scores(folds)

    def _held_out_scores(self, folds: list[Fold]) -> CalibrationScores:
        parts = self.model.score_held_out(folds)
        scores, maps = (torch.cat(part) for part in zip(*parts, strict=True))
        if len(folds) == 1:
            return CalibrationScores(CalibrationScheme.SELF_VIEWS, self._batches(scores, maps))
        if self._trains_backbone:  # which has seen all images
            self.model.hold_out(0)
            self.model.stack()
            return CalibrationScores(CalibrationScheme.LEAVE_ONE_OUT, self._batches(scores, maps))
        scheme = CalibrationScheme.JACKKNIFE_PLUS if len(folds) == len(scores) else CalibrationScheme.CV_PLUS
        processor = (
            self.post_processor if isinstance(self.post_processor, SupportPostProcessor) else SupportPostProcessor()
        )
        ranked, fold = self.model.ranked_score, [torch.full((len(own),), n) for n, (own, _) in enumerate(parts)]
        ranked.fit(scores, torch.cat(fold), processor.num_distinct_ranks(scheme, len(scores)))
        return CalibrationScores(scheme, self._batches(ranked.calibration_scores, maps))

    def _batches(self, scores: torch.Tensor, maps: torch.Tensor) -> Iterator[InferenceBatch]:
        for some, own in zip(scores.split(MAPS_AT_ONCE), maps.split(MAPS_AT_ONCE), strict=True):
            yield InferenceBatch(some, anomaly_map=self.model.upsample(own, self.model.image_size))

    def views(self) -> SupportAugmentation:
        """Return the augmentation in the normalization of the pre-processor, which a checkpoint may have replaced."""
        return SupportAugmentation(self.augmentation, *normalization_of(self.pre_processor))

    def _features(self, images: torch.Tensor) -> Features:
        with self.trainer.precision_plugin.forward_context():  # as the test images
            embeddings, patches, raw = zip(*(self.model.features(part) for part in parts_of(images)), strict=True)
            return Features(
                torch.cat(embeddings),
                [torch.cat(own) for own in zip(*patches, strict=True)],
                torch.cat(raw),
            )

    def synthesize(self, image: torch.Tensor, rng: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
        """Synthesise anomalies from an image.

        Args:
            image (torch.Tensor): Normalized image, shape ``(3, H, W)``.
            rng (torch.Generator): Source of randomness.

        Returns:
            tuple[torch.Tensor, torch.Tensor]: N normalized anomalies, shape ``(N, 3, H, W)``, and their masks,
            ``(N, H, W)``.
        """
        mean, std = (torch.tensor(values).to(image).view(3, 1, 1) for values in normalization_of(self.pre_processor))
        image = (image * std + mean).clamp(0, 1)
        images, masks = synthesize_anomalies(image[None], rng, self.num_anomalies, self.anomaly_kinds)
        return (images - mean) / std, masks

    @property
    def trainer_arguments(self) -> dict[str, Any]:
        """One validation at the end of all steps; without a training, an epoch that changes nothing."""
        if self._trains_backbone:
            return {
                "max_epochs": self.num_steps,  # an epoch has a step or more
                "max_steps": self.num_steps,
                "val_check_interval": self.num_steps,
                "check_val_every_n_epoch": None,
                "num_sanity_val_steps": 0,
                "accumulate_grad_batches": 1,
            }
        arguments = {
            "max_epochs": 1,
            "val_check_interval": 1.0,
            "check_val_every_n_epoch": 1,
            "num_sanity_val_steps": 0,
        }
        return arguments | ({"devices": 1} if self.fine_tuning == "adaptation" else {})

    @property
    def _trains_backbone(self) -> bool:
        return self.fine_tuning == "backbone" and self.num_steps > 0
