# Copyright (C) 2026 anomalib-fewshot contributors
# SPDX-License-Identifier: Apache-2.0

"""Progress in optimiser steps: of a training by Lightning, and of a fit."""

from collections.abc import Iterable
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import RichProgressBar
from rich.progress import MofNCompleteColumn, Progress, TextColumn


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


def show_steps(losses: Iterable[float], total: int, title: str, *, shown: bool) -> float:
    """Run an optimisation that yields the loss of each step, and show both.

    Args:
        losses (Iterable[float]): Loss of each step.
        total (int): Number of steps.
        title (str): What is optimised.
        shown (bool): Whether to show anything.

    Returns:
        float: The last loss. NaN without a step.
    """
    loss = float("nan")
    columns = (*Progress.get_default_columns()[:2], MofNCompleteColumn(), TextColumn("loss: {task.fields[loss]:.3f}"))
    with Progress(*columns, disable=not shown) as progress:
        task = progress.add_task(title, total=total, loss=loss)
        for loss in losses:
            progress.update(task, advance=1, loss=loss)
    return loss
