# Copyright (C) 2026 anomalib-fewshot contributors
# SPDX-License-Identifier: Apache-2.0

"""Adversarial loss that makes two features indistinguishable to a discriminator.

The idea is from https://arxiv.org/abs/2312.03005. The discriminator, the loss weight and the learning rate are choices
of this package.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import distributed, nn
from torch.nn import functional as F  # noqa: N812

from anomalib_fewshot.errors import ArgumentError

from .seeding import seeded

ADVERSARIAL_RAMP = 0.1  # fraction of the training over which the loss weight increases to its full value


def discriminator_loss(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    """Return the binary cross-entropy of the discriminator, with label 0 for the first feature and 1 for the second.

    Args:
        first (torch.Tensor): Logits of the first feature, of any shape.
        second (torch.Tensor): Logits of the second feature, of any shape.

    Returns:
        torch.Tensor: Scalar. It is log 2 = 0.693 if the discriminator predicts at chance level.

    Example:
        >>> discriminator_loss(torch.zeros(3), torch.zeros(3))
        tensor(0.6931)
    """
    return (F.softplus(first).mean() + F.softplus(-second).mean()) / 2


def generator_loss(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    """Return the loss that the model minimizes: :func:`discriminator_loss` with swapped labels."""
    return discriminator_loss(second, first)


class Discriminator(nn.Module):
    """MLP that classifies the feature at each position as the first or the second one.

    It normalizes each feature to unit length, so that only the direction counts.

    Args:
        channels (int): Number of channels C of a feature.
        hidden (Sequence[int]): Widths of the hidden layers. Defaults to ``(256, 128)``.
    """

    def __init__(self, channels: int, hidden: Sequence[int] = (256, 128)) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for width in hidden:
            layers += [nn.Linear(channels, width), nn.LeakyReLU(0.2)]
            channels = width
        self.layers = nn.Sequential(*layers, nn.Linear(channels, 1))

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Return the logit of each feature: ``(..., C)`` -> ``(...)``."""
        return self.layers(F.normalize(features, dim=-1)).squeeze(-1)


class DiscriminatorStats(NamedTuple):
    """Loss and accuracy of the discriminator before its update.

    Args:
        loss (torch.Tensor): Loss of the discriminator. It is 0.693 at chance level.
        accuracy (torch.Tensor): Fraction of correct predictions. A range of 0.5 to 0.7 is useful. A value of 1 suggests
            a trivial cue such as the norm. A value of 0.5 from the start means that there is no signal.
    """

    loss: torch.Tensor
    accuracy: torch.Tensor


