# Copyright (C) 2026 anomalib-fewshot contributors
# SPDX-License-Identifier: Apache-2.0

"""CoftAD: patch Gaussians plus a memory bank, calibrated out of fold, with contrastive fine-tuning after COFT-AD.

Paper: https://arxiv.org/abs/2402.18998 (IEEE TIP 33, 2024). There is no public code. This follows the published
description, and settings that it does not give are ours.
"""

import logging
from collections.abc import Collection, Sequence
from functools import partial
from math import nan
from typing import Any, Literal

import torch
from anomalib.data import Batch, InferenceBatch
from anomalib.metrics import Evaluator
from anomalib.models.components import AnomalibModule
from anomalib.visualization import Visualizer
from lightning.pytorch import Callback
from lightning.pytorch.utilities.types import STEP_OUTPUT
from torch import nn

from anomalib_fewshot.data.support import count_unlabeled
from anomalib_fewshot.errors import ArgumentError
from anomalib_fewshot.models.components import (
    BackboneMixin,
    FittedMixin,
    StepProgress,
    SupportAugmentation,
    check_at_least,
    cut_paste,
    micro_batches,
    normalization_of,
    seeded_generator,
    std_of_l2_normalized,
    step_progress,
    synthesize_anomalies,
)
from anomalib_fewshot.post_processing import CalibrationScheme, CalibrationScores, SupportPostProcessor

from .adaptation import AdaptationSettings
from .features import Features
from .folds import (
    MAX_POOL_SIZE,
    MIN_POOL_SIZE,
    FoldFeatures,
    FoldSettings,
    extract_fold_features,
    extract_pool_features,
)
from .published import LEARNING_RATE, NUM_VIEWS, WEIGHT_DECAY, ContrastiveLoss
from .torch_model import CoftADModel

ROTATIONS = ("none", "right_angles", "any", "auto")

logger = logging.getLogger(__name__)


