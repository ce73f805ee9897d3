# Copyright (C) 2026 anomalib-fewshot contributors
# SPDX-License-Identifier: Apache-2.0

"""Progress bars that count optimizer steps, for Lightning trainings and for fits."""

from collections.abc import Callable, Generator
from contextlib import contextmanager

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ProgressBar
from rich.progress import MofNCompleteColumn, Progress, TextColumn

from anomalib_fewshot._host.progress import count_steps


class StepProgress(Callback):
    """Callback that makes Lightning's rich progress bar count steps if ``max_steps`` limits the training.

    An epoch on k images has one or two steps, so a bar per epoch is not informative. anomalib changes the epoch count
    of the bar in the same way: it replaces the class of the existing bar.
    """

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Change the progress bar."""
        del pl_module
        count_steps(trainer)


class StepReport(ProgressBar):
    """Lightning progress bar without output, which reports the steps of a fit to a function.

    Args:
        report_progress (Callable[[int, int], object]): Function of the number of finished steps and the total number.
    """

    def __init__(self, report_progress: Callable[[int, int], object]) -> None:
        super().__init__()
        self.report_progress = report_progress

    def enable(self) -> None:
        """Do nothing, because there is no output."""

    def disable(self) -> None:
        """Do nothing, because there is no output."""


@contextmanager
def step_progress(total: int, title: str, bar: ProgressBar | None) -> Generator[Callable[[float], None]]:
    """Show the steps and the loss of an optimization.

    Args:
        total (int): Number of steps.
        title (str): Title of the progress bar.
        bar (ProgressBar | None): Progress bar of the trainer. ``None``: there is no output.

    Yields:
        Callable[[float], None]: Function to call with the loss after each step.
    """
    columns = (*Progress.get_default_columns()[:2], MofNCompleteColumn(), TextColumn("loss: {task.fields[loss]:.3f}"))
    is_hidden = bar is None or isinstance(bar, StepReport) or not total
    with Progress(*columns, disable=is_hidden) as progress:
        task = progress.add_task(title, total=total, loss=float("nan"))

        def on_step(loss: float) -> None:
            progress.update(task, advance=1, loss=loss)
            if isinstance(bar, StepReport):
                bar.report_progress(int(progress.tasks[0].completed), total)

        yield on_step
