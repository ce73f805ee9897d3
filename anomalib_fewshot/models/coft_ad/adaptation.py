# Copyright (C) 2026 anomalib-fewshot contributors
# SPDX-License-Identifier: Apache-2.0

"""Contrastive fine-tuning of the metric of Gaussians, on features that are computed once."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch.nn import functional as F  # noqa: N812

from anomalib_fewshot.models.components import seeded_generator

from .density import apply_metric
from .folds import OutOfFold

OnStep = Callable[[float], object]
MIN_ENERGY = 1e-3


@dataclass(frozen=True)
class AdaptationSettings:
    """Settings of the fine-tuning of a metric by AdamW.

    Args:
        num_steps (int): Number of optimizer steps.
        learning_rate (float): Learning rate.
        positive_weight (float): Weight w_P of the cross-instance positive pairs.
        negative_weight (float): Weight w_N of the synthesized negative pairs.
        seed (int): Seed of the patches that each step draws.
        anchor_weight (float): Weight w_A of the distance of the metric from the identity.
        batch_size (int): Normal patches, and anomalous patches, of each feature group in a step.
    """

    num_steps: int
    learning_rate: float
    positive_weight: float = 1.0
    negative_weight: float = 1.0
    seed: int = 0
    anchor_weight: float = 20.0
    batch_size: int = 1024


@dataclass(frozen=True)
class _GroupTraining:
    patches: OutOfFold
    metric_delta: torch.Tensor  # (D, D)
    threshold: torch.Tensor  # scalar

    def loss(self, settings: AdaptationSettings, rng: torch.Generator) -> torch.Tensor:
        normal = sample_energies(self.patches.normal.flatten(0, -2), self.metric_delta, settings.batch_size, rng)
        anomalous = sample_energies(self.patches.anomalous, self.metric_delta, settings.batch_size, rng)
        return adaptation_loss(normal, anomalous, self.threshold, self.metric_delta, settings)


@torch.inference_mode(mode=False)
@torch.enable_grad()
def adapt_metrics(groups: Sequence[OutOfFold], settings: AdaptationSettings, on_step: OnStep) -> list[torch.Tensor]:
    """Fine-tune the metric A of each feature group, starting from the identity.

    A normal patch and the Gaussian of the other folds are a cross-instance positive pair. A normal and an anomalous
    patch are a negative pair. A group without anomalous patches keeps the identity.

    Args:
        groups (Sequence[OutOfFold]): Whitened patches of each group.
        settings (AdaptationSettings): Length, weights and seed.
        on_step (OnStep): Called with the loss of each step, summed over the groups.

    Returns:
        list[torch.Tensor]: The A - I of each group, shape ``(D, D)``.
    """
    deltas, trained, parameters = [], [], []
    for patches in groups:
        dim = patches.normal.shape[-1]
        delta = torch.zeros(dim, dim, device=patches.normal.device, requires_grad=True)
        deltas.append(delta)
        if len(patches.anomalous) > 0:
            means = [mean_log_energy(own).mean() for own in (patches.normal, patches.anomalous)]
            threshold = torch.stack(means).mean().clone().requires_grad_()
            trained.append(_GroupTraining(patches, delta, threshold))
            parameters += [delta, threshold]
    if trained:
        optimizer = torch.optim.AdamW(parameters, lr=settings.learning_rate, weight_decay=0.0)
        for step in range(settings.num_steps):
            rng = seeded_generator(settings.seed, 0, step)
            loss = torch.stack([group.loss(settings, rng) for group in trained]).sum()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            on_step(loss.item())
    return [delta.detach() for delta in deltas]


def sample_energies(whitened: torch.Tensor, delta: torch.Tensor, count: int, rng: torch.Generator) -> torch.Tensor:
    """Return the energies of random rows, drawn with replacement: ``(N, D)`` and A - I -> ``(count,)``."""
    drawn = torch.randint(len(whitened), (count,), generator=rng).to(whitened.device)
    if len(whitened) <= count:  # compute no row twice
        return mean_log_energy(apply_metric(whitened, delta))[drawn]
    return mean_log_energy(apply_metric(whitened[drawn], delta))


def mean_log_energy(embeddings: torch.Tensor) -> torch.Tensor:
    """Return the logarithm of the mean square, about 0 for a normal patch: ``(..., D)`` -> ``(...)``."""
    return (embeddings.square().mean(-1) + MIN_ENERGY).log()


def adaptation_loss(
    normal: torch.Tensor,
    anomalous: torch.Tensor,
    threshold: torch.Tensor,
    metric_delta: torch.Tensor,
    settings: AdaptationSettings,
    sharpness: float = 2.0,
) -> torch.Tensor:
    r"""Return the loss of one group: it brings normal patches near the Gaussian and pushes anomalous ones away.

    With e the logarithm of a patch's mean square after whitening and the metric A, and b a trained threshold,

    .. math:: L = w_P \log(1 + \exp(s (e_{normal} - b))) + w_N \log(1 + \exp(s (b - e_{anomalous})))
        + w_A |A - I|^2 / D

    Args:
        normal (torch.Tensor): The e of normal patches, shape ``(M,)``.
        anomalous (torch.Tensor): The e of anomalous patches, shape ``(N,)``.
        threshold (torch.Tensor): The b above, a scalar.
        metric_delta (torch.Tensor): A - I, shape ``(D, D)``.
        settings (AdaptationSettings): The weights.
        sharpness (float): The s above. Defaults to ``2.0``.

    Returns:
        torch.Tensor: Scalar.
    """
    near = F.softplus(sharpness * (normal - threshold)).mean()
    far = F.softplus(sharpness * (threshold - anomalous)).mean()
    anchor = metric_delta.square().sum() / len(metric_delta)
    return settings.positive_weight * near + settings.negative_weight * far + settings.anchor_weight * anchor
