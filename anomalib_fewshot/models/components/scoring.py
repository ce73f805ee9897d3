# Copyright (C) 2026 anomalib-fewshot contributors
# SPDX-License-Identifier: Apache-2.0

"""Scoring of batches in the parts that are fastest."""

from collections.abc import Sequence
from typing import Any

import torch
from anomalib.data import Batch, InferenceBatch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities.types import STEP_OUTPUT
from torch import nn

from anomalib_fewshot.data.support import make_callbacks
from anomalib_fewshot.errors import ArgumentError
from anomalib_fewshot.pre_processing import check_pixels

IMAGES_AT_ONCE = 2  # on a processor: maps of many images do not stay in its caches, and take up to four times as long


def parts_of(images: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Return images, shape ``(B, C, H, W)``, in the parts that are fastest: few at once on a processor, else all."""
    return images.split(IMAGES_AT_ONCE) if images.device.type == "cpu" else (images,)


class PixelCheck(Callback):
    """Refuse images with wrong pixel values before the pre-processor, which is a callback too, changes them.

    Args:
        has_range (bool): Values must be between 0 and 1. ``False``: they must be finite.
    """

    def __init__(self, *, has_range: bool) -> None:
        self.has_range = has_range

    def _check(self, trainer: Trainer, pl_module: LightningModule, batch: Batch, *args: Any, **kwargs: Any) -> None:  # noqa: ANN401
        """Check a batch.

        Raises:
            DataValidationError: If a pixel value is NaN, infinite or out of range.
        """
        del trainer, pl_module, args, kwargs
        check_pixels(batch.image, getattr(batch, "image_path", None), has_range=self.has_range)

    on_train_batch_start = on_validation_batch_start = on_test_batch_start = on_predict_batch_start = _check


class ScoringMixin:
    """Part of an anomalib model that scores batches in parts, once it is fitted."""

    model: nn.Module
    pre_processor: nn.Module | None

    def configure_callbacks(self) -> Sequence[Callback]:
        """Return anomalib's callbacks, and before them this package's and a check of the pixel values."""
        callbacks = super().configure_callbacks()  # type: ignore[misc]
        callbacks = callbacks if isinstance(callbacks, Sequence) else [callbacks]
        return [*make_callbacks(), PixelCheck(has_range=self.pre_processor is not None), *callbacks]

    def check_size(self, images: torch.Tensor) -> None:
        """Raise if pre-processed images, shape ``(B, 3, H, W)``, have another size than the model.

        Raises:
            ArgumentError: If they have.
        """
        size, found = getattr(self.model, "image_size", None), tuple(images.shape[-2:])
        if size is not None and found != tuple(size):
            msg = (
                f"`image_size` must be the size of the pre-processed images, {found}, got {tuple(size)}. Resize to "
                "this height and width in `pre_processor`, or change `image_size`."
            )
            raise ArgumentError(msg)

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
        self.check_size(images)
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
