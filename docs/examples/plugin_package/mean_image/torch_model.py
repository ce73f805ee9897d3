# Copyright (C) 2026 anomalib-fewshot contributors
# SPDX-License-Identifier: Apache-2.0

"""PyTorch model. It does not depend on Lightning, and buffers hold everything that inference requires."""

import torch
from anomalib.data import InferenceBatch
from torch import nn


class MeanImageModel(nn.Module):
    """Distance of each pixel from its mean over the support set.

    Args:
        image_size (int): Height and width of the images.
    """

    def __init__(self, image_size: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(3, image_size, image_size))

    def fit(self, images: torch.Tensor) -> None:
        """Compute the mean of the support set, shape ``(K, 3, H, W)``."""
        self.mean.copy_(images.mean(0))

    def forward(self, images: torch.Tensor) -> InferenceBatch:
        """Score images of shape ``(B, 3, H, W)`` with the maximum of their anomaly maps."""
        anomaly_map = (images - self.mean).abs().mean(1, keepdim=True)  # (B, 1, H, W)
        return InferenceBatch(pred_score=anomaly_map.amax((1, 2, 3)), anomaly_map=anomaly_map)
