# Copyright (C) 2026 anomalib-fewshot contributors
# SPDX-License-Identifier: Apache-2.0

"""Loss of RegAD: the negative cosine similarity of registered features at each position."""

import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812

from anomalib_fewshot.errors import ArgumentError


def negative_cosine_similarity(prediction: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Return the negative cosine similarity over the channels, averaged over images and positions.

    Args:
        prediction (torch.Tensor): Output of the predictor, shape ``(B, C, h, w)``.
        target (torch.Tensor): Detached output of the encoder for the other branch, shape ``(B, C, h, w)``.

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
        shapes = f"{tuple(prediction.shape)} and {tuple(target.shape)}"
        msg = f"`prediction` and `target` must have the same shape, got {shapes}."
        raise ArgumentError(msg)
    return -F.cosine_similarity(prediction.float(), target.float(), dim=1).mean()  # (B, C, h, w) -> scalar


class RegADLoss(nn.Module):
    """Symmetric registration loss: each branch predicts the detached encoding of the other one."""

    @staticmethod
    def forward(
        predictions: tuple[torch.Tensor, torch.Tensor],
        encodings: tuple[torch.Tensor, torch.Tensor],
    ) -> torch.Tensor:
        """Return D(p_query, z_support) / 2 + D(p_support, z_query) / 2.

        Args:
            predictions (tuple[torch.Tensor, torch.Tensor]): Predictor outputs of queries and supports, each of shape
                ``(B, C, h, w)``.
            encodings (tuple[torch.Tensor, torch.Tensor]): Encoder outputs of queries and supports, of the same shape.

        Returns:
            torch.Tensor: Scalar in ``[-1, 1]``.
        """
        query, support = predictions
        query_target, support_target = encodings
        query_loss = negative_cosine_similarity(query, support_target.detach())
        support_loss = negative_cosine_similarity(support, query_target.detach())
        return (query_loss + support_loss) / 2
