# Copyright (C) 2026 anomalib-fewshot contributors
# SPDX-License-Identifier: Apache-2.0

"""Lightning's rich progress bar."""

from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import RichProgressBar


class StepProgressBar(RichProgressBar):
    """Progress bar over all training steps. Lightning's bar starts again in each epoch.

    Undocumented: ``total_train_batches``, ``_get_train_description`` and ``train_progress_bar_id``.
    """

    @property
    def total_train_batches(self) -> int:
        """Number of steps of the training."""
        return self.trainer.max_steps

    def _get_train_description(self, current_epoch: int) -> str:
        del current_epoch
        return "Step"

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the bar in the first epoch."""
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
        """Show the number of steps."""
        del batch_idx
        super().on_train_batch_end(trainer, pl_module, outputs, batch, trainer.global_step - 1)


def count_steps(trainer: Trainer) -> None:
    """Make the progress bar count steps, if it is Lightning's rich bar and ``max_steps`` is set.

    Undocumented: the class of a bar may be replaced. anomalib's ``MaxStepsProgressCallback`` does the same.
    """
    if trainer.max_steps > 0 and type(trainer.progress_bar_callback) is RichProgressBar:
        trainer.progress_bar_callback.__class__ = StepProgressBar
