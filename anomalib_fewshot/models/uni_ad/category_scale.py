# Copyright (C) 2026 anomalib-fewshot contributors
# SPDX-License-Identifier: Apache-2.0

"""One scale for the scores of several categories, whose usual scores differ."""

from collections.abc import Sequence

import torch
from anomalib.models.components.base import DynamicBufferMixin
from torch.nn import functional as F  # noqa: N812


class CategoryScale(DynamicBufferMixin):
    """The usual score of the category that an image looks like, to divide its own score by.

    An image is taken for one of the category of the training image that its embedding has the highest cosine with; what
    is usual is the mean score of the training images of that category. Nothing but the image is needed, so that an
    exported model has one scale, too. Before a fit it is 1. Ours.
    """

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("embeddings", torch.zeros(0))  # (P, C)
        self.register_buffer("category_mean_scores", torch.zeros(0))  # (P,)
        self.embeddings: torch.Tensor
        self.category_mean_scores: torch.Tensor

    @torch.no_grad()
    def fit(self, embeddings: torch.Tensor, scores: torch.Tensor, categories: Sequence[str]) -> None:
        """Take the embeddings of training images and what their categories usually score.

        Args:
            embeddings (torch.Tensor): Embeddings of P images, shape ``(P, C)``.
            scores (torch.Tensor): Their scores, above 0, shape ``(P,)``.
            categories (Sequence[str]): Their categories.
        """
        names = sorted(set(categories))
        index = torch.tensor([names.index(name) for name in categories], device=scores.device)
        means = torch.stack([scores[index == number].mean() for number in range(len(names))])
        self.embeddings = F.normalize(embeddings.float(), dim=-1)
        self.category_mean_scores = means.float()[index]

    def forward(self, embeddings: torch.Tensor) -> torch.Tensor:
        """Return the usual score of the category that each image looks like: ``(B, C)`` -> ``(B,)``."""
        if len(self.category_mean_scores) == 0:
            return torch.ones_like(embeddings[:, 0])
        return self.category_mean_scores[(embeddings @ self.embeddings.T).argmax(dim=1)]
