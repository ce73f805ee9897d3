# Copyright (C) 2026 anomalib-fewshot contributors
# SPDX-License-Identifier: Apache-2.0

"""Common score scale for several categories with different mean scores."""

from collections.abc import Sequence

import torch
from anomalib.models.components.base import DynamicBufferMixin
from torch.nn import functional as F  # noqa: N812


class CategoryScale(DynamicBufferMixin):
    """Mean score of the nearest category, by which the score of an image is divided.

    The nearest category is that of the training image whose embedding has the highest cosine similarity. Its mean score
    is computed over the training images. The scale depends only on the image, so it also works in exported models. It
    is 1 before a fit. The paper has no such scale.
    """

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("embeddings", torch.zeros(0))  # (P, C)
        self.register_buffer("category_mean_scores", torch.zeros(0))  # (P,)
        self.embeddings: torch.Tensor
        self.category_mean_scores: torch.Tensor

    @torch.no_grad()
    def fit(self, embeddings: torch.Tensor, scores: torch.Tensor, categories: Sequence[str]) -> None:
        """Store the embeddings of the training images and the mean scores of their categories.

        Args:
            embeddings (torch.Tensor): Embeddings of P images, shape ``(P, C)``.
            scores (torch.Tensor): Positive scores of the images, shape ``(P,)``.
            categories (Sequence[str]): Category of each image.
        """
        mean_scores = torch.empty(len(scores), device=scores.device)
        for name in set(categories):
            mask = torch.tensor([category == name for category in categories], device=scores.device)
            mean_scores[mask] = scores[mask].mean().float()
        self.embeddings = F.normalize(embeddings.float(), dim=-1)
        self.category_mean_scores = mean_scores

    def forward(self, embeddings: torch.Tensor) -> torch.Tensor:
        """Return the mean score of the nearest category of each image: ``(B, C)`` -> ``(B,)``."""
        if len(self.category_mean_scores) == 0:
            return torch.ones_like(embeddings[:, 0])
        return self.category_mean_scores[(embeddings @ self.embeddings.T).argmax(dim=1)]
