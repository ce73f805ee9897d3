# Copyright (C) 2026 anomalib-fewshot contributors
# SPDX-License-Identifier: Apache-2.0

"""The features that densities of a support, whole or with images held out, are fitted to."""

from collections.abc import Callable, Iterator, Sequence

import torch

from anomalib_fewshot.models.components import NUM_FIXED_VIEWS, fixed_views

from .density import PositionGaussian

MAX_BATCH = 32  # support images that go through the network at once
MAX_HELD = 8  # images whose features are held: they take as much memory as their density


class SupportMaps:
    """Feature maps of views of the support: those of few images are computed once, of more for each fit.

    Args:
        embed (Callable): Returns feature maps, shape ``(B, E, h, w)``, of images, shape ``(B, 3, H, W)``.
        support (torch.Tensor): Normalized images, shape ``(K, 3, H, W)``.
        augment (bool): Take the fixed views of each image, not the image alone.
        mean (Sequence[float]): Mean of the images' normalization, per channel.
        std (Sequence[float]): Standard deviation of the images' normalization, per channel.
    """

    def __init__(
        self,
        embed: Callable[[torch.Tensor], torch.Tensor],
        support: torch.Tensor,
        augment: bool,
        mean: Sequence[float],
        std: Sequence[float],
    ) -> None:
        self._embed = embed
        self._support = support
        self._augment = augment
        self._normalization = mean, std
        self._held = [*self._compute(support)] if len(support) <= MAX_HELD else None

    def fit(self, density: PositionGaussian, chosen: torch.Tensor) -> None:
        """Fit a density to the images of a mask, shape ``(K,)``."""
        maps = self._compute(self._support[chosen]) if self._held is None else (part[chosen] for part in self._held)
        density.fit(maps, int(chosen.sum()) * (NUM_FIXED_VIEWS if self._augment else 1))

    def _compute(self, images: torch.Tensor) -> Iterator[torch.Tensor]:
        """Yield the maps of ``MAX_BATCH`` images or fewer, view by view."""
        for part in images.split(MAX_BATCH):
            yield from map(self._embed, fixed_views(part, *self._normalization) if self._augment else [part])
