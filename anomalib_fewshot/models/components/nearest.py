# Copyright (C) 2026 anomalib-fewshot contributors
# SPDX-License-Identifier: Apache-2.0

"""Coreset selection for a memory bank, and nearest-neighbor distances."""

import torch

CHUNK = 8  # images of a bank in a product: more exceed the CPU caches


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
    query_norms = queries.square().sum(-1, keepdim=True)
    squared_distances = []
    for images in bank.split(CHUNK):
        products = torch.addmm(images.square().sum(-1).flatten(), queries, images.flatten(0, 1).T, alpha=-2)
        squared_distances.append(query_norms + products.unflatten(-1, images.shape[:2]).amin(-1))
    return torch.cat(squared_distances, dim=-1).clamp_min(0).sqrt().unflatten(0, patches.shape[:-1])
