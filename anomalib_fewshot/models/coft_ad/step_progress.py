# Copyright (C) 2026 anomalib-fewshot contributors
# SPDX-License-Identifier: Apache-2.0

"""A progress bar that counts optimiser steps."""

from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import RichProgressBar


class _StepProgressBar(RichProgressBar):
    """Lightning's bar over all steps of a training, where Lightning shows one of each epoch."""

    @property
    def total_train_batches(self) -> int:
        return self.trainer.max_steps

    def _get_train_description(self, current_epoch: int) -> str:
        del current_epoch
        return "Step"

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.train_progress_bar_id is None:
            super().on_train_epoch_start(trainer, pl_module)

    def on_train_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,  # noqa: ANN401
        batch: Any,  # noqa: ANN401
        batch_idx: int,
    ) -> None:
        del batch_idx
        super().on_train_batch_end(trainer, pl_module, outputs, batch, trainer.global_step - 1)


class StepProgress(Callback):
    """Makes Lightning's rich progress bar count steps, if the training is limited by their number.

    An epoch of k images is a step or two, and a bar for each says nothing. anomalib mends the bar's epoch count in the
    same way, by another class for the bar at hand.
    """

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Change the bar."""
        del pl_module
        if trainer.max_steps > 0 and type(trainer.progress_bar_callback) is RichProgressBar:
            trainer.progress_bar_callback.__class__ = _StepProgressBar
