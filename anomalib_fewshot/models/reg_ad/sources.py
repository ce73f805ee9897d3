# Copyright (C) 2026 anomalib-fewshot contributors
# SPDX-License-Identifier: Apache-2.0

"""Which other categories are like the target: those that a registration network learns from."""

from collections.abc import Callable, Iterable, Mapping

import torch
from torch.nn import functional as F  # noqa: N812


@torch.no_grad()
def similarities(
    embed: Callable[[torch.Tensor], torch.Tensor],
    support: Iterable[torch.Tensor],
    others: Mapping[str, Iterable[torch.Tensor]],
) -> dict[str, float]:
    """Return how like each other category is to the target.

    Args:
        embed (Callable[[torch.Tensor], torch.Tensor]): Returns the embeddings of images: ``(B, 3, H, W)`` ->
            ``(B, E)``.
        support (Iterable[torch.Tensor]): Images of the target, in batches.
        others (Mapping[str, Iterable[torch.Tensor]]): Normal images of each other category, in batches.

    Returns:
        dict[str, float]: Mean cosine of the embeddings of a support image and of an image of each category, between -1
        and 1.
    """

    def directions(batches: Iterable[torch.Tensor]) -> torch.Tensor:
        return F.normalize(torch.cat([embed(images) for images in batches]), dim=-1)

    target = directions(support)
    return {name: float((target @ directions(batches).T).mean()) for name, batches in others.items()}
