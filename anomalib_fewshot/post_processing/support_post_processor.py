# Copyright (C) 2026 anomalib-fewshot contributors
# SPDX-License-Identifier: Apache-2.0

"""Thresholds from held-out normal images, where there are no validation images."""

from collections.abc import Iterable
from typing import Any

import torch
from anomalib.data import InferenceBatch
from anomalib.post_processing import PostProcessor


class SupportPostProcessor(PostProcessor):
    """anomalib's post-processor, which can also be fitted to scores of normal images alone.

    A validation fits it as upstream. Without one, a model calls :meth:`fit_normal`: the threshold is the highest score,
    and the range of scores that are shown between 0 and 1 is wider than the scores', so that two anomalies of different
    scores are not both cut off at 1.

    Args:
        image_headroom (float): Widths of the normal scores' range that are added above it. Defaults to ``9.0``.
        pixel_headroom (float): The same of the anomaly maps. Defaults to ``1.0``.
        **kwargs: Arguments of anomalib's ``PostProcessor``.

    Raises:
        ValueError: If a headroom is below 0.
    """

    def __init__(self, image_headroom: float = 9.0, pixel_headroom: float = 1.0, **kwargs: Any) -> None:  # noqa: ANN401
        super().__init__(**kwargs)
        for name, value in (("image_headroom", image_headroom), ("pixel_headroom", pixel_headroom)):
            if value < 0:
                msg = f"`{name}` must not be below 0, got {value}."
                raise ValueError(msg)
        self.image_headroom = image_headroom
        self.pixel_headroom = pixel_headroom

    @property
    def _checkpoint_config_keys(self) -> tuple[str, ...]:
        return (*super()._checkpoint_config_keys, "image_headroom", "pixel_headroom")

    @torch.no_grad()
    def fit_normal(self, batches: Iterable[InferenceBatch]) -> None:
        """Take thresholds and ranges from scores of normal images.

        Args:
            batches (Iterable[InferenceBatch]): Raw scores, shape ``(B,)``, and anomaly maps, shape ``(B, 1, H, W)``, if
                there are any.
        """
        limits: dict[str, list[torch.Tensor]] = {"image": [], "pixel": []}
        for batch in batches:
            for level, values in (("image", batch.pred_score), ("pixel", batch.anomaly_map)):
                if values is not None:
                    limits[level].append(torch.stack(values.aminmax()))
        for level, found in limits.items():
            if found:
                lowest, highest = (end(torch.stack(found)) for end in (torch.amin, torch.amax))
                self._set(level, lowest, highest)

    def _set(self, level: str, lowest: torch.Tensor, highest: torch.Tensor) -> None:
        width = highest - lowest if highest > lowest else highest.abs()  # of a single score: the score itself
        if self.enable_thresholding:
            getattr(self, f"_{level}_threshold").copy_(highest)
        if self.enable_normalization:
            getattr(self, f"{level}_min").copy_(lowest)
            getattr(self, f"{level}_max").copy_(highest + getattr(self, f"{level}_headroom") * width)
