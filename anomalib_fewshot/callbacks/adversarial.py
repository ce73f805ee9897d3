# Copyright (C) 2026 anomalib-fewshot contributors
# SPDX-License-Identifier: Apache-2.0

"""The adversarial loss for any model whose loss compares two features."""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn
from torch import nn

from anomalib_fewshot.models.components import AdversarialStep

if TYPE_CHECKING:
    from torch.utils.hooks import RemovableHandle


class AdversarialCallback(Callback):
    """Add the adversarial loss to a model whose ``loss`` is called with two features that should be alike.

    Among anomalib's models these are ``Stfpm``, with the features of teacher and student, and ``ReverseDistillation``,
    with those of encoder and decoder, and each level of features gets a discriminator, a new one in each training.
    Nothing of the model is changed: its checkpoint can be used without the callback, whose state is kept beside it.

    Args:
        weight (float): Weight of the loss. 0 is the plain method. Defaults to ``0.1``.
        learning_rate (float): Learning rate of the discriminators. Defaults to ``1e-4``.
        ramp_steps (int): Steps over which the weight rises to its value. Defaults to ``0``.
        clip_norm (float | None): Highest norm of a discriminator's gradient. Defaults to ``None``: any.
        seed (int): Seed of the discriminators. The global seed has no influence. Defaults to ``0``.

    Raises:
        TypeError: In a training, if the model's ``loss`` is no module, is not called once a step, or not with two sets
            of features.
        ValueError: As :class:`AdversarialStep` does.

    Example:
        >>> from anomalib.engine import Engine
        >>> from anomalib.models import Stfpm
        >>> Engine(callbacks=[AdversarialCallback(weight=0.1)]).fit(Stfpm())  # doctest: +SKIP
    """

    def __init__(
        self,
        weight: float = 0.1,
        learning_rate: float = 1e-4,
        ramp_steps: int = 0,
        clip_norm: float | None = None,
        seed: int = 0,
    ) -> None:
        self._make = partial(
            AdversarialStep,
            weight=weight,
            learning_rate=learning_rate,
            ramp_steps=ramp_steps,
            clip_norm=clip_norm,
            seed=seed,
        )
        self._make(1)  # checks the arguments
        self.levels = nn.ModuleList()  # a step of each level of features, made when these are seen
        self._loaded: list[dict[str, Any]] = []
        self._hook: RemovableHandle | None = None
        self._calls = 0  # of the model's loss in a step

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Listen to the model's loss."""
        if stage != TrainerFn.FITTING:
            return
        name, loss = type(pl_module).__name__, getattr(pl_module, "loss", None)
        if not isinstance(loss, nn.Module):
            msg = f"AdversarialCallback must have a model with a module `loss`, got {name}, which has none."
            raise TypeError(msg)

        def add(_: nn.Module, features: tuple, output: torch.Tensor) -> torch.Tensor:
            if not torch.is_grad_enabled():
                return output
            self._calls += 1
            if self._calls > 1:  # the discriminators have changed, and the first loss goes back through them
                msg = f"AdversarialCallback must have a model that calls its `loss` once a step, got {name}, twice."
                raise TypeError(msg)
            first, second = _pair(features, name)
            return output + self._adversarial_loss(trainer, pl_module, first, second)

        self.levels, self._loaded = nn.ModuleList(), []  # of an earlier training; a checkpoint is loaded after this
        self._hook = loss.register_forward_hook(add)

    def on_train_batch_start(self, *_: object) -> None:
        """Count from here."""
        self._calls = 0

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: object) -> None:
        """Refuse a model that has a ``loss`` and does without it."""
        del trainer
        if self._calls == 0:
            name = type(pl_module).__name__
            msg = f"AdversarialCallback must have a model that calls its `loss`, got {name}, which did not."
            raise TypeError(msg)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Stop listening."""
        del trainer, pl_module, stage
        self._stop()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Stop listening: there will be no teardown."""
        del trainer, pl_module, exception
        self._stop()

    def _stop(self) -> None:
        if self._hook is not None:
            self._hook.remove()
            self._hook = None

    def state_dict(self) -> dict[str, Any]:
        """Return the discriminators and their optimisers' states."""
        return {"levels": [level.state_dict() for level in self.levels] or self._loaded}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take the discriminators of a checkpoint."""
        self._loaded = state_dict["levels"]

    def _adversarial_loss(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        first: list[torch.Tensor],
        second: list[torch.Tensor],
    ) -> torch.Tensor:
        if len(self.levels) == 0:
            self.levels.extend(self._make(feature.shape[1]) for feature in first)
            if self._loaded:
                for level, state in zip(self.levels, self._loaded, strict=True):
                    level.load_state_dict(state)
            self.levels.to(first[0].device)
        results = [
            level(one.movedim(1, -1), two.movedim(1, -1), trainer.global_step)
            for level, one, two in zip(self.levels, first, second, strict=True)
        ]
        for number, (_, stats) in enumerate(results):
            if stats is not None:
                values = {"discriminator_loss": stats.loss, "discriminator_accuracy": stats.accuracy}
                pl_module.log_dict({f"{name}_{number}": value for name, value in values.items()})
        return torch.stack([loss for loss, _ in results]).mean()


def _pair(features: tuple, name: str) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """Return the two sets of features that a loss was called with.

    Raises:
        TypeError: If there are others than two, or if these are not of the same shapes.
    """
    sets = [_tensors(part) for part in features]
    shapes = [[tuple(part.shape) if isinstance(part, torch.Tensor) else None for part in one] for one in sets]
    if (
        len(sets) != 2
        or shapes[0] != shapes[1]
        or any(shape is None or len(shape) not in {2, 4} for shape in shapes[0])
    ):
        msg = (
            f"AdversarialCallback must have a model whose `loss` is called with two equal sets of features, (B, C) or "
            f"(B, C, H, W), got {name}, whose `loss` is called with the shapes {shapes}. Use `AdversarialStep` in it."
        )
        raise TypeError(msg)
    return sets[0], sets[1]


def _tensors(features: Any) -> list[Any]:  # noqa: ANN401  what any loss may take
    if isinstance(features, Mapping):
        return list(features.values())
    return list(features) if isinstance(features, Sequence) else [features]
