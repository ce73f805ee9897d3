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

    Undocumented: the epoch and step counters are incremented after this hook.
    """
    epochs_done = trainer.max_epochs not in {None, -1} and trainer.current_epoch + 1 >= trainer.max_epochs
    steps_done = trainer.max_steps != -1 and trainer.global_step >= trainer.max_steps
    return bool(trainer.should_stop or epochs_done or steps_done)


def save_checkpoint(trainer: "Trainer") -> None:
    """Write the checkpoint that Lightning would write after a validation, if the trainer writes checkpoints.

    Undocumented: the values of ``ModelCheckpoint`` for the file name, and assignments to ``best_model_path``.
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
    """Return a clearer message for Lightning's errors about checkpoints. ``None`` for other errors.

    A missing checkpoint: a failed run has none, but ``latest`` points to it. The message names the newest checkpoint of
    the other runs.

    Checkpoint callbacks: anomalib's engine adds its ``ModelCheckpoint`` unless the user gives one of this class.
    Lightning then rejects ``enable_checkpointing=False``, and its own ``ModelCheckpoint`` with the same settings.

    Undocumented: the names of the functions that raise the errors, and an argument of ``resume_start``.

    Args:
        error (BaseException): Error of a fit, a validation, a test or a prediction.
    """
    functions = {frame.f_code.co_name: frame for frame, _ in walk_tb(error.__traceback__)}
    if "resume_start" in functions and isinstance(error, FileNotFoundError):
        path = Path(functions["resume_start"].f_locals["checkpoint_path"])
        newest = _newest_checkpoint(path)
        advice = "Train a model first." if newest is None else f"The newest checkpoint is {newest}"
        return f"`ckpt_path` must exist, got {path}. The run may have failed. {advice}"
    if "_configure_checkpoint_callbacks" in functions:
        return (
            "`enable_checkpointing` must be true, got false: anomalib always adds a checkpoint callback. To disable "
            "checkpoints, set `--trainer.callbacks anomalib.callbacks.ModelCheckpoint "
            "--trainer.callbacks.save_top_k 0`."
        )
    if "_validate_callbacks_list" in functions and "ModelCheckpoint" in str(error):
        return (
            "`callbacks` must have one `ModelCheckpoint` for the same settings, got two: anomalib adds one. Use "
            "`anomalib.callbacks.ModelCheckpoint`, which replaces it."
        )
    return None


def _newest_checkpoint(missing: Path) -> Path | None:
    """Return the newest checkpoint of the runs ``v0``, ``v1`` and so on beside the run of a missing checkpoint."""
    if len(missing.parents) < 4:
        return None
    checkpoints = missing.parents[3].glob(f"v*/{'/'.join(missing.parts[-3:])}")
    return max(checkpoints, key=lambda path: path.stat().st_mtime, default=None)


def add_callbacks(trainer: "Trainer", callbacks: "Sequence[Callback]") -> None:
    """Add callbacks before those of the trainer, unless the trainer already has callbacks of the same types.

    This is for the ``setup`` of a data module, because only models have ``configure_callbacks``. Undocumented:
    ``setup`` of the data module runs before the callback hooks of a stage, and each hook reads ``trainer.callbacks``
    again.
    """
    known = {type(callback) for callback in trainer.callbacks}  # type: ignore[attr-defined]
    new = [callback for callback in callbacks if type(callback) not in known]
    trainer.callbacks[:0] = new  # type: ignore[attr-defined]


def replaces_sampler(trainer: "Trainer") -> bool:
    """Return the argument ``use_distributed_sampler`` of the trainer: it divides batches between processes.

    Undocumented: the attribute of this argument.
    """
    return trainer._accelerator_connector.use_distributed_sampler  # noqa: SLF001
