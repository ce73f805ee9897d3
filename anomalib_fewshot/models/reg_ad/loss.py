# Copyright (C) 2026 anomalib-fewshot contributors
# SPDX-License-Identifier: Apache-2.0

"""Loss of RegAD: the negative cosine similarity of registered features, at every position."""

import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812

from anomalib_fewshot.errors import ArgumentError


def negative_cosine_similarity(prediction: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Return the negative cosine similarity over the channels, averaged over images and positions.

    Args:
        prediction (torch.Tensor): Output of the predictor, shape ``(B, C, h, w)``.
        target (torch.Tensor): Output of the encoder for the other branch, shape ``(B, C, h, w)``, already detached.

    Returns:
        torch.Tensor: Scalar in ``[-1, 1]``, lower is better.

    Raises:
        ArgumentError: If the shapes differ.

    Example:
        >>> maps = torch.tensor([[1.0, 0.0], [1.0, 2.0]]).view(1, 2, 1, 2)  # (1, 1) and (0, 2) at two positions
        >>> negative_cosine_similarity(maps, torch.tensor([0.0, 1.0]).view(1, 2, 1, 1).expand(1, 2, 1, 2))
        tensor(-0.8536)

    Reference:
        D(p, z) of RegAD, https://arxiv.org/abs/2207.07361.
    """
    if prediction.shape != target.shape:
        msg = f"`prediction` and `target` must have one shape, got {tuple(prediction.shape)} and {tuple(target.shape)}."
        raise ArgumentError(msg)
    return -F.cosine_similarity(prediction.float(), target.float(), dim=1).mean()  # (B, C, h, w) -> scalar


class RegADLoss(nn.Module):
    """Symmetric registration loss: each branch predicts the other, whose encoding gets no gradient."""

    @staticmethod
    def forward(
        predictions: tuple[torch.Tensor, torch.Tensor],
        encodings: tuple[torch.Tensor, torch.Tensor],
    ) -> torch.Tensor:
        """Return D(p_query, z_support) / 2 + D(p_support, z_query) / 2.

        Args:
            predictions (tuple[torch.Tensor, torch.Tensor]): Outputs of the predictor for queries and supports, each of
                shape ``(B, C, h, w)``.
            encodings (tuple[torch.Tensor, torch.Tensor]): Outputs of the encoder for queries and supports.

        Returns:
            torch.Tensor: Scalar in ``[-1, 1]``.
        """
        (query, support), (target_query, target_support) = predictions, (z.detach() for z in encodings)
        first = negative_cosine_similarity(query, target_support)
        second = negative_cosine_similarity(support, target_query)
        return (first + second) / 2
