# Copyright (C) 2026 anomalib-fewshot contributors
# SPDX-License-Identifier: Apache-2.0

"""Coreset selection for a memory bank, and nearest-neighbor distances."""

import torch

CHUNK = 4  # images of a bank in a product: more exceed the CPU caches


def coreset(rows: torch.Tensor, count: int) -> torch.Tensor:
    """Return a k-center greedy coreset of at most ``count`` rows: ``(N, D)`` -> ``(min(N, count), D)``.

    The algorithm is that of anomalib's ``KCenterGreedy``, but starts at the first row instead of a random one.
    """
    selected, distances = [0], torch.full_like(rows[:, 0], torch.inf)
    while len(selected) < min(count, len(rows)):
        distances = torch.minimum(distances, (rows - rows[selected[-1]]).square().sum(-1))
        selected.append(int(distances.argmax()))
    return rows[selected]


def nearest_distances(patches: torch.Tensor, bank: torch.Tensor) -> torch.Tensor:
    """Return the distance to the nearest row of each image in a memory bank.

    Args:
        patches (torch.Tensor): Patch features, shape ``(..., D)``.
        bank (torch.Tensor): R rows of each of N images, shape ``(N, R, D)``.

    Returns:
        torch.Tensor: Euclidean distances, shape ``(..., N)``.
    """
    queries = patches.flatten(0, -2)
    squares = bank.square().sum(-1, keepdim=True)  # (N, R, 1)
    lowest = []
    for rows, own in zip(bank.split(CHUNK), squares.split(CHUNK), strict=True):
        products = torch.addmm(own.flatten(0, 1), rows.flatten(0, 1), queries.T, alpha=-2)
        lowest.append(products.unflatten(0, rows.shape[:2]).amin(1))
    squared_distances = torch.cat(lowest).T + queries.square().sum(-1, keepdim=True)
    return squared_distances.clamp_min(0).sqrt().unflatten(0, patches.shape[:-1])
