# Copyright (C) 2026 anomalib-fewshot contributors
# SPDX-License-Identifier: Apache-2.0

"""Thresholds from the support set for anomalib's memory banks, such as ``Patchcore``."""

import logging
from collections.abc import Iterable, Iterator
from copy import deepcopy
from typing import TYPE_CHECKING, Any, cast

import torch
from anomalib.data import InferenceBatch
from anomalib.post_processing import PostProcessor
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import nn

from anomalib_fewshot._host import fit_memory_bank, is_last_epoch, is_memory_bank
from anomalib_fewshot.data.support import SupportDataModule, can_fit_thresholds
from anomalib_fewshot.models.components import isolated_seed
from anomalib_fewshot.post_processing import CalibrationScheme, CalibrationScores, SupportPostProcessor

if TYPE_CHECKING:
    from anomalib.models.components import AnomalibModule

logger = logging.getLogger(__name__)

# Score range above the threshold, in widths of the range below. anomalib clips scores above it, and clipped scores tie.
HEADROOM = {"image": 99, "pixel": 1}
MAX_FITS = 32  # with more support images, each fit leaves several images out


class SupportThreshold(Callback):
    """Set the thresholds of a memory bank to its highest leave-one-out score on the support set.

    Memory banks such as ``Patchcore`` and ``Padim`` are not trained. They are fitted again without each support image,
    and this fit scores the image. The threshold has no guaranteed false-alarm rate, see :class:`CalibrationScheme`.
    The support set must have at least three images. If ``append_unlabeled`` adds unlabeled images to the training
    images, each fit contains them, and they count towards the three images.
    """

    def __init__(self) -> None:
        self._empty: nn.Module | None = None  # the model before its fit
        self._start: dict[str, torch.Tensor] = {}

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Copy the model before its fit, if the thresholds are calibrated on the support set."""
        self._empty = None
        datamodule = trainer.datamodule  # type: ignore[attr-defined]
        if not isinstance(datamodule, SupportDataModule) or hasattr(datamodule, "val_data"):
            return
        dataset: Any = datamodule.support_dataloader().dataset
        count = len(dataset) + datamodule.num_appended
        if is_memory_bank(pl_module) and can_fit_thresholds(pl_module, count):
            self._empty = deepcopy(cast("nn.Module", pl_module.model))
            self._start = _own_buffers(pl_module)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Set the thresholds, before the model is fitted to all images and a checkpoint is written."""
        post_processor = pl_module.post_processor
        if self._empty is None or not is_last_epoch(trainer) or not isinstance(post_processor, PostProcessor):
            return
        datamodule = trainer.datamodule  # type: ignore[attr-defined]
        support = list(_preprocessed(pl_module, datamodule.support_dataloader()))
        own = post_processor if isinstance(post_processor, SupportPostProcessor) else SupportPostProcessor()
        with isolated_seed(datamodule.seed):
            own.fit_normal(
                CalibrationScores(
                    CalibrationScheme.LEAVE_ONE_OUT,
                    list(self._scores(cast("AnomalibModule", pl_module), self._empty, torch.cat(support))),
                ),
            )
        self._empty = None
        if own is not post_processor:
            for name, value in own.named_buffers():
                if hasattr(post_processor, name):
                    getattr(post_processor, name).copy_(value)
            for level, headroom in HEADROOM.items():
                low, high = (getattr(post_processor, f"{level}_{end}") for end in ("min", "max"))
                high += headroom * (high - low)

    @torch.no_grad()
    def _scores(self, pl_module: "AnomalibModule", empty: nn.Module, images: torch.Tensor) -> Iterator[InferenceBatch]:
        """Yield the leave-one-out scores of images, or out-of-fold scores if there are more than ``MAX_FITS``."""
        whole, fold = pl_module.model, torch.arange(len(images)) % MAX_FITS
        buffers, trainer = _own_buffers(pl_module), pl_module.trainer
        try:
            for held_out in range(int(fold.max()) + 1):
                pl_module.model = deepcopy(empty).train()
                _restore(pl_module, self._start)
                for _ in range(trainer.max_epochs or 1):
                    fit_memory_bank(pl_module, _training_batches(pl_module, images[fold != held_out]))
                yield pl_module.model.eval()(images[fold == held_out])
        finally:
            pl_module.model = whole
            _restore(pl_module, buffers)


def _training_batches(pl_module: LightningModule, support: torch.Tensor) -> Iterator[torch.Tensor]:
    """Yield the batches of pre-processed support images, then those of the unlabeled images if they are appended."""
    datamodule: SupportDataModule = pl_module.trainer.datamodule  # type: ignore[attr-defined]
    if len(support):
        yield from support.split(datamodule.train_batch_size)
    if datamodule.append_unlabeled:
        yield from _preprocessed(pl_module, datamodule.unlabeled_dataloader())


def _preprocessed(pl_module: LightningModule, loader: Iterable[Any]) -> Iterator[torch.Tensor]:
    """Yield the pre-processed images of a loader, on the device of the model."""
    transform = getattr(pl_module.pre_processor, "transform", None) or nn.Identity()
    for batch in loader:
        yield transform(batch.image.to(pl_module.device))


def _own_buffers(module: nn.Module) -> dict[str, torch.Tensor]:
    """Return copies of the direct buffers of a module, which hold the state of its fit."""
    return {name: value.clone() for name, value in module.named_buffers(recurse=False)}


def _restore(module: nn.Module, buffers: dict[str, torch.Tensor]) -> None:
    for name, value in buffers.items():
        getattr(module, name).copy_(value)
