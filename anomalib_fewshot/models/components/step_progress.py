# Copyright (C) 2026 anomalib-fewshot contributors
# SPDX-License-Identifier: Apache-2.0

"""Progress in optimiser steps: of a training by Lightning, and of a fit."""

from collections.abc import Callable, Generator
from contextlib import contextmanager

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ProgressBar
from rich.progress import MofNCompleteColumn, Progress, TextColumn

from anomalib_fewshot._host.progress import count_steps


class StepProgress(Callback):
    """Makes Lightning's rich progress bar count steps, if the training is limited by their number.

    An epoch of k images is a step or two, and a bar for each says nothing. anomalib mends the bar's epoch count in the
    same way, by another class for the bar at hand.
    """

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Change the bar."""
        del pl_module
        count_steps(trainer)


class StepReport(ProgressBar):
    """A progress bar of Lightning that shows nothing: it tells another one of the steps of a fit.

    Args:
        tell (Callable[[int, int], object]): Takes the number of steps that are done, and that of all.
    """

    def __init__(self, tell: Callable[[int, int], object]) -> None:
        super().__init__()
        self.tell = tell

    def enable(self) -> None:
        """Do nothing: there is nothing to show."""

    def disable(self) -> None:
        """Do nothing: there is nothing to hide."""


@contextmanager
def step_progress(total: int, title: str, bar: ProgressBar | None) -> Generator[Callable[[float], None]]:
    """Show the steps of an optimization and their losses.

    Args:
        total (int): Number of steps.
        title (str): Name of the optimization.
        bar (ProgressBar | None): Progress bar of the trainer. ``None``: nothing is shown.

    Yields:
        Callable[[float], None]: To be called with the loss after each step.
    """
    columns = (*Progress.get_default_columns()[:2], MofNCompleteColumn(), TextColumn("loss: {task.fields[loss]:.3f}"))
    with Progress(*columns, disable=bar is None or isinstance(bar, StepReport) or not total) as progress:
        task = progress.add_task(title, total=total, loss=float("nan"))

        def on_step(loss: float) -> None:
            progress.update(task, advance=1, loss=loss)
            if isinstance(bar, StepReport):
                bar.tell(int(progress.tasks[0].completed), total)

        yield on_step
