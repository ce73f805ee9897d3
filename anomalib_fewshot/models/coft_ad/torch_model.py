# Copyright (C) 2026 anomalib-fewshot contributors
# SPDX-License-Identifier: Apache-2.0

"""PyTorch model of CoftAD."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import torch
from anomalib.data import InferenceBatch
from torch import nn

from anomalib_fewshot.models.components import Backbone, RankedScore, SmoothUpsampling, symmetric_whitening

from .adaptation import AdaptationSettings, OnStep, adapt_metrics
from .density import MIN_STD, DensityEnsemble, FittedGaussian, apply_metric
from .features import FEATURE_GROUPS, FeatureGroup, Features, features_of_maps, mean_of_highest, on_one_grid
from .folds import FoldFeatures, Folds, leave_one_out, total_moments, whiten_out_of_fold
from .memory_bank import MemoryBank
from .published import ContrastiveHeads, image_gaussian

EVERY = slice(None)
# Chosen on seven sets of industrial images, see docs/research/coft_ad.md.
BANK_WEIGHT = 1.5  # of the memory bank in the anomaly map. The Gaussians have the weights of their feature groups
MEAN_SHARE = 0.25  # part of an image's mean distance from the Gaussians that is subtracted


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
    """Backbone, Gaussians of its patches, and a memory bank.

    The anomaly map is the sum of the distances of each patch from the Gaussians of its feature groups and from the
    memory bank, each relative to the distances of out-of-fold normal images. Its highest part is the image's score. In
    the published form, the score is the distance of the image embedding from one Gaussian.

    Light and texture differ between normal images, which changes the distances from the Gaussians everywhere. A part of
    their mean over the image is therefore subtracted.

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
        self.densities = nn.ModuleList()
        for group in groups:
            self.densities.append(DensityEnsemble(channels[-1] if group.is_deep else dim))
        first = -1 if groups[0].is_deep else self.backbone.layers[0]
        self.upsample = SmoothUpsampling(self.backbone.grids[first], image_size)
        self.memory_bank = MemoryBank(dim)
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

    def fit(
        self,
        folds: Folds,
        settings: AdaptationSettings,
        on_step: OnStep,
        pool: Folds = (),
        always_rotated: bool = False,
    ) -> None:
        """Fit the Gaussians and the memory bank to the support set, and once more without each fold.

        Args:
            folds (Folds): Features of the folds.
            settings (AdaptationSettings): Fine-tuning of the metrics. A fit to a single fold is not fine-tuned.
            on_step (OnStep): Called with the loss of each step of the fine-tuning.
            pool (Folds): Features of unlabeled images, a fold each, that every fit contains. Defaults to none.
            always_rotated (bool): Keep patches of rotated images, if the folds have them, without a test.
        """
        subsets = leave_one_out(folds, has_pool=len(pool) > 0)
        if pool:  # the fit must not depend on which images are labeled, and the order decides what is left out at once
            subsets = [sorted([*subset, *pool], key=_content) for subset in subsets]
        fits = [self._fit_gaussians(subset, settings, on_step) for subset in subsets]
        for number, density in enumerate(cast("Iterable[DensityEnsemble]", self.densities)):
            density.fit([gaussians[number] for gaussians in fits])
        if self.published:
            for gaussians, subset in zip(fits, subsets, strict=True):
                gaussians.append(FittedGaussian(*image_gaussian(total_moments(subset, -1)), torch.zeros(1)))
            self.image_density.fit([gaussians[-1] for gaussians in fits])
        self.memory_bank.fit(folds, pool, always_rotated=always_rotated)
        self.ranked_score = RankedScore(self.ranked_score.weight).to(folds[0].views.bank.device)

    def _fit_gaussians(self, folds: Folds, settings: AdaptationSettings, on_step: OnStep) -> list[FittedGaussian]:
        """Return a Gaussian of each feature group, fitted to some folds."""
        whitened = [whiten_out_of_fold(folds, number, group) for number, group in enumerate(self.groups)]
        deltas = adapt_metrics(whitened, settings, on_step)
        gaussians = []
        for number, (group, delta) in enumerate(zip(self.groups, deltas, strict=True)):
            mean, whitening = symmetric_whitening(total_moments(folds, number), group.regularization)
            out_of_fold = torch.linalg.vector_norm(apply_metric(whitened[number].normal, delta), dim=-1)
            gaussians.append(FittedGaussian(mean.to(delta), apply_metric(whitening.to(delta), delta), out_of_fold))
        return gaussians

    def forward(self, images: torch.Tensor) -> InferenceBatch:
        """Score images.

        Args:
            images (torch.Tensor): Normalized images, shape ``(B, 3, H, W)``.

        Returns:
            InferenceBatch: Scores, shape ``(B,)``, and anomaly maps, shape ``(B, 1, H, W)``.
        """
        features = self.features(images)
        with torch.autocast(images.device.type, enabled=False):
            own = self.memory_bank.find_own(features.bank) if self.memory_bank.has_pool else None
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
        """Score images by the fit to the whole support set and by those without a fold.

        Args:
            features (Features): Features of B images.
            members (slice): Which of these N fits. Defaults to all: the whole support set, then without each fold.
            own (torch.Tensor | None): Images of the memory bank that each image is not compared with, see
                :meth:`MemoryBank.find_own`. Defaults to none.

        Returns:
            tuple[torch.Tensor, torch.Tensor]: Scores, which are logarithms of distances, shape ``(N, B)``, and maps,
            shape ``(B, N, h, w)``. The published form has only the first map.
        """
        if self.published:
            first = slice(0, 1) if members == EVERY else members
            distances = self.image_density.distances(features.embeddings, members).T
            return distances.clamp_min(MIN_STD).log(), self.anomaly_maps(features, first)
        maps = self.anomaly_maps(features, members, own)
        return mean_of_highest(maps).T, maps

    def anomaly_maps(
        self,
        features: Features,
        members: slice = EVERY,
        own: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Return the maps of B images by N of the fits, on the grid of the features: ``(B, N, h, w)``."""
        maps = []
        for group, density, patches in zip(self.groups, self.densities, features.patches, strict=True):
            maps.append(group.weight * density(patches, members))
        total = torch.stack(on_one_grid(maps)).sum(0)
        total = total - MEAN_SHARE * total.mean((-2, -1), keepdim=True)
        return total + BANK_WEIGHT * self.memory_bank(features.bank, members, own)

    def score_support(self, folds: Folds) -> torch.Tensor:
        """Score the images of each fold as images of the pool are scored: by the fit to all, without themselves."""
        scores = []
        for fold in folds:
            own = self.memory_bank.find_own(fold.images.bank)
            scores.append(self.score(fold.images, slice(0, 1), own)[0][0])
        return torch.cat(scores)

    @property
    def num_fits(self) -> int:
        """Number of fits: one to the whole support set, and one without each fold unless there is a single image."""
        return len(self.memory_bank.mean)

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


def _content(fold: FoldFeatures) -> float:
    """Return a number that depends on the images of a fold only."""
    return float(fold.moments[-1].sum[0])
