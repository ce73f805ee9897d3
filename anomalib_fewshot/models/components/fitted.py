# Copyright (C) 2026 anomalib-fewshot contributors
# SPDX-License-Identifier: Apache-2.0

"""Lifecycle of the models: optional training, one fit to the support set, then scoring with fixed parameters."""

import logging
from abc import abstractmethod
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar

import torch
from anomalib import LearningType
from anomalib.data import Batch
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import nn

from anomalib_fewshot._cli.console import print_messages_once
from anomalib_fewshot._cli.signals import raise_on_signals
from anomalib_fewshot._host import is_last_epoch, save_checkpoint
from anomalib_fewshot.data.support import count_unlabeled, support_dataloader, support_digest
from anomalib_fewshot.errors import ArgumentError, CheckpointMismatchError, NotFittedError
from anomalib_fewshot.metrics import CategoryEvaluator
from anomalib_fewshot.post_processing import CalibrationScores, SupportPostProcessor
from anomalib_fewshot.pre_processing import check_pixels

from .export import MetadataExportMixin
from .scoring import ScoringMixin

logger = logging.getLogger(__name__)

WEIGHT_SOURCE_ARGS = {"pre_trained": False, "weights": None, "network": None}  # a checkpoint contains these weights


class FittedMixin(ScoringMixin, MetadataExportMixin):
    """Mixin for anomalib models that are fitted to a support set in one call and cannot score before.

    :meth:`fit` runs once at the end of the training: before the final validation, or after the last epoch without
    validation data. The calibration scores that it returns set the threshold, and a checkpoint is written. Test and
    prediction do not change the model. The mixin corresponds to anomalib's ``MemoryBankMixin`` and supports models with
    a training phase.

    Attributes:
        is_fitted (torch.Tensor): Whether the model is fitted, a boolean scalar.
        fitted_support (str | None): Digest of the support set that the model was fitted to.
        score_arguments (tuple[str, ...]): Names of constructor arguments that affect scores but are not stored in
            weights or buffers. A checkpoint can only be loaded into a model with the same values.
    """

    score_arguments: ClassVar[tuple[str, ...]] = ()

    def __init__(self, *args: Any, **kwargs: Any) -> None:  # noqa: ANN401
        print_messages_once()
        raise_on_signals()
        super().__init__(*args, **kwargs)
        self.register_buffer("is_fitted", torch.tensor(data=False))
        self.is_fitted: torch.Tensor
        self.fitted_support: str | None = None
        self._fitted_in_run = False
        self._saved_in_run = False

    def _apply(self, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> "FittedMixin":
        """Apply a device move. Reject data type changes by ``half()``, ``double()``, ``to(dtype)`` or Lightning.

        Raises:
            ArgumentError: If the data type is not float32.
        """
        dtype = fn(torch.zeros(1)).dtype
        if dtype != torch.float32:
            msg = (
                f"{type(self).__name__} must keep its weights in torch.float32, got {dtype}, which is not accurate "
                "enough or not supported. Set the `precision` of the engine to '32-true', '16-mixed' or 'bf16-mixed'."
            )
            raise ArgumentError(msg)
        return super()._apply(fn, recurse)

    @abstractmethod
    def fit(self) -> CalibrationScores:
        """Fit the model to the support set.

        Returns:
            CalibrationScores: Scores of the normal images, out-of-fold if possible. They are not used and may be empty
            during validation (``self.trainer.validating``), because validation images then set the threshold.
        """

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Return ``None``. Models with a training phase override this method."""
        return None

    def on_fit_start(self) -> None:
        """Check that a finished training is resumed with the same support set.

        Raises:
            CheckpointMismatchError: If the checkpoint was fitted to another support set.
        """
        self._fitted_in_run = self._saved_in_run = False
        if self.trainer.ckpt_path is None or not self.is_fitted:
            return
        digest = support_digest(self.trainer.datamodule)  # type: ignore[attr-defined]
        if digest != self.fitted_support:
            msg = (
                f"`ckpt_path` must be a checkpoint that was fitted to the support set {digest}, got one that was "
                f"fitted to {self.fitted_support}. Remove `ckpt_path` to fit a new model."
            )
            raise CheckpointMismatchError(msg)

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        """Discard an earlier fit. Resuming a finished training runs no batch, so the fit is kept."""
        del batch, batch_idx
        self.is_fitted.fill_(value=False)

    def on_validation_start(self) -> None:
        """Fit before the validation at the end of the training."""
        if self.trainer.state.fn == TrainerFn.FITTING:
            self._fit(has_validation=True)
        self.check_fitted()

    def on_train_epoch_end(self) -> None:
        """Fit at the end of the last epoch, before Lightning writes its checkpoint."""
        if not self.is_fitted and is_last_epoch(self.trainer):
            self._fit(has_validation=False)

    def on_train_end(self) -> None:
        """Save the fitted model if Lightning has not saved it."""
        if not self.is_fitted:  # the training stopped in the middle of an epoch
            self._fit(has_validation=False)
        if self._fitted_in_run and not self._saved_in_run:
            save_checkpoint(self.trainer)

    def on_fit_end(self) -> None:
        """Check that the model was fitted.

        Raises:
            NotFittedError: If the trainer has not run a training step and the model is not fitted to this support set.
        """
        if self._fitted_in_run:
            return
        name = type(self).__name__
        if self.is_fitted and self.fitted_support == support_digest(self.trainer.datamodule):  # type: ignore[attr-defined]
            logger.info("%s is already fitted to this support set. Nothing was trained.", name)
            return
        msg = (
            f"{name} was not fitted, because the trainer did not run a training step. Check `max_epochs`, `max_steps` "
            "and `limit_train_batches`. To fit again, create a new `Engine`."
        )
        raise NotFittedError(msg)

    def check_fitted(self) -> None:
        """Check that the model is fitted.

        Raises:
            NotFittedError: If the model is not fitted.
        """
        if not self.is_fitted:
            msg = f"{type(self).__name__} is not fitted. Call `Engine.fit` or load a fitted checkpoint."
            raise NotFittedError(msg)

    def support(self) -> Iterator[torch.Tensor]:
        """Yield batches of pre-processed support images, shape ``(B, 3, H, W)``, in a fixed order."""
        for batch in support_dataloader(self.trainer.datamodule):  # type: ignore[attr-defined]
            yield self.preprocess(batch.image, batch.image_path)

    def unlabeled(self, max_images: int) -> Iterator[torch.Tensor]:
        """Yield batches of pre-processed unlabeled images, shape ``(B, 3, H, W)``, in a fixed order.

        Args:
            max_images (int): Number of images. Of more, a random choice is used.
        """
        datamodule = self.trainer.datamodule  # type: ignore[attr-defined]
        if count_unlabeled(datamodule) > 0:
            for batch in datamodule.unlabeled_dataloader(max_images):
                yield self.preprocess(batch.image, batch.image_path)

    def preprocess(self, images: torch.Tensor, paths: Sequence[str] | None = None) -> torch.Tensor:
        """Return pre-processed images on the device of the model.

        Args:
            images (torch.Tensor): Images of a datamodule, shape ``(B, 3, H, W)``.
            paths (Sequence[str] | None): Image paths for error messages. Defaults to ``None``.

        Raises:
            DataValidationError: If a pixel value is not finite or, with a pre-processor, outside [0, 1].
            ArgumentError: If the size of the pre-processed images differs from ``image_size``.
        """
        check_pixels(images, paths, has_range=self.pre_processor is not None)
        transform = getattr(self.pre_processor, "transform", None)
        images = images.to(self.device)
        images = images if transform is None else transform(images)
        self.check_size(images)
        return images

    def zero_loss(self) -> torch.Tensor:
        """Return a zero loss with a zero gradient for all trainable parameters.

        Lightning needs a loss, and DDP needs a gradient of every parameter.
        """
        terms = [0 * parameter.sum() for parameter in self.parameters() if parameter.requires_grad]
        return torch.stack(terms).sum() if terms else torch.zeros((), requires_grad=True)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Store the model class and the support digest, and reset arguments that would load external weights."""
        super().on_save_checkpoint(checkpoint)
        arguments = checkpoint["hyper_parameters"]
        for name, value in WEIGHT_SOURCE_ARGS.items():
            if name in arguments:
                arguments[name] = value
        checkpoint["model_class"] = type(self).__name__
        checkpoint["fitted_support"] = self.fitted_support
        self._saved_in_run = bool(self.is_fitted)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Check that the checkpoint has the class and the ``score_arguments`` of this model.

        Raises:
            CheckpointMismatchError: If the model class or a score argument differs.
        """
        super().on_load_checkpoint(checkpoint)
        class_name, saved_class = type(self).__name__, checkpoint.get("model_class", "another model")
        if saved_class != class_name:
            msg = f"The checkpoint must contain {class_name}, got {saved_class}. Use `--model {saved_class}`."
            raise CheckpointMismatchError(msg)
        current, saved = dict(self.hparams), checkpoint["hyper_parameters"]
        different = self._different_arguments(saved)
        if different:
            expected = ", ".join(f"{name}={saved[name]!r}" for name in different)
            found = ", ".join(f"{name}={current[name]!r}" for name in different)
            msg = (
                f"{class_name} must have the arguments of its checkpoint, {expected}, got {found}. Set these "
                "arguments, pass the training configuration with `--model`, or load the model with "
                f"`{class_name}.load_from_checkpoint`."
            )
            raise CheckpointMismatchError(msg)
        self.fitted_support = checkpoint.get("fitted_support")

    @staticmethod
    def configure_post_processor() -> SupportPostProcessor:
        """Return a post-processor that can be calibrated on normal images only."""
        return SupportPostProcessor()

    @staticmethod
    def configure_evaluator() -> CategoryEvaluator:
        """Return anomalib's metrics, computed per category if there are several."""
        return CategoryEvaluator()

    @property
    def calibrates_out_of_fold(self) -> bool:
        """Whether :meth:`fit` returns scores of images that the scoring fit did not contain."""
        return True

    @property
    def learning_type(self) -> LearningType:
        """Learning type of the model. It is ``ONE_CLASS``, because anomalib's engine does not train few-shot models."""
        return LearningType.ONE_CLASS

    def _different_arguments(self, saved: Mapping[str, Any]) -> list[str]:
        """Return the names of the ``score_arguments`` that differ from a checkpoint."""
        return [name for name in self.score_arguments if not _is_same(name, self.hparams, saved)]

    @torch.inference_mode(mode=False)  # the fitted tensors are used after the validation
    @torch.no_grad()
    def _fit(self, *, has_validation: bool) -> None:
        if self.trainer.world_size > 1:  # running statistics differ between processes after the last step
            for buffer in self.model.buffers():
                torch.distributed.broadcast(buffer, src=0)
        with _evaluation_mode(self.model):
            scores = self.fit()
            self._fit_post_processor(scores, has_validation=has_validation)
        self.is_fitted.fill_(value=True)
        self.fitted_support = support_digest(self.trainer.datamodule)  # type: ignore[attr-defined]
        self._fitted_in_run, self._saved_in_run = True, False

    def _fit_post_processor(self, scores: CalibrationScores, *, has_validation: bool) -> None:
        if has_validation or self.post_processor is None:
            return
        if isinstance(self.post_processor, SupportPostProcessor):
            self.post_processor.fit_normal(scores)
            return
        logger.warning(
            "No threshold was set, so scores are not normalized and predicted labels are not meaningful. Use "
            "`SupportPostProcessor` or provide validation images.",
        )


@contextmanager
def _evaluation_mode(model: nn.Module) -> Generator[None]:
    """Set all modules to evaluation mode and restore the mode of each module afterwards."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module in model.modules():
            module.training = modes.get(module, modes[model])  # `fit` may have replaced submodules


def _is_same(name: str, current: Mapping[str, Any], saved: Mapping[str, Any]) -> bool:
    """Return whether an argument has equivalent values, such as 224 and (224, 224) or a list and a tuple."""
    if name not in current or name not in saved:  # the checkpoint is from another version
        return True
    return _normalize(name, current[name]) == _normalize(name, saved[name])


def _normalize(name: str, value: Any) -> Any:  # noqa: ANN401
    if name == "image_size" and isinstance(value, int):
        return (value, value)
    return tuple(value) if isinstance(value, list) else value
