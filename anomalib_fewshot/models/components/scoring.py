# Copyright (C) 2026 anomalib-fewshot contributors
# SPDX-License-Identifier: Apache-2.0

"""Scoring of batches in the parts that are fastest."""

from typing import Any

import torch
from anomalib.data import Batch, InferenceBatch
from lightning.pytorch.utilities.types import STEP_OUTPUT
from torch import nn

IMAGES_AT_ONCE = 2  # on a processor: maps of many images do not stay in its caches, and take up to four times as long


def parts_of(images: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Return images, shape ``(B, C, H, W)``, in the parts that are fastest: few at once on a processor, else all."""
    return images.split(IMAGES_AT_ONCE) if images.device.type == "cpu" else (images,)


class ScoringMixin:
    """Part of an anomalib model that scores batches in parts, once it is fitted."""

    model: nn.Module

    def check_fitted(self) -> None:
        """Raise if the model cannot score."""
        raise NotImplementedError

    def on_test_start(self) -> None:
        """Refuse to score without a fit."""
        self.check_fitted()

    def on_predict_start(self) -> None:
        """Refuse to score without a fit."""
        self.check_fitted()

    def score_images(self, images: torch.Tensor) -> InferenceBatch:
        """Score pre-processed images, shape ``(B, 3, H, W)``, as the torch model does."""
        parts = zip(*(self.model(part) for part in parts_of(images)), strict=True)
        return InferenceBatch(*(None if part[0] is None else torch.cat(part) for part in parts))

    def validation_step(self, batch: Batch, batch_idx: int) -> STEP_OUTPUT:
        """Score a batch."""
        del batch_idx
        return batch.update(**self.score_images(batch.image)._asdict())

    def test_step(self, batch: Batch, batch_idx: int, *args: Any, **kwargs: Any) -> STEP_OUTPUT:  # noqa: ANN401
        """Score a batch."""
        del args, kwargs
        return self.validation_step(batch, batch_idx)

    def predict_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> STEP_OUTPUT:
        """Score a batch."""
        del dataloader_idx
        return self.validation_step(batch, batch_idx)
