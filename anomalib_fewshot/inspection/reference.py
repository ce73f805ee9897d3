# Copyright (C) 2026 anomalib-fewshot contributors
# SPDX-License-Identifier: Apache-2.0

"""The good pictures as a reference: the most similar region of a new picture, and warnings about unusual pictures."""

from collections.abc import Sequence

import numpy as np
import torch

from anomalib_fewshot.models import CoftAD
from anomalib_fewshot.models.coft_ad.features import Features

from .nearest import NearestGood, extract_features, peak_position, position_as_fractions
from .support_check import Comparison, SupportCheck

MAX_COMPARED = 500  # new pictures: more do not change the median
NEIGHBORHOOD = 5  # patches on each side of a region


class GoodReference:
    """Good pictures that new ones are compared with.

    Args:
        model (CoftAD): The model, in evaluation mode.
        names (Sequence[str]): Names of the K good pictures in messages.
        sizes (Sequence[tuple[int, int]]): Their widths and heights in pixels.
        inputs (torch.Tensor): Their network inputs, shape ``(K, 3, H, W)``.
    """

    def __init__(
        self,
        model: CoftAD,
        names: Sequence[str],
        sizes: Sequence[tuple[int, int]],
        inputs: torch.Tensor,
    ) -> None:
        features = extract_features(model, inputs.split(1))
        self.sizes = list(sizes)
        self._nearest = NearestGood(features.bank, NEIGHBORHOOD)
        self._check = SupportCheck(names, inputs, features)
        self._compared: list[Comparison] = []

    def nearest(self, features: Features, heat: np.ndarray, size: tuple[int, int]) -> list[float]:
        """Return the region of a good picture that is most similar to the most anomalous place of a new picture.

        Args:
            features (Features): Features of the new picture, with a batch of one.
            heat (np.ndarray): Its anomaly map, shape ``(H, W)``.
            size (tuple[int, int]): Its width and height in pixels.

        Returns:
            list[float]: Number of the good picture; x and y of the center of the region there, and its side; x and y of
            the place in the new picture. All in pixels.
        """
        grid = (features.bank.shape[1], features.bank.shape[2])
        position = peak_position(heat, grid)
        match = self._nearest(features.bank[0], position)
        width, height = self.sizes[match.index]
        side = NEIGHBORHOOD * width / grid[1]
        x, y = position_as_fractions(position, grid)
        values = (match.x * width, match.y * height, side, x * size[0], y * size[1])
        return [match.index, *(round(value, 1) for value in values)]

    def compare(self, name: str, image: torch.Tensor, features: Features) -> None:
        """Compare a new picture with the good ones, for :meth:`warnings`. Only the first 500 count.

        Args:
            name (str): Name in messages.
            image (torch.Tensor): Network input, shape ``(1, 3, H, W)``.
            features (Features): Features, with a batch of one.
        """
        if len(self._compared) < MAX_COMPARED:
            self._compared += self._check.compare([name], image, features)

    def warnings(self) -> list[str]:
        """Return warnings about unusual good pictures, and about new pictures that differ from all of them."""
        return [*self._check.warnings(), *self._check.new_warnings(self._compared)]
