# Copyright (C) 2026 anomalib-fewshot contributors
# SPDX-License-Identifier: Apache-2.0

"""Anomaly maps of CoftAD: distances from Gaussians and from a memory bank, fitted to images and without each fold."""

from collections.abc import Iterable, Sequence
from typing import cast

import torch
from torch import nn

from anomalib_fewshot.models.components import symmetric_whitening

from .adaptation import AdaptationSettings, OnStep, adapt_metrics
from .density import DensityEnsemble, FittedGaussian, apply_metric
from .features import FeatureGroup, Features, on_one_grid
from .folds import FoldFeatures, Folds, leave_one_out, total_moments, whiten_out_of_fold
from .memory_bank import MemoryBank

EVERY = slice(None)
# Chosen on seven sets of industrial images, see docs/research/coft_ad.md.
BANK_WEIGHT = 1.5  # of the memory bank in the anomaly map. The Gaussians have the weights of their feature groups
MEAN_SHARE = 0.25  # part of an image's mean distance from the Gaussians that is subtracted


class PatchScorer(nn.Module):
    """Gaussians of each feature group and a memory bank, fitted to all images and once more without each fold.

    The anomaly map is the sum of the distances of each patch from the Gaussians of its feature groups and from the
    memory bank, each relative to the distances of out-of-fold normal images.

    Light and texture differ between normal images, which changes the distances from the Gaussians everywhere. A part of
    their mean over the image is therefore subtracted.

    Args:
        groups (Sequence[FeatureGroup]): Feature groups.
        dim (int): Number of channels of a patch. Defaults to ``0``: the first fit decides.
        deep_dim (int): Number of channels of a patch of the last feature map. Defaults to ``0``.
    """

    def __init__(self, groups: Sequence[FeatureGroup], dim: int = 0, deep_dim: int = 0) -> None:
        super().__init__()
        self.groups = groups
        self.densities = nn.ModuleList()
        for group in groups:
            self.densities.append(DensityEnsemble(deep_dim if group.is_deep else dim))
        self.memory_bank = MemoryBank(dim)

    @property
    def num_fits(self) -> int:
        """Number of fits: one to all images, and one without each fold unless there is a single image."""
        return len(self.memory_bank.mean)

    def fit(
        self,
        folds: Folds,
        settings: AdaptationSettings,
        on_step: OnStep,
        pool: Folds = (),
        *,
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
        self.memory_bank.fit(folds, pool, always_rotated=always_rotated)

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

    def forward(
        self,
        features: Features,
        members: slice = EVERY,
        own: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Return the anomaly maps of B images by N of the fits, on the grid of the features.

        Args:
            features (Features): Features of the images.
            members (slice): Which of the fits: that to all images, then those without each fold. Defaults to all.
            own (torch.Tensor | None): Images of the memory bank that each image is not compared with, see
                :meth:`MemoryBank.find_own`. Defaults to none.

        Returns:
            torch.Tensor: Maps, shape ``(B, N, h, w)``.
        """
        maps = []
        for group, density, patches in zip(self.groups, self.densities, features.patches, strict=True):
            maps.append(group.weight * density(patches, members))
        total = torch.stack(on_one_grid(maps)).sum(0)
        total = total - MEAN_SHARE * total.mean((-2, -1), keepdim=True)
        return total + BANK_WEIGHT * self.memory_bank(features.bank, members, own)


def _content(fold: FoldFeatures) -> float:
    """Return a number that depends on the images of a fold only."""
    return float(fold.moments[-1].sum[0])
