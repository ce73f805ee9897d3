# Copyright (C) 2026 anomalib-fewshot contributors
# SPDX-License-Identifier: Apache-2.0

"""Scoring in micro-batches, with checks of pixel values and image size."""

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

CPU_MICRO_BATCH_SIZE = 2  # larger batches exceed the CPU caches and take up to four times as long per image


def micro_batches(images: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Split images, shape ``(B, C, H, W)``, into small batches on a CPU. Return a single batch on other devices."""
    return images.split(CPU_MICRO_BATCH_SIZE) if images.device.type == "cpu" else (images,)


class PixelCheck(Callback):
    """Callback that rejects images with invalid pixel values.

    It must come before the pre-processor, which is also a callback and changes the values.

    Args:
        has_range (bool): ``True``: values must be in [0, 1]. ``False``: values must be finite.
    """

    def __init__(self, *, has_range: bool) -> None:
        self.has_range = has_range

    def _check(self, trainer: Trainer, pl_module: LightningModule, batch: Batch, *args: Any, **kwargs: Any) -> None:  # noqa: ANN401
        """Check a batch.

        Raises:
            DataValidationError: If a pixel value is NaN, infinite or out of range.
        """
        del trainer, pl_module, args, kwargs
        check_pixels(batch.image, getattr(batch, "image_path", None), has_range=self.has_range)  # type: ignore[arg-type]

    on_train_batch_start = on_validation_batch_start = on_test_batch_start = on_predict_batch_start = _check


class ScoringMixin:
    """Mixin for anomalib models that scores batches, in micro-batches on a CPU, and requires a fitted model."""

    model: nn.Module
    pre_processor: nn.Module | None

    def configure_callbacks(self) -> Sequence[Callback]:
        """Return the callbacks of this package and the pixel check, followed by anomalib's callbacks."""
        callbacks = super().configure_callbacks()  # type: ignore[misc]
        callbacks = callbacks if isinstance(callbacks, Sequence) else [callbacks]
        return [*make_callbacks(), PixelCheck(has_range=self.pre_processor is not None), *callbacks]

    def check_size(self, images: torch.Tensor) -> None:
        """Check that pre-processed images, shape ``(B, 3, H, W)``, have the image size of the model.

        Raises:
            ArgumentError: If the size differs.
        """
        size, found = getattr(self.model, "image_size", None), tuple(images.shape[-2:])
        if size is not None and found != tuple(size):
            msg = (
                f"`image_size` must be the size of the pre-processed images, {found}, got {tuple(size)}. Change "
                "`image_size` or the output size of `pre_processor`."
            )
            raise ArgumentError(msg)

    def check_fitted(self) -> None:
        """Raise an error if the model is not fitted."""
        raise NotImplementedError

    def on_test_start(self) -> None:
        """Check that the model is fitted."""
        self.check_fitted()

    def on_predict_start(self) -> None:
        """Check that the model is fitted."""
        self.check_fitted()

    def score_images(self, images: torch.Tensor) -> InferenceBatch:
        """Return scores and anomaly maps of pre-processed images, shape ``(B, 3, H, W)``."""
        self.check_size(images)
        batches = [self.model(batch) for batch in micro_batches(images)]
        fields: dict[str, torch.Tensor | None] = {}
        for name in InferenceBatch._fields:
            values = [getattr(batch, name) for batch in batches]
            fields[name] = None if values[0] is None else torch.cat(values)
        return InferenceBatch(**fields)

    def validation_step(self, batch: Batch, batch_idx: int) -> STEP_OUTPUT:
        """Score a batch."""
        del batch_idx
        return batch.update(**self.score_images(batch.image)._asdict())  # type: ignore[arg-type]

    def test_step(self, batch: Batch, batch_idx: int, *args: Any, **kwargs: Any) -> STEP_OUTPUT:  # noqa: ANN401
        """Score a batch."""
        del args, kwargs
        return self.validation_step(batch, batch_idx)

    def predict_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> STEP_OUTPUT:
        """Score a batch."""
        del dataloader_idx
        return self.validation_step(batch, batch_idx)
