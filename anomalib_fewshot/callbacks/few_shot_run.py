# Copyright (C) 2026 anomalib-fewshot contributors
# SPDX-License-Identifier: Apache-2.0

"""Manifest, checkpoint and thresholds of a run with few-shot data."""

from copy import deepcopy
from pathlib import Path
from typing import Any, cast

from anomalib import LearningType
from anomalib.data import Batch
from anomalib.post_processing import PostProcessor
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn

from anomalib_fewshot._host import save_checkpoint
from anomalib_fewshot.data.support import SupportDataModule
from anomalib_fewshot.errors import NotFittedError
from anomalib_fewshot.models.components import FittedMixin
from anomalib_fewshot.post_processing import SupportPostProcessor


class FewShotRun(Callback):
    """Write the manifest of the support set after a fit, and raise an error if the fit ran no training step.

    For models of anomalib, the callback also writes a missing checkpoint, and preserves the thresholds of the fit in
    ``Engine.validate``. The models of this package do both themselves. With other data the callback does nothing.
    """

    def __init__(self) -> None:
        self._trained = False
        self._saved = False
        self._thresholds: dict[str, Any] | None = None

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Reset the state of an earlier run."""
        del trainer, pl_module
        self._trained = self._saved = False

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Batch, batch_idx: int) -> None:
        """Record that a training step changes the model."""
        del trainer, pl_module, batch, batch_idx
        self._trained, self._saved = True, False

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Record that the current model is saved."""
        del trainer, pl_module, checkpoint
        self._saved = True

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write a checkpoint of a model of anomalib if Lightning wrote none after the last step."""
        if (
            isinstance(_datamodule(trainer), SupportDataModule)
            and not isinstance(pl_module, FittedMixin)
            and not self._saved
        ):
            save_checkpoint(trainer)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the manifest of the support set.

        Raises:
            NotFittedError: If the fit of a model of anomalib ran no training step.
        """
        datamodule = _datamodule(trainer)
        if not isinstance(datamodule, SupportDataModule):
            return
        if self._trained:
            _write_manifests(trainer, datamodule)
        elif trainer.ckpt_path is None and not isinstance(pl_module, FittedMixin):
            msg = (
                f"{type(pl_module).__name__} was not fitted, because the trainer ran no training step. Check "
                "`max_epochs`, `max_steps` and `limit_train_batches`. For a second fit, create a new `Engine`."
            )
            raise NotFittedError(msg)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save the thresholds of a model of anomalib, because its post-processor replaces them in every validation."""
        self._thresholds = None
        post_processor = getattr(pl_module, "post_processor", None)
        if (
            isinstance(_datamodule(trainer), SupportDataModule)
            and trainer.state.fn == TrainerFn.VALIDATING
            and not _is_fitted_by_validation(pl_module)
            and isinstance(post_processor, PostProcessor)
            and not isinstance(post_processor, SupportPostProcessor)
        ):
            self._thresholds = deepcopy(post_processor.state_dict())

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Restore the thresholds, or write the manifest of a model that anomalib fits in a validation."""
        datamodule = _datamodule(trainer)
        if self._thresholds is not None:
            cast("PostProcessor", pl_module.post_processor).load_state_dict(self._thresholds)
            self._thresholds = None
        is_fit = trainer.state.fn == TrainerFn.VALIDATING and pl_module.learning_type == LearningType.FEW_SHOT
        if is_fit and isinstance(datamodule, SupportDataModule):
            _write_manifests(trainer, datamodule)


def _datamodule(trainer: Trainer) -> Any:  # noqa: ANN401  a trainer accepts any data
    return getattr(trainer, "datamodule", None)


def _write_manifests(trainer: Trainer, datamodule: SupportDataModule) -> None:
    if trainer.is_global_zero:
        datamodule.write_manifests(Path(trainer.default_root_dir))


def _is_fitted_by_validation(model: LightningModule) -> bool:
    return getattr(model, "learning_type", None) in {LearningType.FEW_SHOT, LearningType.ZERO_SHOT}