class AdversarialStep(nn.Module):
    """Discriminator update and adversarial loss for one training step.

    Add the loss to the loss of the model in ``training_step``::

        adversarial_loss, stats = self.adversarial(first, second, self.global_step)
        loss = loss + adversarial_loss

    The discriminator has a separate Adam optimizer with betas (0.5, 0.999). The checkpoint contains its state. The
    parameters require no gradient outside of the update, so the optimizer of the model and DDP ignore them. In
    distributed training this module averages the gradients of the discriminator. It computes in single precision.

    With a weight of 0 there is no discriminator, and no random number is drawn. Call the module once per backward pass:
    a second call modifies the discriminator in place, which invalidates the graph of the first loss.

    Args:
        channels (int): Number of channels C of the features.
        weight (float): Weight of the loss.
        learning_rate (float): Learning rate of the discriminator. Defaults to ``1e-4``.
        ramp_steps (int): Number of steps over which the weight increases to its full value. Defaults to ``0``.
        hidden (Sequence[int]): See :class:`Discriminator`. Defaults to ``(256, 128)``.
        seed (int): Seed of the discriminator. The global seed has no effect. Defaults to ``0``.
        clip_norm (float | None): Maximum gradient norm of the discriminator. 0 and ``None`` disable clipping. Defaults
            to ``None``.

    Raises:
        ArgumentError: If ``weight``, ``ramp_steps`` or ``clip_norm`` is below 0.
    """

    def __init__(
        self,
        channels: int,
        weight: float,
        learning_rate: float = 1e-4,
        ramp_steps: int = 0,
        hidden: Sequence[int] = (256, 128),
        seed: int = 0,
        clip_norm: float | None = None,
    ) -> None:
        super().__init__()
        for name, value in (("weight", weight), ("ramp_steps", ramp_steps), ("clip_norm", clip_norm)):
            if value is not None and value < 0:
                msg = f"`{name}` must be at least 0, got {value}."
                raise ArgumentError(msg)
        self.weight = weight
        self.ramp_steps = ramp_steps
        self.clip_norm = clip_norm
        self.discriminator: Discriminator | None = None
        self._pending_optimizer_state: dict[str, Any] | None = None
        if weight > 0:
            with seeded(seed):
                self.discriminator = Discriminator(channels, hidden).requires_grad_(requires_grad=False)
            self.optimizer = torch.optim.Adam(self.discriminator.parameters(), learning_rate, betas=(0.5, 0.999))

    def forward(
        self,
        first: torch.Tensor,
        second: torch.Tensor,
        step: int,
    ) -> tuple[torch.Tensor, DiscriminatorStats | None]:
        """Update the discriminator and return the loss.

        Args:
            first (torch.Tensor): First features, shape ``(..., C)``.
            second (torch.Tensor): Second features, shape ``(..., C)``.
            step (int): Index of the optimizer step, which determines the weight during the ramp.

        Returns:
            tuple[torch.Tensor, DiscriminatorStats | None]: Weighted loss, a scalar, and the statistics of the
            discriminator. With a weight of 0: 0 and ``None``.
        """
        if self.discriminator is None:
            return first.new_zeros(()), None
        with torch.autocast(first.device.type, enabled=False):
            first, second = first.float(), second.float()
            stats = self._step_discriminator(self.discriminator, first.detach(), second.detach())
            loss = generator_loss(self.discriminator(first), self.discriminator(second))
        ramp = min(1.0, (step + 1) / self.ramp_steps) if self.ramp_steps > 0 else 1.0
        return self.weight * ramp * loss, stats

    def _step_discriminator(
        self,
        discriminator: Discriminator,
        first: torch.Tensor,
        second: torch.Tensor,
    ) -> DiscriminatorStats:
        if self._pending_optimizer_state is not None:  # loaded here, because the device of the parameters is now final
            self.optimizer.load_state_dict(self._pending_optimizer_state)
            self._pending_optimizer_state = None
        parameters = list(discriminator.requires_grad_().parameters())
        logits = discriminator(first), discriminator(second)
        loss = discriminator_loss(*logits)
        gradients = torch.autograd.grad(loss, parameters)
        discriminator.requires_grad_(requires_grad=False)
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.grad = _average(gradient)
        if self.clip_norm:
            nn.utils.clip_grad_norm_(parameters, self.clip_norm)
        self.optimizer.step()
        self.optimizer.zero_grad()
        accuracy = ((logits[0] < 0).float().mean() + (logits[1] > 0).float().mean()) / 2
        return DiscriminatorStats(loss.detach(), accuracy)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:  # noqa: ANN401
        """Load a checkpoint of a model with any weight. A discriminator with other shapes is ignored."""
        name = f"{prefix}discriminator."
        current = {} if self.discriminator is None else self.discriminator.state_dict(prefix=name)
        saved = {key: value for key, value in state_dict.items() if key.startswith(name)}
        current_shapes = {key: value.shape for key, value in current.items()}
        saved_shapes = {key: value.shape for key, value in saved.items()}
        if current_shapes != saved_shapes:
            for key in saved:
                del state_dict[key]
            state_dict |= {**current, f"{prefix}_extra_state": {}}
        super()._load_from_state_dict(state_dict, prefix, *args)

    def get_extra_state(self) -> dict[str, Any]:
        """Return the optimizer state for the checkpoint."""
        if self.discriminator is None:
            return {}
        return self._pending_optimizer_state or self.optimizer.state_dict()

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """Restore the optimizer state from a checkpoint."""
        self._pending_optimizer_state = state or None


def _average(gradient: torch.Tensor) -> torch.Tensor:
    """Return the gradient, averaged over all processes."""
    if distributed.is_available() and distributed.is_initialized():
        distributed.all_reduce(gradient)
        gradient /= distributed.get_world_size()
    return gradient
