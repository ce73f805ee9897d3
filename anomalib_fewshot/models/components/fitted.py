# Copyright (C) 2026 anomalib-fewshot contributors
# SPDX-License-Identifier: Apache-2.0

"""The life of the models: train, fit once to the support, then score and never learn again."""

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
from anomalib_fewshot.data.support import support_dataloader, support_digest
from anomalib_fewshot.errors import ArgumentError, CheckpointMismatchError, NotFittedError
from anomalib_fewshot.metrics import CategoryEvaluator
from anomalib_fewshot.post_processing import CalibrationScores, SupportPostProcessor
from anomalib_fewshot.pre_processing import check_pixels

from .export import DescribedExportMixin
from .scoring import ScoringMixin

logger = logging.getLogger(__name__)

WEIGHT_SOURCE_ARGS = {"pre_trained": False, "weights": None, "network": None}  # a checkpoint holds what they would load


class FittedMixin(ScoringMixin, DescribedExportMixin):
    """Part of an anomalib model that is fitted to a support in one call, and refuses to score before.

    :meth:`fit` is called once, when the training is over: before the validation at its end or, without one, as the last
    thing. Then the threshold comes from what it returns, and a checkpoint is written. A test and a prediction score
    and change nothing. In form it is anomalib's ``MemoryBankMixin``, for models that may train first.

    Attributes:
        is_fitted (torch.Tensor): Whether the model can score, a boolean scalar.
        fitted_support (str | None): Digest of the support set that the model was fitted to.
        score_arguments (tuple[str, ...]): Names of the arguments that decide a score and are in no buffer or weight:
            those of a checkpoint must be those of the model that loads it.
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
        """Move the model, or refuse to change its data type: ``half()``, ``double()``, ``to(dtype)`` and Lightning.

        Raises:
            ArgumentError: If the data type is not float32.
        """
        dtype = fn(torch.zeros(1)).dtype
        if dtype != torch.float32:
            msg = (
                f"{type(self).__name__} must keep its weights in torch.float32, got {dtype}: its statistics need it. "
                "Use one of `precision` '32-true', '16-mixed' and 'bf16-mixed' in the engine."
            )
            raise ArgumentError(msg)
        return super()._apply(fn, recurse)

    @abstractmethod
    def fit(self) -> CalibrationScores:
        """Fit the model to the support.

        Returns:
            CalibrationScores: Out-of-fold scores of the normal images where that is possible. In a validation
            (``self.trainer.validating``) they are not used and may be empty: validation images set the threshold.
        """

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Return nothing: a model that trains first says what."""
        return None

    def on_fit_start(self) -> None:
        """Refuse to resume a finished training with another support set.

        Raises:
            CheckpointMismatchError: If the checkpoint was fitted to another support set.
        """
        self._fitted_in_run = self._saved_in_run = False
        if self.trainer.ckpt_path is None or not self.is_fitted:
            return
        digest = support_digest(self.trainer.datamodule)  # type: ignore[attr-defined]
        if digest != self.fitted_support:
            msg = (
                f"`ckpt_path` must be a checkpoint that was fitted to this support set, {digest}, got one that was "
                f"fitted to {self.fitted_support}. Leave out `ckpt_path` to fit a new model."
            )
            raise CheckpointMismatchError(msg)

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        """Discard an earlier fit. A finished training that is resumed runs no batch and keeps its fit."""
        del batch, batch_idx
        self.is_fitted.fill_(value=False)

    def on_validation_start(self) -> None:
        """Fit before the validation at the end of a training."""
        if self.trainer.state.fn == TrainerFn.FITTING:
            self._fit(has_validation=True)
        self.check_fitted()

    def on_train_epoch_end(self) -> None:
        """Fit at the end of the last epoch, before Lightning writes its checkpoint."""
        if not self.is_fitted and is_last_epoch(self.trainer):
            self._fit(has_validation=False)

    def on_train_end(self) -> None:
        """Write a checkpoint of the fitted model if Lightning has written none."""
        if not self.is_fitted:  # the training was stopped within an epoch
            self._fit(has_validation=False)
        if self._fitted_in_run and not self._saved_in_run:
            save_checkpoint(self.trainer)

    def on_fit_end(self) -> None:
        """Refuse a fit that has run no training step.

        Raises:
            NotFittedError: If the model is not fitted to the support set of the data.
        """
        if self._fitted_in_run:
            return
        name = type(self).__name__
        if self.is_fitted and self.fitted_support == support_digest(self.trainer.datamodule):  # type: ignore[attr-defined]
            logger.info("%s is already fitted to this support set. Nothing was trained.", name)
            return
        msg = (
            f"{name} was not fitted: the trainer has run no training step. Check `max_epochs`, `max_steps` and "
            "`limit_train_batches`. For a second fit, create a new `Engine`: a trainer trains once."
        )
        raise NotFittedError(msg)

    def check_fitted(self) -> None:
        """Raise if the model cannot score.

        Raises:
            NotFittedError: If the model is not fitted.
        """
        if not self.is_fitted:
            msg = f"{type(self).__name__} is not fitted. Call `Engine.fit` or load a fitted checkpoint."
            raise NotFittedError(msg)

    def support(self) -> Iterator[torch.Tensor]:
        """Yield the pre-processed images of the support, shape ``(B, 3, H, W)``, in a fixed order."""
        for batch in support_dataloader(self.trainer.datamodule):  # type: ignore[attr-defined]
            yield self.preprocess(batch.image, batch.image_path)

    def preprocess(self, images: torch.Tensor, paths: Sequence[str] | None = None) -> torch.Tensor:
        """Return images of a datamodule as the model takes them, on its device.

        Args:
            images (torch.Tensor): Images, shape ``(B, 3, H, W)``.
            paths (Sequence[str] | None): Their files, for the message of an error. Defaults to ``None``.

        Raises:
            DataValidationError: If a pixel value is NaN or infinite or, with a pre-processor, outside 0 to 1.
            ArgumentError: If the pre-processed images have another size than the model.
        """
        check_pixels(images, paths, has_range=self.pre_processor is not None)
        transform = getattr(self.pre_processor, "transform", None)
        images = images.to(self.device)
        images = images if transform is None else transform(images)
        self.check_size(images)
        return images

    def zero_loss(self) -> torch.Tensor:
        """Return a loss that changes nothing: Lightning needs one, on several devices of all parameters."""
        trained = [0 * parameter.sum() for parameter in self.parameters() if parameter.requires_grad]
        return torch.stack(trained).sum() if trained else torch.zeros((), requires_grad=True)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Store the model's class and its support set, and no argument that loads weights from elsewhere."""
        super().on_save_checkpoint(checkpoint)
        arguments = checkpoint["hyper_parameters"]
        arguments |= {name: value for name, value in WEIGHT_SOURCE_ARGS.items() if name in arguments}
        checkpoint["model_class"] = type(self).__name__
        checkpoint["fitted_support"] = self.fitted_support
        self._saved_in_run = bool(self.is_fitted)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse a checkpoint that this model would score otherwise than the one that was trained.

        Raises:
            CheckpointMismatchError: If it is of another class, or was trained with other ``score_arguments``.
        """
        super().on_load_checkpoint(checkpoint)
        own, name = type(self).__name__, checkpoint.get("model_class", "another model")
        if name != own:
            msg = f"The checkpoint must be one of {own}, got one of {name}. Use `--model {name}`."
            raise CheckpointMismatchError(msg)
        given, saved = dict(self.hparams), checkpoint["hyper_parameters"]
        other = self._different_arguments(saved)
        if other:
            there = ", ".join(f"{name}={saved[name]!r}" for name in other)
            here = ", ".join(f"{name}={given[name]!r}" for name in other)
            msg = (
                f"{own} must have the arguments of its checkpoint, which was trained with {there}, got {here}. Give "
                f"these arguments or the file of the training (`--model`), or use `{own}.load_from_checkpoint`."
            )
            raise CheckpointMismatchError(msg)
        self.fitted_support = checkpoint.get("fitted_support")

    @staticmethod
    def configure_post_processor() -> SupportPostProcessor:
        """Return the post-processor, which can be fitted to normal images alone."""
        return SupportPostProcessor()

    @staticmethod
    def configure_evaluator() -> CategoryEvaluator:
        """Return anomalib's metrics, of each category by itself where there are several."""
        return CategoryEvaluator()

    @property
    def calibrates_out_of_fold(self) -> bool:
        """Whether the scores that a fit returns are of images that were held out of it."""
        return True

    @property
    def learning_type(self) -> LearningType:
        """One class: anomalib's engine does not train models that say they are few-shot."""
        return LearningType.ONE_CLASS

    def _different_arguments(self, saved: Mapping[str, Any]) -> list[str]:
        """Return the names of the ``score_arguments`` that differ from those of a checkpoint."""
        return [name for name in self.score_arguments if not _is_same(name, self.hparams, saved)]

    @torch.inference_mode(mode=False)  # what is fitted outlives a validation
    @torch.no_grad()
    def _fit(self, *, has_validation: bool) -> None:
        if self.trainer.world_size > 1:  # running statistics of the last step are of each process's own batch
            for buffer in self.model.buffers():
                torch.distributed.broadcast(buffer, src=0)
        with _evaluation_mode(self.model):
            normal = self.fit()
            self._fit_post_processor(normal, has_validation=has_validation)
        self.is_fitted.fill_(value=True)
        self.fitted_support = support_digest(self.trainer.datamodule)  # type: ignore[attr-defined]
        self._fitted_in_run, self._saved_in_run = True, False

    def _fit_post_processor(self, normal: CalibrationScores, *, has_validation: bool) -> None:
        if not has_validation and isinstance(self.post_processor, SupportPostProcessor):
            self.post_processor.fit_normal(normal)
        elif not has_validation and self.post_processor is not None:
            logger.warning(
                "There is no threshold: without validation images it takes a post-processor that can be fitted to "
                "normal images, `SupportPostProcessor`. The scores stay raw, and the labels mean nothing.",
            )


@contextmanager
def _evaluation_mode(model: nn.Module) -> Generator[None]:
    """Set a model and its parts to evaluation, and each of them to its own mode afterwards."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module in model.modules():
            module.training = modes.get(module, modes[model])  # a fit may have replaced parts


def _is_same(name: str, given: Mapping[str, Any], saved: Mapping[str, Any]) -> bool:
    """Return whether an argument has one meaning here and there: a side is short for a square, a list is a tuple."""
    if name not in given or name not in saved:  # of another version
        return True
    one, two = (tuple(value) if isinstance(value, list) else value for value in (given[name], saved[name]))
    if name == "image_size":
        one, two = ((value, value) if isinstance(value, int) else value for value in (one, two))
    return one == two
