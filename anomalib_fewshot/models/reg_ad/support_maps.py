# Copyright (C) 2026 anomalib-fewshot contributors
# SPDX-License-Identifier: Apache-2.0

"""Feature maps of the support set, to which densities of all images or of all but one fold are fitted."""

from collections.abc import Callable, Iterator, Sequence

import torch

from anomalib_fewshot.models.components import NUM_FIXED_VIEWS, fixed_views

from .density import PositionGaussian

MAX_BATCH_SIZE = 32  # support images per forward pass
MAX_CACHED_IMAGES = 8  # the features of so many images need about as much memory as their density


class SupportMaps:
    """Feature maps of the support set. They are cached for a few images, and computed for each fit for more images.

    Args:
        embed (Callable): Function that returns feature maps: ``(B, 3, H, W)`` -> ``(B, E, h, w)``.
        support (torch.Tensor): Normalized images, shape ``(K, 3, H, W)``.
        augment (bool): Use the fixed views of each image instead of the image only.
        mean (Sequence[float]): Normalization mean of the images, per channel.
        std (Sequence[float]): Normalization standard deviation of the images, per channel.
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
        self._cache = [*self._compute(support)] if len(support) <= MAX_CACHED_IMAGES else None

    def fit(self, density: PositionGaussian, mask: torch.Tensor) -> None:
        """Fit a density to the images that a boolean mask, shape ``(K,)``, selects."""
        count = int(mask.sum()) * (NUM_FIXED_VIEWS if self._augment else 1)
        if self._cache is None:
            density.fit(self._compute(self._support[mask]), count)
        else:
            density.fit((maps[mask] for maps in self._cache), count)

    def _compute(self, images: torch.Tensor) -> Iterator[torch.Tensor]:
        """Yield feature maps in batches of at most ``MAX_BATCH_SIZE`` images and one view."""
        for batch in images.split(MAX_BATCH_SIZE):
            views = fixed_views(batch, *self._normalization) if self._augment else [batch]
            for view in views:
                yield self._embed(view)
