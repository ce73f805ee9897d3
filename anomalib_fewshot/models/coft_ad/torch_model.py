# Copyright (C) 2026 anomalib-fewshot contributors
# SPDX-License-Identifier: Apache-2.0

"""PyTorch model of CoftAD."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from anomalib.data import InferenceBatch
from torch import nn

from anomalib_fewshot.models.components import Backbone, RankedScore, SmoothUpsampling

from .adaptation import AdaptationSettings, OnStep
from .density import MIN_STD, DensityEnsemble, FittedGaussian
from .features import FEATURE_GROUPS, FeatureGroup, Features, features_of_maps, mean_of_highest
from .folds import Folds, leave_one_out, total_moments
from .patch_scorer import BANK_WEIGHT, EVERY, PatchScorer
from .published import ContrastiveHeads, image_gaussian

POOL_WEIGHT = 0.5  # of the fit with unlabeled images. A lower one resists defects among them better


@dataclass(frozen=True)
class OutOfFoldScores:
    """Scores of the support set by fits that have not seen the fold of each image.

    Args:
        scores (torch.Tensor): Scores, shape ``(K,)``.
        maps (torch.Tensor): Anomaly maps on the grid of the features, shape ``(K, h, w)``.
        fold (torch.Tensor): Number of each image's fold, shape ``(K,)``.
    """

    scores: torch.Tensor
    maps: torch.Tensor
    fold: torch.Tensor


class CoftADModel(nn.Module):
    """Backbone, and a scorer of its patches.

    The mean of the highest part of the anomaly map is the image's score, see :class:`PatchScorer`. With a pool of
    unlabeled images, a second scorer is fitted to the labeled images only, and both are averaged: the first knows more
    normal images, and the second is not misled by defects in the pool. In the published form, the score is the distance
    of the image embedding from one Gaussian.

    Args:
        backbone (str): Name of a timm model.
        layers (Sequence[int] | None): Feature maps of the anomaly map, see :class:`Backbone`.
        pre_trained (bool): Load weights.
        weights (str | Path | None): File with the weights, see :class:`Backbone`.
        image_size (tuple[int, int]): Height and width of the images.
        published (bool): Score the image embedding, and have the heads of the published training.
        groups (Sequence[FeatureGroup]): Feature groups.
    """

    def __init__(
        self,
        backbone: str,
        layers: Sequence[int] | None,
        pre_trained: bool,
        weights: str | Path | None,
        image_size: tuple[int, int],
        published: bool = False,
        groups: Sequence[FeatureGroup] = FEATURE_GROUPS,
    ) -> None:
        super().__init__()
        self.image_size = image_size
        self.published = published
        self.groups = groups
        self.backbone = Backbone(backbone, layers, pre_trained, weights, image_size)
        channels = self.backbone.channels
        dim = sum(channels[layer] for layer in self.backbone.layers)
        self.scorer = PatchScorer(groups, dim, channels[-1])  # fitted to all images
        self.support_scorer = PatchScorer(groups)  # fitted to the labeled images, if there are unlabeled ones
        first = -1 if groups[0].is_deep else self.backbone.layers[0]
        self.upsample = SmoothUpsampling(self.backbone.grids[first], image_size)
        self.ranked_score = RankedScore(1.0 if published else BANK_WEIGHT + sum(group.weight for group in groups))
        if published:
            self.heads = ContrastiveHeads(channels[-1])
            self.image_density = DensityEnsemble(channels[-1])

    def embed(self, images: torch.Tensor) -> torch.Tensor:
        """Return the embeddings of normalized images: ``(B, 3, H, W)`` -> ``(B, E)``."""
        return self.backbone(images)[-1].mean((-2, -1))

    def features(self, images: torch.Tensor) -> Features:
        """Return the features of normalized images, shape ``(B, 3, H, W)``."""
        return features_of_maps(self.backbone(images), self.backbone.layers, self.groups)

    @property
    def num_fits(self) -> int:
        """Number of fits: one to all images, and one without each fold unless there is a single image."""
        return self.scorer.num_fits

    @property
    def has_pool(self) -> bool:
        """Whether the model was fitted with a pool of unlabeled images."""
        return self.scorer.memory_bank.has_pool

    @property
    def is_mixed(self) -> bool:
        """Whether scores are averaged over two scorers. A scorer of one labeled image cannot be calibrated."""
        return self.has_pool and self.support_scorer.num_fits > 1

    def fit(
        self,
        folds: Folds,
        settings: AdaptationSettings,
        on_step: OnStep,
        pool: Folds = (),
        support_folds: Folds = (),
        *,
        always_rotated: bool = False,
    ) -> None:
        """Fit the scorers to the support set, and once more without each fold.

        Args:
            folds (Folds): Features of the folds.
            settings (AdaptationSettings): Fine-tuning of the metrics. A fit to a single fold is not fine-tuned.
            on_step (OnStep): Called with the loss of each step of the fine-tuning.
            pool (Folds): Features of unlabeled images, a fold each, that every fit contains. Defaults to none.
            support_folds (Folds): With a pool, features of the same folds for the scorer without it, which has more
                views of each image. Defaults to none.
            always_rotated (bool): Keep patches of rotated images, if the folds have them, without a test.
        """
        self.scorer.fit(folds, settings, on_step, pool, always_rotated=always_rotated)
        self.support_scorer = PatchScorer(self.groups).to(folds[0].views.bank.device)
        if len(support_folds) > 1:
            self.support_scorer.fit(support_folds, settings, on_step, always_rotated=always_rotated)
        if self.published:
            fits = [image_gaussian(total_moments(subset, -1)) for subset in leave_one_out(folds)]
            self.image_density.fit([FittedGaussian(mean, metric, torch.zeros(1)) for mean, metric in fits])
        self.ranked_score = RankedScore(self.ranked_score.weight).to(folds[0].views.bank.device)

    def forward(self, images: torch.Tensor) -> InferenceBatch:
        """Score images.

        Args:
            images (torch.Tensor): Normalized images, shape ``(B, 3, H, W)``.

        Returns:
            InferenceBatch: Scores, shape ``(B,)``, and anomaly maps, shape ``(B, 1, H, W)``.
        """
        return self.score_features(self.features(images))

    def score_features(self, features: Features) -> InferenceBatch:
        """Return scores and anomaly maps of images with given features, as :meth:`forward`."""
        with torch.autocast(features.bank.device.type, enabled=False):
            own = self.scorer.memory_bank.find_own(features.bank) if self.has_pool else None
            scores, maps = self.score(features, own=own)
            return InferenceBatch(
                pred_score=self.ranked_score(scores[0], scores[1:], None if own is None else own.any(-1)),
                anomaly_map=self.upsample(maps[:, 0])[:, None],
            )

    def score(
        self,
        features: Features,
        members: slice = EVERY,
        own: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Score images by the fit to all images and by those without a fold.

        Args:
            features (Features): Features of B images.
            members (slice): Which of these N fits. Defaults to all: all images, then without each fold.
            own (torch.Tensor | None): Images of the memory bank that each image is not compared with, see
                :meth:`MemoryBank.find_own`. Such an image belongs to the pool, which each fit contains: all fits with
                the pool score it as the first one does, without the image itself. Requires ``members`` from the first
                one on. Defaults to none.

        Returns:
            tuple[torch.Tensor, torch.Tensor]: Scores, which are logarithms of distances, shape ``(N, B)``, and maps,
            shape ``(B, N, h, w)``. The published form has only the first map.
        """
        if self.published:
            first = slice(0, 1) if members == EVERY else members
            distances = self.image_density.distances(features.embeddings, members).T
            return distances.clamp_min(MIN_STD).log(), self.scorer(features, first)
        maps = self.scorer(features, members, own)
        scores = mean_of_highest(maps).T  # (N, B)
        if own is not None:
            scores = torch.where(own.any(-1), scores[:1], scores)
        if self.is_mixed:
            support_maps = self.support_scorer(features, members)
            scores = scores.lerp(mean_of_highest(support_maps).T, 1 - POOL_WEIGHT)
            maps = maps.lerp(support_maps, 1 - POOL_WEIGHT)
        return scores, maps

    def score_support(self, folds: Folds) -> torch.Tensor:
        """Score the images of each fold as images of the pool are compared with them.

        The scorer with the pool scores an image without itself, and the scorer of the support set without its fold.
        """
        scores = []
        for number, fold in enumerate(folds):
            own = self.scorer.memory_bank.find_own(fold.images.bank)
            with_pool = mean_of_highest(self.scorer(fold.images, slice(0, 1), own))[:, 0]
            if self.is_mixed:
                alone = mean_of_highest(self.support_scorer(fold.images, slice(number + 1, number + 2)))[:, 0]
                with_pool = with_pool.lerp(alone, 1 - POOL_WEIGHT)
            scores.append(with_pool)
        return torch.cat(scores)

    def score_out_of_fold(self, folds: Folds) -> OutOfFoldScores:
        """Score the images of each fold by the fit without it. Of a single image without a pool, score its views."""
        scores, maps, numbers = [], [], []
        for number, fold in enumerate(folds):
            member, features = (number + 1, fold.images) if self.num_fits > 1 else (0, fold.views[1:])
            own_scores, own_maps = self.score(features, slice(member, member + 1))
            scores.append(own_scores[0])
            maps.append(own_maps[:, 0])
            numbers.append(torch.full((len(own_scores[0]),), number))
        return OutOfFoldScores(torch.cat(scores), torch.cat(maps), torch.cat(numbers))
