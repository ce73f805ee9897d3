# Copyright (C) 2026 anomalib-fewshot contributors
# SPDX-License-Identifier: Apache-2.0

"""The torch model: it knows nothing of Lightning, and what inference needs is in its buffers."""

import torch
from anomalib.data import InferenceBatch
from torch import nn


class MeanPictureModel(nn.Module):
    """Distance of each pixel from its mean over the support.

    Args:
        image_size (int): Height and width of the images.
    """

    def __init__(self, image_size: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(3, image_size, image_size))

    def fit(self, images: torch.Tensor) -> None:
        """Fit the mean to images of the support, shape ``(K, 3, H, W)``."""
        self.mean.copy_(images.mean(0))

    def forward(self, images: torch.Tensor) -> InferenceBatch:
        """Score images, shape ``(B, 3, H, W)``: the score is the highest value of the anomaly map."""
        anomaly_map = (images - self.mean).abs().mean(1, keepdim=True)  # (B, 1, H, W)
        return InferenceBatch(pred_score=anomaly_map.amax((1, 2, 3)), anomaly_map=anomaly_map)
