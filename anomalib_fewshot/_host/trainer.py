# Copyright (C) 2026 anomalib-fewshot contributors
# SPDX-License-Identifier: Apache-2.0

"""Lightning's trainer: last epoch, checkpoint, callbacks, sampler."""

from pathlib import Path
from traceback import walk_tb
from typing import TYPE_CHECKING

from anomalib_fewshot.atomic import complete_file

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lightning.pytorch import Callback, Trainer


def is_last_epoch(trainer: "Trainer") -> bool:
    """Return whether the training ends with the current epoch, in a hook ``on_train_epoch_end``.

    Undocumented: that the epoch and step are counted up after this hook, and not before it.
    """
    epochs_done = trainer.max_epochs not in {None, -1} and trainer.current_epoch + 1 >= trainer.max_epochs
    steps_done = trainer.max_steps != -1 and trainer.global_step >= trainer.max_steps
    return bool(trainer.should_stop or epochs_done or steps_done)


def save_checkpoint(trainer: "Trainer") -> None:
    """Write the checkpoint that Lightning would have written at a validation, if the trainer writes checkpoints.

    Undocumented: the candidates of ``ModelCheckpoint`` for a file name, and that ``best_model_path`` may be set.
    """
    from lightning.pytorch.callbacks import ModelCheckpoint

    callback = trainer.checkpoint_callback
    is_dry_run = getattr(trainer, "fast_dev_run", False)
    if not isinstance(callback, ModelCheckpoint) or callback.save_top_k == 0 or is_dry_run:
        return
    path = callback.format_checkpoint_name(callback._monitor_candidates(trainer))  # noqa: SLF001
    with complete_file(Path(path)) as part:
        trainer.save_checkpoint(part, weights_only=False)
    trainer.strategy.barrier()  # other processes wait until the file has its name
    callback.best_model_path = path  # `Engine.best_model_path` reads it


def explain_checkpoint_error(error: BaseException) -> str | None:
    """Return what to do if a trainer was refused for its checkpoint callbacks. ``None`` for other errors.

    anomalib's engine adds a ``ModelCheckpoint`` of its own class unless the user gives one of this class. Lightning
    then refuses ``enable_checkpointing=False``, and a ``ModelCheckpoint`` of Lightning's with the same settings.
    Undocumented: the functions that refuse them, which are known from the traceback.

    Args:
        error (BaseException): Error of a fit, a validation, a test or a prediction.
    """
    functions = {frame.f_code.co_name for frame, _ in walk_tb(error.__traceback__)}
    if "_configure_checkpoint_callbacks" in functions:
        return (
            "`enable_checkpointing` must be true, got false: anomalib always adds a checkpoint callback. To write no "
            "checkpoint, give `--trainer.callbacks anomalib.callbacks.ModelCheckpoint "
            "--trainer.callbacks.save_top_k 0`."
        )
    if "_validate_callbacks_list" in functions and "ModelCheckpoint" in str(error):
        return (
            "`callbacks` must have one `ModelCheckpoint` for the same settings, got two: anomalib adds one. Use "
            "`anomalib.callbacks.ModelCheckpoint`, which replaces it."
        )
    return None


def add_callbacks(trainer: "Trainer", callbacks: "Sequence[Callback]") -> None:
    """Add callbacks before those of the trainer, unless it has callbacks of their types.

    For the ``setup`` of a data module: Lightning has ``LightningModule.configure_callbacks`` for models and nothing for
    data modules. Undocumented: that ``setup`` of the data comes before all callback hooks of a stage but
    ``configure_callbacks``, and that hooks read ``trainer.callbacks`` anew.
    """
    known = {type(callback) for callback in trainer.callbacks}  # type: ignore[attr-defined]
    new = [callback for callback in callbacks if type(callback) not in known]
    trainer.callbacks[:0] = new  # type: ignore[attr-defined]


def replaces_sampler(trainer: "Trainer") -> bool:
    """Return whether the trainer divides the batches of a loader between processes: ``use_distributed_sampler``.

    Undocumented: where the trainer keeps this argument.
    """
    return trainer._accelerator_connector.use_distributed_sampler  # noqa: SLF001
