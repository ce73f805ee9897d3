# Copyright (C) 2026 anomalib-fewshot contributors
# SPDX-License-Identifier: Apache-2.0

"""Private steps of anomalib's post-processor, as public methods that a subclass can override."""

from typing import ClassVar

import torch
from anomalib.post_processing import PostProcessor


class OpenPostProcessor(PostProcessor):
    """anomalib's post-processor with public steps.

    Undocumented: the buffers ``_image_threshold`` and ``_pixel_threshold``, and the steps ``_normalize`` and
    ``_apply_threshold``, which anomalib calls as methods. The buffer that anomalib passes to ``_normalize`` tells the
    level. ``_checkpoint_config_keys`` can be extended.

    Attributes:
        checkpoint_keys (tuple[str, ...]): Names of additional attributes with plain values for the checkpoint.
    """

    checkpoint_keys: ClassVar[tuple[str, ...]] = ()

    @property
    def _checkpoint_config_keys(self) -> tuple[str, ...]:
        return (*super()._checkpoint_config_keys, *self.checkpoint_keys)

    def set_threshold(self, level: str, value: torch.Tensor) -> None:
        """Set the threshold of the ``level`` "image" or "pixel"."""
        getattr(self, f"_{level}_threshold").copy_(value)

    def normalize_scores(
        self,
        level: str,
        preds: torch.Tensor | None,
        norm_min: torch.Tensor,
        norm_max: torch.Tensor,
        threshold: torch.Tensor,
    ) -> torch.Tensor | None:
        """Return scores of the ``level`` "image" or "pixel" between 0 and 1, where 0.5 is the threshold."""
        del level
        return super()._normalize(preds, norm_min, norm_max, threshold)

    def threshold_scores(self, preds: torch.Tensor | None, threshold: torch.Tensor) -> torch.Tensor | None:
        """Return which scores are above a threshold, or the scores if there is none."""
        return super()._apply_threshold(preds, threshold)

    def _normalize(  # type: ignore[override]
        self,
        preds: torch.Tensor | None,
        norm_min: torch.Tensor,
        norm_max: torch.Tensor,
        threshold: torch.Tensor,
    ) -> torch.Tensor | None:
        level = "image" if norm_min is self.image_min else "pixel"
        return self.normalize_scores(level, preds, norm_min, norm_max, threshold)

    def _apply_threshold(  # type: ignore[override]
        self,
        preds: torch.Tensor | None,
        threshold: torch.Tensor,
    ) -> torch.Tensor | None:
        return self.threshold_scores(preds, threshold)
