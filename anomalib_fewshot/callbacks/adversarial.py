# Copyright (C) 2026 anomalib-fewshot contributors
# SPDX-License-Identifier: Apache-2.0

"""Adversarial loss for any model whose loss compares two sets of features."""

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
    """Add the adversarial loss to a model whose ``loss`` compares two sets of features.

    It works with anomalib's ``Stfpm`` (teacher and student) and ``ReverseDistillation`` (encoder and decoder). Each
    feature level has its own discriminator, which is created in each training. The model is not changed, and its
    checkpoint can be used without the callback. The checkpoint stores the discriminators in the callback state.

    Args:
        weight (float): Weight of the loss. 0 disables it. Defaults to ``0.1``.
        learning_rate (float): Learning rate of the discriminators. Defaults to ``1e-4``.
        ramp_steps (int): Number of steps over which the weight increases to its final value. Defaults to ``0``.
        clip_norm (float | None): Maximum norm of the gradient of a discriminator. Defaults to ``None``: no
            clipping.
        seed (int): Seed of the discriminators, which do not use the global generator. Defaults to ``0``.

    Raises:
        TypeError: During training, if ``loss`` of the model is not a module, is not called exactly once per step, or
            is not called with two sets of features.
        ValueError: As in :class:`AdversarialStep`.

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
        self._make_step = partial(
            AdversarialStep,
            weight=weight,
            learning_rate=learning_rate,
            ramp_steps=ramp_steps,
            clip_norm=clip_norm,
            seed=seed,
        )
        self._make_step(1)  # checks the arguments
        self.levels = nn.ModuleList()  # one step per feature level, created in the first training step
        self._loaded: list[dict[str, Any]] = []
        self._hook: RemovableHandle | None = None
        self._calls = 0  # of the model's loss in the current step

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Register a hook on the loss of the model."""
        if stage != TrainerFn.FITTING:
            return
        name, loss = type(pl_module).__name__, getattr(pl_module, "loss", None)
        if not isinstance(loss, nn.Module):
            msg = f"The model of AdversarialCallback must have a module `loss`, got {name}."
            raise TypeError(msg)

        def add_loss(_: nn.Module, features: tuple, output: torch.Tensor) -> torch.Tensor:
            if not torch.is_grad_enabled():
                return output
            self._calls += 1
            if self._calls > 1:  # a second update would change weights that the gradient of the first loss needs
                msg = f"The model of AdversarialCallback must call `loss` once per step, got a second call by {name}."
                raise TypeError(msg)
            first, second = _feature_pair(features, name)
            return output + self._adversarial_loss(trainer, pl_module, first, second)

        self.levels, self._loaded = nn.ModuleList(), []  # discard an earlier training; checkpoints are loaded later
        self._hook = loss.register_forward_hook(add_loss)

    def on_train_batch_start(self, *_: object) -> None:
        """Reset the number of calls."""
        self._calls = 0

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: object) -> None:
        """Check that the model has called its ``loss``.

        Raises:
            TypeError: If it has not.
        """
        del trainer
        if self._calls == 0:
            name = type(pl_module).__name__
            msg = f"The model of AdversarialCallback must call `loss` once per step, got no call by {name}."
            raise TypeError(msg)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Remove the hook."""
        del trainer, pl_module, stage
        self._remove_hook()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Remove the hook, because Lightning does not call ``teardown``."""
        del trainer, pl_module, exception
        self._remove_hook()

    def _remove_hook(self) -> None:
        if self._hook is not None:
            self._hook.remove()
            self._hook = None

    def state_dict(self) -> dict[str, Any]:
        """Return the states of the discriminators and their optimizers."""
        return {"levels": [level.state_dict() for level in self.levels] or self._loaded}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Store the state of a checkpoint until the discriminators exist."""
        self._loaded = state_dict["levels"]

    def _adversarial_loss(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        first: list[torch.Tensor],
        second: list[torch.Tensor],
    ) -> torch.Tensor:
        if len(self.levels) == 0:
            self.levels.extend(self._make_step(feature.shape[1]) for feature in first)
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


def _feature_pair(features: tuple, name: str) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """Return the two sets of features that the loss was called with.

    Raises:
        TypeError: If the number of sets is not two, or if their shapes differ.
    """
    sets = [_tensors(part) for part in features]
    shapes = [[tuple(part.shape) if isinstance(part, torch.Tensor) else None for part in one] for one in sets]
    if (
        len(sets) != 2
        or shapes[0] != shapes[1]
        or any(shape is None or len(shape) not in {2, 4} for shape in shapes[0])
    ):
        msg = (
            f"The model of AdversarialCallback must call `loss` with two sets of features of equal shapes, (B, C) or "
            f"(B, C, H, W), got {shapes} from {name}. Use `AdversarialStep` in the model instead."
        )
        raise TypeError(msg)
    return sets[0], sets[1]


def _tensors(features: Any) -> list[Any]:  # noqa: ANN401  any argument of a loss
    if isinstance(features, Mapping):
        return list(features.values())
    return list(features) if isinstance(features, Sequence) else [features]
