# Copyright (C) 2026 anomalib-fewshot contributors
# SPDX-License-Identifier: Apache-2.0

"""The life of the models: train, fit once to the support, then score and never learn again."""

import logging
from abc import abstractmethod
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar

import torch
from anomalib import LearningType
from anomalib.data import Batch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities.types import OptimizerLRScheduler

from anomalib_fewshot.atomic import complete_file
from anomalib_fewshot.data.support import support_dataloader
from anomalib_fewshot.metrics import CategoryEvaluator
from anomalib_fewshot.post_processing import NormalScores, SupportPostProcessor

from .export import DescribedExportMixin
from .scoring import ScoringMixin

logger = logging.getLogger(__name__)

FROM_ELSEWHERE = {"pre_trained": False, "weights": None, "network": None}  # a checkpoint holds what they would load


class FittedMixin(ScoringMixin, DescribedExportMixin):
    """Part of an anomalib model that is fitted to a support in one call, and refuses to score before.

    :meth:`fit` is called once, when the training is over: before the validation at its end or, without one, as the last
    thing. Then the threshold comes from what it returns, and a checkpoint is written. A test and a prediction score
    and change nothing. In form it is anomalib's ``MemoryBankMixin``, for models that may train first.

    Attributes:
        is_fitted (torch.Tensor): Whether the model can score, a boolean scalar.
        score_arguments (tuple[str, ...]): Names of the arguments that decide a score and are in no buffer or weight:
            those of a checkpoint must be those of the model that loads it.
    """

    score_arguments: ClassVar[tuple[str, ...]] = ()

    def __init__(self, *args: Any, **kwargs: Any) -> None:  # noqa: ANN401
        super().__init__(*args, **kwargs)
        self.register_buffer("is_fitted", torch.tensor(data=False))
        self.is_fitted: torch.Tensor

    @abstractmethod
    def fit(self) -> NormalScores:
        """Fit the model to the support.

        Returns:
            NormalScores: Scores of normal images, held out of the fit as far as that is possible. They are computed as
            they are taken, and only a fit without validation images takes them.
        """

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Return nothing: a model that trains first says what."""
        return None

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        """Forget an earlier fit: not before a step, for going on from a finished training takes none."""
        del batch, batch_idx
        self.is_fitted.fill_(value=False)

    def on_validation_start(self) -> None:
        """Fit before the validation at the end of a training."""
        if self.trainer.state.fn == TrainerFn.FITTING:
            self._fit(has_validation=True)
        self.check_fitted()

    def on_train_end(self) -> None:
        """Without a validation: fit, set the threshold, save a checkpoint."""
        if not self.is_fitted:
            self._fit(has_validation=False)
            self._save_checkpoint()

    def on_test_start(self) -> None:
        """Refuse to score without a fit."""
        self.check_fitted()

    def on_predict_start(self) -> None:
        """Refuse to score without a fit."""
        self.check_fitted()

    def check_fitted(self) -> None:
        """Raise if the model cannot score.

        Raises:
            RuntimeError: If it was not trained.
        """
        if not self.is_fitted:
            name = type(self).__name__
            msg = f"{name} must be trained before it scores. Train it, or give a checkpoint of a finished training."
            raise RuntimeError(msg)

    def support(self) -> Iterator[torch.Tensor]:
        """Yield the pre-processed images of the support, shape ``(B, 3, H, W)``, in a fixed order."""
        for batch in support_dataloader(self.trainer.datamodule):  # type: ignore[attr-defined]
            yield self.preprocess(batch.image)

    def preprocess(self, images: torch.Tensor) -> torch.Tensor:
        """Return images of a datamodule as the model takes them, on its device."""
        transform = getattr(self.pre_processor, "transform", None)
        images = images.to(self.device)
        return images if transform is None else transform(images)

    def zero_loss(self) -> torch.Tensor:
        """Return a loss that changes nothing: Lightning needs one, on several devices of all parameters."""
        trained = [0 * parameter.sum() for parameter in self.parameters() if parameter.requires_grad]
        return torch.stack(trained).sum() if trained else torch.zeros((), requires_grad=True)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Note whose checkpoint it is, and leave nothing to load from elsewhere."""
        super().on_save_checkpoint(checkpoint)
        arguments = checkpoint["hyper_parameters"]
        arguments |= {name: value for name, value in FROM_ELSEWHERE.items() if name in arguments}
        checkpoint["model_class"] = type(self).__name__

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse a checkpoint that this model would score otherwise than the one that was trained.

        Raises:
            ValueError: If it is of another class, or was trained with other ``score_arguments``.
        """
        super().on_load_checkpoint(checkpoint)
        own, name = type(self).__name__, checkpoint.get("model_class", "another model")
        if name != own:
            msg = f"The checkpoint must be one of {own}, got one of {name}. Name its model by `--model`."
            raise ValueError(msg)
        given, saved = dict(self.hparams), checkpoint["hyper_parameters"]
        other = self._different_arguments(saved)
        if other:
            there = ", ".join(f"{name}={saved[name]!r}" for name in other)
            here = ", ".join(f"{name}={given[name]!r}" for name in other)
            msg = (
                f"{own} must have the arguments of its checkpoint, which was trained with {there}, got {here}. Give "
                f"these arguments or the file of the training (`--model`), or use `{own}.load_from_checkpoint`."
            )
            raise ValueError(msg)

    @staticmethod
    def configure_post_processor() -> SupportPostProcessor:
        """Return the post-processor, which can be fitted to normal images alone."""
        return SupportPostProcessor()

    @staticmethod
    def configure_evaluator() -> CategoryEvaluator:
        """Return anomalib's metrics, of each category by itself where there are several."""
        return CategoryEvaluator()

    @property
    def holds_out(self) -> bool:
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
        training = self.model.training
        self.model.eval()
        if self.trainer.world_size > 1:  # running statistics of the last step are of each process's own batch
            for buffer in self.model.buffers():
                torch.distributed.broadcast(buffer, src=0)
        normal = self.fit()
        if not has_validation and isinstance(self.post_processor, SupportPostProcessor):
            self.post_processor.fit_normal(normal)
        elif not has_validation and self.post_processor is not None:
            logger.warning(
                "There is no threshold: without validation images it takes a post-processor that can be fitted to "
                "normal images, `SupportPostProcessor`. The scores stay raw, and the labels mean nothing.",
            )
        self.model.train(training)
        self.is_fitted.fill_(value=True)

    def _save_checkpoint(self) -> None:
        """Write the checkpoint that Lightning would have written at a validation."""
        if isinstance(self.trainer.checkpoint_callback, ModelCheckpoint):
            path = self.trainer.checkpoint_callback.format_checkpoint_name({})
            with complete_file(Path(path)) as part:
                self.trainer.save_checkpoint(part, weights_only=False)
            self.trainer.strategy.barrier()  # other processes wait until the file has its name
            self.trainer.checkpoint_callback.best_model_path = path  # which a user asks the engine for


def _is_same(name: str, given: Mapping[str, Any], saved: Mapping[str, Any]) -> bool:
    """Return whether an argument has one meaning here and there: a side is short for a square, a list is a tuple."""
    if name not in given or name not in saved:  # of another version
        return True
    one, two = (tuple(value) if isinstance(value, list) else value for value in (given[name], saved[name]))
    if name == "image_size":
        one, two = ((value, value) if isinstance(value, int) else value for value in (one, two))
    return one == two
