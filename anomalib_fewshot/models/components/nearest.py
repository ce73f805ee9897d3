# Copyright (C) 2026 anomalib-fewshot contributors
# SPDX-License-Identifier: Apache-2.0

"""Selection of rows for a memory bank, and distances from it."""

import torch


def coreset(rows: torch.Tensor, count: int) -> torch.Tensor:
    """Return rows that are far from one another, of ``(N, D)`` at most ``(count, D)``.

    This is the k-center greedy choice of anomalib's ``KCenterGreedy``, from the first row on instead of a random one.
    """
    chosen, distances = [0], torch.full_like(rows[:, 0], torch.inf)
    while len(chosen) < min(count, len(rows)):
        distances = torch.minimum(distances, (rows - rows[chosen[-1]]).square().sum(-1))
        chosen.append(int(distances.argmax()))
    return rows[chosen]


def nearest_distances(patches: torch.Tensor, bank: torch.Tensor) -> torch.Tensor:
    """Return the distances from the nearest row of each of F banks: ``(..., D)``, ``(F, R, D)`` -> ``(..., F)``."""
    rows = patches.flatten(0, -2)
    norms = rows.square().sum(-1)
    squares = [norms + (own.square().sum(-1) - 2 * rows @ own.T).amin(-1) for own in bank]
    return torch.stack(squares, dim=-1).clamp_min(0).sqrt().unflatten(0, patches.shape[:-1])
