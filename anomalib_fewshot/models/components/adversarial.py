# Copyright (C) 2026 anomalib-fewshot contributors
# SPDX-License-Identifier: Apache-2.0

"""The adversarial loss between two features that should be alike: a discriminator tells them apart, the model fools it.

Published idea, this package's settings: https://arxiv.org/abs/2312.03005 gives the idea, and no discriminator, weight
or learning rate that is known to us.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import distributed, nn
from torch.nn import functional as F  # noqa: N812

from anomalib_fewshot.errors import ArgumentError

from .seeding import seeded

ADVERSARIAL_RAMP = 0.1  # part of a training over which the loss comes in


def discriminator_loss(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    """Return the cross-entropy of telling the first feature, label 0, from the second, label 1.

    Args:
        first (torch.Tensor): Logits of the first feature, of any shape.
        second (torch.Tensor): Logits of the second feature, of any shape.

    Returns:
        torch.Tensor: Scalar. log 2 = 0.693 where the discriminator cannot tell.

    Example:
        >>> discriminator_loss(torch.zeros(3), torch.zeros(3))
        tensor(0.6931)
    """
    return (F.softplus(first).mean() + F.softplus(-second).mean()) / 2


def generator_loss(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    """Return the loss that the model lowers: :func:`discriminator_loss` with swapped labels."""
    return discriminator_loss(second, first)


class Discriminator(nn.Module):
    """Tells at every position which of two features it sees, by the direction of the feature and not by its length.

    Args:
        channels (int): Channels C of a feature.
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
        """Return a logit of each feature: ``(..., C)`` -> ``(...)``."""
        return self.layers(F.normalize(features, dim=-1)).squeeze(-1)


class DiscriminatorStats(NamedTuple):
    """How the discriminator does, before its update.

    Args:
        loss (torch.Tensor): Its loss. 0.693: it cannot tell.
        accuracy (torch.Tensor): Fraction it tells right. 0.5 to 0.7 is useful, 1 hints at a cue such as a norm, and 0.5
            from the start at no signal.
    """

    loss: torch.Tensor
    accuracy: torch.Tensor


class AdversarialStep(nn.Module):
    """Update a discriminator of two features, and return the loss that makes the model fool it.

    A model adds it to its own loss, in a training step::

        adversarial_loss, stats = self.adversarial(first, second, self.global_step)
        loss = loss + adversarial_loss

    The discriminator has an optimiser of its own, Adam with betas (0.5, 0.999), whose state goes into the checkpoint.
    Its parameters take no gradient outside of its update, so that neither the model's optimiser nor DDP sees them; over
    several processes its gradients are averaged here. It computes in single precision. With a weight of 0 nothing is
    built, drawn or computed, and the model is the plain one. It is called once before each backward pass: a second call
    changes the discriminator that the first loss goes back through.

    Args:
        channels (int): Channels C of the features.
        weight (float): Weight of the loss.
        learning_rate (float): The discriminator's learning rate. Defaults to ``1e-4``.
        ramp_steps (int): Steps over which the weight rises to its value. Defaults to ``0``.
        hidden (Sequence[int]): See :class:`Discriminator`. Defaults to ``(256, 128)``.
        seed (int): Seed of the discriminator. The global seed has no influence. Defaults to ``0``.
        clip_norm (float | None): Highest norm of the discriminator's gradient. Defaults to ``None``: any, as with 0.

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
                msg = f"`{name}` must not be below 0, got {value}."
                raise ArgumentError(msg)
        self.weight = weight
        self.ramp_steps = ramp_steps
        self.clip_norm = clip_norm
        self.discriminator: Discriminator | None = None
        self._loaded: dict[str, Any] | None = None
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
            first (torch.Tensor): Features, shape ``(..., C)``: the channels are the last axis.
            second (torch.Tensor): Features that should be like them, shape ``(..., C)``.
            step (int): Number of the optimiser step, for the ramp.

        Returns:
            tuple[torch.Tensor, DiscriminatorStats | None]: Weighted loss, a scalar, and how the discriminator does. 0
            and ``None`` if the weight is 0.
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
        if self._loaded is not None:  # only now is it known on which device the parameters are
            self.optimizer.load_state_dict(self._loaded)
            self._loaded = None
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
        """Take the checkpoint of a model with any weight: a discriminator that is not of this shape is left out."""
        name = f"{prefix}discriminator."
        own = {} if self.discriminator is None else self.discriminator.state_dict(prefix=name)
        given = {key: value for key, value in state_dict.items() if key.startswith(name)}
        if {key: value.shape for key, value in own.items()} != {key: value.shape for key, value in given.items()}:
            for key in given:
                del state_dict[key]
            state_dict |= {**own, f"{prefix}_extra_state": {}}
        super()._load_from_state_dict(state_dict, prefix, *args)

    def get_extra_state(self) -> dict[str, Any]:
        """Return the optimiser's state for the checkpoint: tensors and plain data."""
        if self.discriminator is None:
            return {}
        return self._loaded or self.optimizer.state_dict()

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """Take the optimiser's state from a checkpoint."""
        self._loaded = state or None


def _average(gradient: torch.Tensor) -> torch.Tensor:
    """Return the mean of a gradient over the processes."""
    if distributed.is_available() and distributed.is_initialized():
        distributed.all_reduce(gradient)
        gradient /= distributed.get_world_size()
    return gradient
