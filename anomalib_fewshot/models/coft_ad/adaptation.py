# Copyright (C) 2026 anomalib-fewshot contributors
# SPDX-License-Identifier: Apache-2.0

"""Fine-tuning of the metric of Gaussians, on features that are computed once."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from anomalib_fewshot.models.components import seeded_generator

from .density import FeatureGaussian, apply_metric
from .held_out import HeldOut
from .loss import AdaptationLoss, mean_log_energy

PATCHES = 1024  # normal and anomalous patches of each group in a step


@dataclass(frozen=True)
class AdaptationSettings:
    """How long and how fast a metric is fine-tuned.

    Args:
        num_steps (int): Number of steps of AdamW.
        learning_rate (float): Its learning rate.
        weight_decay (float): Its weight decay.
        seed (int): Seed of the patches that a step draws.
    """

    num_steps: int
    learning_rate: float
    weight_decay: float
    seed: int


@torch.inference_mode(mode=False)
@torch.enable_grad()
def adapt(
    densities: Sequence[FeatureGaussian],
    held_out: HeldOut,
    loss: AdaptationLoss,
    settings: AdaptationSettings,
) -> Iterator[float]:
    """Fine-tune the metric of each Gaussian by AdamW, from the identity.

    A group of features without anomalous patches keeps the identity. So do all if there is a single image, which has no
    cross-instance pairs.

    Args:
        densities (Sequence[FeatureGaussian]): Gaussians, whose ``metric_delta`` is set when the last step is done.
        held_out (HeldOut): Whitened features of held-out images and of synthesised anomalies.
        loss (AdaptationLoss): Loss of a group.
        settings (AdaptationSettings): Length, rate and seed.

    Yields:
        float: Loss of each step, summed over the groups.
    """
    for density in densities:
        density.metric_delta.zero_()
    groups = [
        (density, torch.zeros_like(density.metric_delta, requires_grad=True), _threshold(*pair), *pair)
        for density, *pair in zip(densities, held_out.normal, held_out.anomalous, strict=True)
        if not held_out.is_single_image and all(len(patches) > 0 for patches in pair)
    ]
    if not groups:
        return
    trained = [parameter for _, delta, threshold, *_ in groups for parameter in (delta, threshold)]
    optimizer = torch.optim.AdamW(trained, lr=settings.learning_rate, weight_decay=settings.weight_decay)
    for step in range(settings.num_steps):
        rng = seeded_generator(settings.seed, 0, step)
        losses = []
        for _, delta, threshold, *pair in groups:
            near, far = (drawn_energies(patches.flatten(0, -2), delta, rng) for patches in pair)
            losses.append(loss(near, far, threshold, delta))
        total = torch.stack(losses).sum()
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
        yield total.item()
    for density, delta, *_ in groups:
        density.metric_delta.copy_(delta.detach())


def drawn_energies(whitened: torch.Tensor, metric_delta: torch.Tensor, rng: torch.Generator) -> torch.Tensor:
    """Return the energies of whitened rows that are drawn at random, with repetition: ``(N, D)`` -> ``(PATCHES,)``."""
    drawn = torch.randint(len(whitened), (PATCHES,), generator=rng).to(whitened.device)
    if len(whitened) <= PATCHES:  # none is computed twice
        return mean_log_energy(apply_metric(whitened, metric_delta))[drawn]
    return mean_log_energy(apply_metric(whitened[drawn], metric_delta))


def _threshold(normal: torch.Tensor, anomalous: torch.Tensor) -> torch.Tensor:
    """Return the first threshold of the loss: the middle between the energies of normal and anomalous patches."""
    energies = torch.stack([mean_log_energy(patches).mean() for patches in (normal, anomalous)])
    return energies.mean().detach().clone().requires_grad_()
