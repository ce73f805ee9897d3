# Copyright (C) 2026 anomalib-fewshot contributors
# SPDX-License-Identifier: Apache-2.0

"""Thresholds from the support for anomalib's own models that do not train."""

import logging
from collections.abc import Iterator
from copy import deepcopy

import torch
from anomalib.data import ImageBatch, InferenceBatch
from anomalib.post_processing import PostProcessor
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import nn

from .rule import Rule
from .support_post_processor import NormalScores, SupportPostProcessor

logger = logging.getLogger(__name__)

HEADROOM = {"image": 99, "pixel": 1}  # ranges above the threshold, where upstream cuts scores off: ties have no AUROC
MIN_IMAGES = 3  # fewer leave a fit to a single image, of which some models make nothing, and their scores are NaN
MAX_FITS = 32  # of the support without a part of it: without single images, unless there are more


class SupportThreshold(Callback):
    """Set the thresholds of a memory-bank model by its own fits to all but one of the support's images.

    ``Patchcore``, ``Padim`` and others do not train, but pass over the images, ``MHPatchcore`` three times: they are
    fitted once more without each image, which the fit then scores. The highest such score is the threshold, for which
    no rate of false alarms is promised, see :class:`Rule`. It takes three images or more.
    """

    @classmethod
    def serves(cls, trainer: Trainer, count: int) -> bool:
        """Return whether thresholds of a trainer's model come from a support of so many images, and see that they do.

        They do if the model is fitted in one call, and can hold an image out of it. Those of this package set them by
        themselves; a memory bank of anomalib's gets this callback, before its checkpoints are written.
        """
        from anomalib.models.components import MemoryBankMixin  # which imports all models, these ones among them

        model, callbacks = trainer.lightning_module, trainer.callbacks  # type: ignore[attr-defined]
        if not isinstance(model, MemoryBankMixin):
            return getattr(model, "holds_out", False)
        if count < MIN_IMAGES:
            return False
        if not any(isinstance(callback, cls) for callback in callbacks):
            callbacks.insert(0, cls())
        return True

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Keep the model as it is before it has seen an image."""
        del trainer
        self._empty: nn.Module = deepcopy(pl_module.model)
        self._start = _own_buffers(pl_module)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Set the thresholds, before the model itself is fitted and a checkpoint is written."""
        post_processor = pl_module.post_processor
        if trainer.current_epoch + 1 != trainer.max_epochs:
            return
        if not isinstance(post_processor, PostProcessor):
            return
        loader = trainer.datamodule.support_dataloader()  # type: ignore[attr-defined]
        transform = getattr(pl_module.pre_processor, "transform", None) or nn.Identity()
        images = torch.cat([transform(batch.image.to(pl_module.device)) for batch in loader])
        own = post_processor if isinstance(post_processor, SupportPostProcessor) else SupportPostProcessor()
        own.fit_normal(NormalScores(Rule.ONE_FIT, self._scores(pl_module, images)))
        if own is not post_processor:
            for name, value in own.named_buffers():
                if hasattr(post_processor, name):
                    getattr(post_processor, name).copy_(value)
            for level, headroom in HEADROOM.items():
                low, high = (getattr(post_processor, f"{level}_{end}") for end in ("min", "max"))
                high += headroom * (high - low)

    @torch.no_grad()
    def _scores(self, pl_module: LightningModule, images: torch.Tensor) -> Iterator[InferenceBatch]:
        """Yield the scores of images by the model fitted to the others, as many as there are."""
        whole, fold = pl_module.model, torch.arange(len(images)) % MAX_FITS
        buffers, trainer = _own_buffers(pl_module), pl_module.trainer
        batch_size = trainer.datamodule.train_batch_size  # type: ignore[attr-defined]
        try:
            for held_out in range(int(fold.max()) + 1):
                pl_module.model = deepcopy(self._empty).train()
                _restore(pl_module, self._start)
                for _ in range(trainer.max_epochs or 1):
                    for number, batch in enumerate(images[fold != held_out].split(batch_size)):
                        pl_module.training_step(ImageBatch(image=batch), number)
                    pl_module.fit()
                yield pl_module.model.eval()(images[fold == held_out])
        finally:
            pl_module.model = whole
            _restore(pl_module, buffers)


def _own_buffers(module: nn.Module) -> dict[str, torch.Tensor]:
    """Return copies of a module's buffers, without those of its parts: how far a fit has come."""
    return {name: value.clone() for name, value in module.named_buffers(recurse=False)}


def _restore(module: nn.Module, buffers: dict[str, torch.Tensor]) -> None:
    for name, value in buffers.items():
        getattr(module, name).copy_(value)