class CoftAD(FittedMixin, BackboneMixin, AnomalibModule):
    """Patch Gaussians plus a memory bank, calibrated out of fold, with contrastive fine-tuning after COFT-AD.

    By default the backbone stays unchanged. The fit of a few seconds fine-tunes the metric of the Gaussians: patches of
    an image and the Gaussian of the other images are cross-instance positive pairs, and patches of synthesized
    anomalies are negative pairs. With one image, nothing is fine-tuned.

    If the data module has unlabeled images, such as ``FewShot(unlabeled=60)``, the fit also learns from them. At least
    8 are needed, and of more than 128, a random choice is used. Most of them must be normal.

    With ``published``, the model is that of the paper: the backbone is fine-tuned by two views of an image, by two
    images and, optionally, by an image and an anomaly synthesized from it. The score is the Mahalanobis distance of the
    image embedding from one Gaussian.

    Args:
        backbone (str): Name of a timm model, convolutional or ViT. Defaults to ``"tf_efficientnet_lite0"``, whose
            weights come with this package.
        layers (list[int] | None): Feature maps of the anomaly map, besides the last, as indices in timm's
            ``feature_info``. Defaults to ``None``: strides 8 and 16, or the blocks at a third and at two thirds of
            a ViT.
        pre_trained (bool): Load pretrained weights. Defaults to ``True``.
        weights (str | None): File with the backbone's weights, in timm's naming. Defaults to ``None``: the package that
            contains them, else timm's hub and its cache.
        image_size (int | tuple[int, int] | str): Size that images are resized to, as a number or height and width. 448
            shows smaller defects, in nearly twice the time. Defaults to ``"auto"``: the aspect ratio of the support
            images, with about as many pixels as 320 x 320, or the size of a given ``pre_processor``.
        published (bool): Fine-tune the backbone and score the image embedding, as published. Defaults to ``False``.
        num_steps (int): Number of optimizer steps. 0 disables the fine-tuning. Defaults to ``40``.
        learning_rate (float | None): Learning rate of AdamW. Defaults to ``None``: 1e-3, or 3e-5 if ``published``.
        positive_weight (float): Weight of the cross-instance positive pairs. Defaults to ``1.0``.
        negative_weight (float): Weight of the negative pairs. 0 disables them. Defaults to ``1.0``.
        rotations (str): Rotations of the views. ``"none"``: none. ``"right_angles"``: each view that the Gaussians are
            fitted to is rotated by right angles and mirrored in another way. ``"any"``: the memory bank also holds the
            images at 12 angles, for parts of arbitrary orientation. ``"auto"``: as ``"any"`` if the support set shows
            that the orientation is arbitrary, else as ``"right_angles"``. Defaults to ``"auto"``.
        seed (int): Seed of the heads and of all views. The global seed has no influence. Defaults to ``0``.
        pre_processor (nn.Module | bool): Pre-processor. Defaults to ``True``: resize, and normalize as the weights
            expect.
        post_processor (nn.Module | bool): Post-processor. Defaults to ``True``: :class:`SupportPostProcessor`.
        evaluator (Evaluator | bool): Evaluator. Defaults to ``True``.
        visualizer (Visualizer | bool): Visualizer. Defaults to ``True``.

    Raises:
        ArgumentError: If an argument is out of its range.

    Example:
        >>> from anomalib.engine import Engine
        >>> from anomalib_fewshot import ELPV, CoftAD, FewShot
        >>> Engine().train(CoftAD(), datamodule=FewShot(ELPV(), k_shot=4))  # doctest: +SKIP
    """

    uses_unlabeled = True  # read by the data module
    default_image_size = (320, 320)
    score_arguments = ("backbone", "layers", "image_size", "published")

    def __init__(
        self,
        backbone: str = "tf_efficientnet_lite0",
        layers: list[int] | None = None,
        pre_trained: bool = True,
        weights: str | None = None,
        image_size: int | tuple[int, int] | Literal["auto"] = "auto",
        published: bool = False,
        num_steps: int = 40,
        learning_rate: float | None = None,
        positive_weight: float = 1.0,
        negative_weight: float = 1.0,
        rotations: str = "auto",
        seed: int = 0,
        pre_processor: nn.Module | bool = True,
        post_processor: nn.Module | bool = True,
        evaluator: Evaluator | bool = True,
        visualizer: Visualizer | bool = True,
    ) -> None:
        check_at_least(0, num_steps=num_steps, positive_weight=positive_weight, negative_weight=negative_weight)
        if rotations not in ROTATIONS:
            msg = f"`rotations` must be one of {ROTATIONS}, got {rotations!r}."
            raise ArgumentError(msg)
        pre_processor, size = self.match_pre_processor(pre_processor, image_size, backbone)
        super().__init__(
            pre_processor=pre_processor,
            post_processor=post_processor,
            evaluator=evaluator,
            visualizer=visualizer,
        )
        self.hparams["image_size"] = image_size or size
        self.num_steps = num_steps
        self.rotations = rotations
        self.trains_backbone = published and num_steps > 0
        self.published = published
        self.uses_unlabeled = not published
        default_rate = LEARNING_RATE if published else 1e-3
        self.learning_rate = default_rate if learning_rate is None else learning_rate
        self.adaptation = AdaptationSettings(num_steps, self.learning_rate, positive_weight, negative_weight, seed)
        self.seed = seed
        if published:
            self.loss: ContrastiveLoss = ContrastiveLoss(positive_weight, negative_weight)
        self.network_factory = partial(CoftADModel, backbone, layers, pre_trained, weights, published=published)
        self.model: CoftADModel = self.create_network(size)

    def create_network(self, image_size: tuple[int, int]) -> CoftADModel:
        """Return a new network for an image size."""
        network: CoftADModel = super().create_network(image_size)
        if not self.published:
            network.backbone.fold_batch_norm()
        return network.requires_grad_(self.published)

    def configure_callbacks(self) -> Sequence[Callback]:
        """Return anomalib's callbacks, and one that makes the progress bar count steps."""
        callbacks = super().configure_callbacks()
        return [*(callbacks if isinstance(callbacks, Sequence) else [callbacks]), StepProgress()]

    def configure_optimizers(self) -> torch.optim.Optimizer | None:
        """Return AdamW of the backbone and the heads, or nothing if they are not trained."""
        if not self.trains_backbone:
            return None
        return torch.optim.AdamW(self.model.parameters(), lr=self.learning_rate, weight_decay=WEIGHT_DECAY)

    def training_step(self, batch: Batch, batch_idx: int) -> STEP_OUTPUT:
        """Return the contrastive loss of two views of each image, which is the published training."""
        del batch_idx
        if not self.trains_backbone:
            return self.zero_loss()
        images: torch.Tensor = batch.image  # type: ignore[assignment]
        rng = seeded_generator(self.seed, 0, self.global_step, self.global_rank)
        first = self.model.embed(self.augment(images, rng))
        second = self.model.embed(self.augment(images, rng))
        pair = []
        if self.loss.negative_weight > 0:
            pair = [self.model.embed(part) for part in (images, cut_paste(images, rng)[0])]
        loss = self.loss(self.model.heads(first), self.model.heads(second), *pair)
        self.log("train_loss", loss, prog_bar=True)
        self.log("embedding_std", std_of_l2_normalized(torch.cat([first, second]).detach()), prog_bar=True)
        return loss

    def fit(self) -> CalibrationScores:
        """Fit Gaussians and memory bank to views of the support set, and once more without each fold.

        Returns:
            CalibrationScores: Out-of-fold scores of the support set. Of a single image, scores of its views.
        """
        num_unlabeled = self._num_unlabeled()
        settings = self.fold_settings()
        folds = extract_fold_features(self._extract, self.support(), settings)
        support_folds: list[FoldFeatures] = []
        if num_unlabeled:
            logger.info("%d unlabeled images are used.", num_unlabeled)
            settings = settings.with_pool(num_unlabeled + sum(len(batch) for batch in self.support()))
            support_folds, folds = folds, extract_fold_features(self._extract, self.support(), settings)
        total = self.num_steps * self._num_adapted_fits(len(folds), num_unlabeled) if settings.synthesize else 0
        with step_progress(num_unlabeled + total, "Adapting", self.trainer.progress_bar_callback) as on_step:
            pool: list[FoldFeatures] = []
            if num_unlabeled:  # each of them is a step of the progress bar
                batches = self.unlabeled(MAX_POOL_SIZE)
                pool = extract_pool_features(self._extract, batches, settings, lambda: on_step(nan))
            is_any = self.rotations == "any"
            self.model.fit(folds, self.adaptation, on_step, pool, support_folds, always_rotated=is_any)
        if self.model.scorer.memory_bank.is_rotated[0]:
            logger.info("Arbitrary rotations detected: rotated patches are added to the memory bank.")
        return self._calibrate(folds)

    @staticmethod
    def _num_adapted_fits(num_folds: int, num_unlabeled: int) -> int:
        """Return the number of fits that are fine-tuned. A fit to a single fold is not."""
        of_support = 0 if num_folds == 1 else 1 if num_folds == 2 else 1 + num_folds
        return of_support + (1 + num_folds if num_unlabeled else 0)

    def _num_unlabeled(self) -> int:
        """Return the number of unlabeled images that the fit uses."""
        datamodule = self.trainer.datamodule  # type: ignore[attr-defined]
        count = min(MAX_POOL_SIZE, count_unlabeled(datamodule)) if self.uses_unlabeled else 0
        if 0 < count < MIN_POOL_SIZE:
            text = "The %d unlabeled images are not used, because at least %d are needed."
            logger.warning(text, count, MIN_POOL_SIZE)
            return 0
        return count

    def _calibrate(self, folds: list[FoldFeatures]) -> CalibrationScores:
        """Return the distances of out-of-fold images, and limit those of new images by their ranks for a guarantee."""
        result = self.model.score_out_of_fold(folds)
        count, num_ranks, in_bag_scores = len(result.scores), 0, None
        if self.model.num_fits == 1:
            scheme = CalibrationScheme.SELF_VIEWS
        elif self.trains_backbone:  # the backbone has seen all images
            scheme = CalibrationScheme.LEAVE_ONE_OUT
        else:
            scheme = CalibrationScheme.JACKKNIFE_PLUS if len(folds) == count else CalibrationScheme.CV_PLUS
            own = self.post_processor
            post_processor = own if isinstance(own, SupportPostProcessor) else SupportPostProcessor()
            num_ranks = scheme.num_distinct_ranks(post_processor.false_alarm_rate, count, len(folds))
            in_bag_scores = self.model.score_support(folds) if self.model.has_pool else None
        self.model.ranked_score.fit(result.scores, result.fold, num_ranks, in_bag_scores)
        scores, maps = self.model.ranked_score.calibration_scores, self.model.upsample(result.maps)[:, None]
        return CalibrationScores(scheme, [InferenceBatch(scores, anomaly_map=maps)], num_folds=len(folds))

    @torch.no_grad()
    def calibrate_on(self, images: Collection[int]) -> None:
        """Calibrate the thresholds of a fitted model on some of its support images only.

        The model is not changed. It has learned from the other images, but they do not set the thresholds: such as
        images that were added because their scores were high.

        Args:
            images (Collection[int]): Numbers of the images, in the order of the support set.

        Raises:
            ArgumentError: If there is none, or if the thresholds were not calibrated on the support set.
        """
        post_processor, ranked = self.post_processor, self.model.ranked_score
        num_folds, count = self.fold_settings().max_folds, len(ranked.out_of_fold_scores)
        order = sorted(range(count), key=lambda image: image % num_folds)  # the scores are ordered by fold
        kept = torch.tensor([position for position, image in enumerate(order) if image in images])
        if not isinstance(post_processor, SupportPostProcessor) or post_processor.scheme is None or not len(kept):
            msg = f"`images` must be numbers of support images that set the thresholds, got {list(images)}."
            raise ArgumentError(msg)
        scheme, folds = post_processor.scheme, post_processor.num_folds
        num_ranks = scheme.num_distinct_ranks(post_processor.false_alarm_rate, len(kept), folds)
        in_bag_scores = ranked.in_bag_scores[kept] if self.model.has_pool else None
        ranked.fit(ranked.out_of_fold_scores[kept], ranked.fold[kept], num_ranks, in_bag_scores)
        post_processor.fit_normal(CalibrationScores(scheme, [InferenceBatch(ranked.calibration_scores)], folds))

    def fold_settings(self) -> FoldSettings:
        """Return which views and anomalies of the support set are computed."""
        return FoldSettings(
            self.augment,
            self.synthesize if self.num_steps > 0 and not self.published else None,
            self.seed,
            num_views=NUM_VIEWS if self.published else 8,
            right_angles=self.rotations != "none",
            num_angles=12 if self.rotations in {"any", "auto"} else 0,
        )

    def _extract(self, images: torch.Tensor) -> Features:
        with self.trainer.precision_plugin.forward_context():  # as for the test images
            return Features.cat([self.model.features(part) for part in micro_batches(images)])

    def augment(self, images: torch.Tensor, rng: torch.Generator) -> torch.Tensor:
        """Return a random view of each normalized image: ``(B, 3, H, W)`` -> ``(B, 3, H, W)``."""
        return SupportAugmentation(*normalization_of(self.pre_processor))(images, rng)

    def synthesize(self, image: torch.Tensor, rng: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
        """Synthesize anomalies from an image.

        Args:
            image (torch.Tensor): Normalized image, shape ``(3, H, W)``.
            rng (torch.Generator): Source of randomness.

        Returns:
            tuple[torch.Tensor, torch.Tensor]: N normalized anomalies, shape ``(N, 3, H, W)``, and their masks,
            ``(N, H, W)``.
        """
        mean, std = (torch.tensor(values).to(image).view(3, 1, 1) for values in normalization_of(self.pre_processor))
        images, masks = synthesize_anomalies((image * std + mean).clamp(0, 1)[None], rng, per_kind=4)
        return (images - mean) / std, masks

    @property
    def trainer_arguments(self) -> dict[str, Any]:
        """One validation at the end of all steps. Without a training, an epoch that changes nothing."""
        arguments: dict[str, Any] = {"num_sanity_val_steps": 0}
        if self.trains_backbone:
            return arguments | {
                "max_epochs": self.num_steps,  # an epoch has a step or more
                "max_steps": self.num_steps,
                "val_check_interval": self.num_steps,
                "check_val_every_n_epoch": None,
                "accumulate_grad_batches": 1,
            }
        return arguments | {"max_epochs": 1, "val_check_interval": 1.0, "check_val_every_n_epoch": 1, "devices": 1}
