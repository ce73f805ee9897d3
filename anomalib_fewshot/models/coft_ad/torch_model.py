# Copyright (C) 2026 anomalib-fewshot contributors
# SPDX-License-Identifier: Apache-2.0

"""PyTorch model of CoftAD."""

from collections.abc import Sequence
from pathlib import Path

import torch
from anomalib.data import InferenceBatch
from anomalib.models.components import GaussianBlur2d
from torch import nn
from torch.nn import functional as F  # noqa: N812

from anomalib_fewshot.models.components import Backbone, Gaussian, Moments

IMAGE_SCORES = ("embedding", "map", "mean")


class CoftADModel(nn.Module):
    """Fine-tuned backbone with a Gaussian of image embeddings, and one of the embeddings of all positions.

    The image embedding is the last feature map's mean over its positions, and its Gaussian is the published density.
    The embedding of a position is made of earlier maps, and its Gaussian, shared by all positions, gives the anomaly
    map, which is this package's extension.

    Args:
        backbone (str): Name of a timm model.
        layers (Sequence[int] | None): Feature maps that the anomaly map is made of, see :class:`Backbone`.
        pre_trained (bool): Load weights.
        weights (str | Path | None): File with the weights, see :class:`Backbone`.
        image_size (tuple[int, int]): Height and width of the images.
        covariance_floor (float): See :class:`Gaussian`.
        image_score (str): What the image's score is: the distance of its ``"embedding"``, as published; the mean of the
            highest 1 % of its ``"map"``; or the ``"mean"`` of both, each over the root of its dimension, which is about
            what a distance is for a normal image.
        hidden_dim (int): Width of the heads' hidden layers.

    Raises:
        ValueError: If there is no such image score, or as :class:`Backbone` and :class:`Gaussian` do.
    """

    def __init__(
        self,
        backbone: str,
        layers: Sequence[int] | None,
        pre_trained: bool,
        weights: str | Path | None,
        image_size: tuple[int, int],
        covariance_floor: float,
        image_score: str,
        hidden_dim: int = 256,
    ) -> None:
        super().__init__()
        if image_score not in IMAGE_SCORES:
            msg = f"`image_score` must be one of {IMAGE_SCORES}, got {image_score!r}."
            raise ValueError(msg)
        self.image_score = image_score
        self.backbone = Backbone(backbone, layers, pre_trained, weights, image_size)
        dim = self.backbone.channels[-1]
        # Layer norms: a batch of a few images makes poor batch statistics, and a batch of one none at all.
        self.projection_head = _mlp(dim, hidden_dim, hidden_dim)
        self.prediction_head = _mlp(hidden_dim, hidden_dim // 4, hidden_dim)
        self.image_density = Gaussian(dim, covariance_floor)
        self.position_density = Gaussian(sum(self.backbone.channels[i] for i in self.backbone.layers), covariance_floor)
        self.blur = GaussianBlur2d(kernel_size=(33, 33), sigma=(4.0, 4.0), channels=1)

    def embed(self, images: torch.Tensor) -> torch.Tensor:
        """Return the embeddings of normalised images: ``(B, 3, H, W)`` -> ``(B, D)``."""
        return self.backbone(images)[-1].mean((-2, -1))

    def project(self, embeddings: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the outputs of the projection and the prediction head: ``(B, D)`` -> twice ``(B, hidden_dim)``."""
        projection = self.projection_head(embeddings)
        return projection, self.prediction_head(projection)

    def unit_embeddings(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the embeddings that the two Gaussians are of.

        Args:
            images (torch.Tensor): Normalised images, shape ``(B, 3, H, W)``.

        Returns:
            tuple[torch.Tensor, torch.Tensor]: Embeddings of the images, shape ``(B, D)``, of length 1, and of the
            positions on the finest grid of the layers, shape ``(B, h, w, E)``, of length 1 in each layer.
        """
        maps = self.backbone(images)
        image = F.normalize(maps[-1].mean((-2, -1)), dim=-1)
        layers = [maps[layer] for layer in self.backbone.layers]
        grid = layers[0].shape[-2:]
        layers = [F.interpolate(layer, grid, mode="bilinear", align_corners=False) for layer in layers]
        position = torch.cat([F.normalize(layer, dim=1) for layer in layers], dim=1)
        return image, position.movedim(1, -1)  # (B, E, h, w) -> (B, h, w, E)

    @torch.no_grad()
    def moments(self, images: torch.Tensor) -> tuple[Moments, Moments]:
        """Return the moments of the embeddings of images, and of their positions, for :meth:`fit`."""
        image, position = self.unit_embeddings(images)
        return Moments.of(image), Moments.of(position)

    def fit(self, image: Moments, position: Moments) -> None:
        """Fit the two Gaussians."""
        self.image_density.fit(image)
        self.position_density.fit(position)

    def forward(self, images: torch.Tensor) -> InferenceBatch:
        """Score images.

        Args:
            images (torch.Tensor): Normalised images, shape ``(B, 3, H, W)``.

        Returns:
            InferenceBatch: Scores, shape ``(B,)``, and anomaly maps, shape ``(B, 1, H, W)``.
        """
        image, position = self.unit_embeddings(images)
        image_distance, position_distance = self.image_density(image), self.position_density(position)
        anomaly_map = F.interpolate(position_distance[:, None], images.shape[-2:], mode="bilinear", align_corners=False)
        return InferenceBatch(
            pred_score=self._score(image_distance, position_distance),
            anomaly_map=self.blur(anomaly_map),
        )

    def _score(self, image: torch.Tensor, position: torch.Tensor) -> torch.Tensor:
        if self.image_score == "embedding":
            return image
        count = max(1, round(0.01 * position[0].numel()))
        highest = position.flatten(1).topk(count, dim=-1).values.mean(-1)  # (B, h, w) -> (B,)
        if self.image_score == "map":
            return highest
        expected = (len(self.image_density.mean) ** 0.5, len(self.position_density.mean) ** 0.5)
        return (image / expected[0] + highest / expected[1]) / 2


def _mlp(in_dim: int, hidden_dim: int, out_dim: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(in_dim, hidden_dim),
        nn.LayerNorm(hidden_dim),
        nn.ReLU(),
        nn.Linear(hidden_dim, out_dim),
    )
