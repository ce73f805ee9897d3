# Copyright (C) 2026 anomalib-fewshot contributors
# SPDX-License-Identifier: Apache-2.0

"""Uses of anomalib, Lightning and timm that these packages do not guarantee. Each function has a test of its own."""

from pathlib import Path

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint

from anomalib_fewshot.atomic import complete_file


def is_last_epoch(trainer: Trainer) -> bool:
    """Return whether the training ends with the current epoch, in a hook ``on_train_epoch_end``."""
    epochs_done = trainer.max_epochs not in {None, -1} and trainer.current_epoch + 1 >= trainer.max_epochs
    steps_done = trainer.max_steps != -1 and trainer.global_step >= trainer.max_steps
    return bool(trainer.should_stop or epochs_done or steps_done)


def save_checkpoint(trainer: Trainer) -> None:
    """Write the checkpoint that Lightning would have written at a validation, if the trainer writes checkpoints."""
    callback = trainer.checkpoint_callback
    is_dry_run = getattr(trainer, "fast_dev_run", False)
    if not isinstance(callback, ModelCheckpoint) or callback.save_top_k == 0 or is_dry_run:
        return
    path = callback.format_checkpoint_name(callback._monitor_candidates(trainer))  # noqa: SLF001
    with complete_file(Path(path)) as part:
        trainer.save_checkpoint(part, weights_only=False)
    trainer.strategy.barrier()  # other processes wait until the file has its name
    callback.best_model_path = path  # `Engine.best_model_path` reads it


def is_memory_bank(model: LightningModule) -> bool:
    """Return whether a model is a memory bank of anomalib's, such as ``Patchcore``, which is fitted in one call."""
    from anomalib.models.components import MemoryBankMixin  # imports all models, this package's among them

    return isinstance(model, MemoryBankMixin)
