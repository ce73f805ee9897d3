# Copyright (C) 2026 anomalib-fewshot contributors
# SPDX-License-Identifier: Apache-2.0

"""PyTorch model of CoftAD."""

from collections.abc import Sequence
from pathlib import Path

import torch
from anomalib.data import InferenceBatch
from torch import nn
from torch.nn import functional as F  # noqa: N812

from anomalib_fewshot.models.components import Backbone, upsample_smoothly

from .density import GROUPS, GroupDensity, on_one_grid
from .gaussian import Gaussian

IMAGE_SCORES = ("embedding", "map")
TOP_SHARE = 0.01  # of the map's positions, whose mean is the image's score


class CoftADModel(nn.Module):
    """Backbone with a Gaussian of image embeddings, and Gaussians of the features of all positions.

    The image embedding is the last feature map's mean over its positions, and its Gaussian is the published density.
    The anomaly map, which is this package's extension, is the sum of the distances of three groups of features, see
    ``GROUPS``, each relative to those of normal images.

    Args:
        backbone (str): Name of a timm model.
        layers (Sequence[int] | None): Feature maps that the anomaly map is made of, see :class:`Backbone`.
        pre_trained (bool): Load weights.
        weights (str | Path | None): File with the weights, see :class:`Backbone`.
        image_size (tuple[int, int]): Height and width of the images.
        image_score (str): What the image's score is: the distance of its ``"embedding"``, as published, or the mean of
            the highest 1 % of its ``"map"``.
        hidden_dim (int): Width of the heads' hidden layers.

    Raises:
        ValueError: If there is no such image score, or as :class:`Backbone` does.
    """

    def __init__(
        self,
        backbone: str,
        layers: Sequence[int] | None,
        pre_trained: bool,
        weights: str | Path | None,
        image_size: tuple[int, int],
        image_score: str,
        hidden_dim: int = 256,
    ) -> None:
        super().__init__()
        if image_score not in IMAGE_SCORES:
            msg = f"`image_score` must be one of {IMAGE_SCORES}, got {image_score!r}."
            raise ValueError(msg)
        self.image_score = image_score
        self.image_size = image_size
        self.backbone = Backbone(backbone, layers, pre_trained, weights, image_size)
        channels = self.backbone.channels
        # Layer norms: a batch of a few images makes poor batch statistics, and a batch of one none at all.
        self.projection_head = _mlp(channels[-1], hidden_dim, hidden_dim)
        self.prediction_head = _mlp(hidden_dim, hidden_dim // 4, hidden_dim)
        self.image_density = Gaussian(channels[-1])
        shallow = sum(channels[layer] for layer in self.backbone.layers)
        self.densities = nn.ModuleList(GroupDensity(g, channels[-1] if g.deep else shallow) for g in GROUPS)

    def embed(self, images: torch.Tensor) -> torch.Tensor:
        """Return the embeddings of normalised images: ``(B, 3, H, W)`` -> ``(B, D)``."""
        return self.backbone(images)[-1].mean((-2, -1))

    def project(self, embeddings: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the outputs of the projection and the prediction head: ``(B, D)`` -> twice ``(B, hidden_dim)``."""
        projection = self.projection_head(embeddings)
        return projection, self.prediction_head(projection)

    def embeddings(self, images: torch.Tensor) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """Return what the Gaussians are of.

        Args:
            images (torch.Tensor): Normalised images, shape ``(B, 3, H, W)``.

        Returns:
            tuple[torch.Tensor, list[torch.Tensor]]: Embeddings of the images, shape ``(B, D)``, of length 1, and those
            of the positions for each group, shape ``(B, h, w, D)``.
        """
        maps = [part.float() for part in self.backbone(images)]  # a difference of near numbers comes next
        image = F.normalize(maps[-1].mean((-2, -1)), dim=-1)
        shallow = on_one_grid([maps[layer] for layer in self.backbone.layers])
        return image, [density.embed(maps[-1:] if density.group.deep else shallow) for density in self.densities]

    def combine(self, distances: Sequence[torch.Tensor]) -> torch.Tensor:
        """Return the map of all groups.

        Args:
            distances (Sequence[torch.Tensor]): Distances of each group, shape ``(B, h, w)`` on a grid of its own.

        Returns:
            torch.Tensor: Weighted sum of the standardised distances on the grid of the first, shape ``(B, h, w)``.
        """
        pairs = zip(self.densities, distances, strict=True)
        parts = [density.group.weight * density.standardise(part)[:, None] for density, part in pairs]
        return torch.cat(on_one_grid(parts), dim=1).sum(1)

    def forward(self, images: torch.Tensor) -> InferenceBatch:
        """Score images.

        Args:
            images (torch.Tensor): Normalised images, shape ``(B, 3, H, W)``.

        Returns:
            InferenceBatch: Scores, shape ``(B,)``, and anomaly maps, shape ``(B, 1, H, W)``.
        """
        image, positions = self.embeddings(images)
        with torch.autocast(images.device.type, enabled=False):
            distances = [density(part) for density, part in zip(self.densities, positions, strict=True)]
            return self.score(self.image_density(image), distances, images.shape[-2:])

    def score(
        self,
        image_distance: torch.Tensor,
        distances: Sequence[torch.Tensor],
        size: tuple[int, int] | torch.Size,
    ) -> InferenceBatch:
        """Score images by the distances of their embeddings.

        Args:
            image_distance (torch.Tensor): Distances of the images, shape ``(B,)``.
            distances (Sequence[torch.Tensor]): Distances of the positions of each group, shape ``(B, h, w)``.
            size (tuple[int, int]): Height and width of the images.

        Returns:
            InferenceBatch: As :meth:`forward`.
        """
        positions = self.combine(distances)
        count = max(1, round(TOP_SHARE * positions[0].numel()))
        highest = positions.flatten(1).topk(count, dim=-1).values.mean(-1)  # (B, h, w) -> (B,)
        return InferenceBatch(
            pred_score=image_distance if self.image_score == "embedding" else highest,
            anomaly_map=upsample_smoothly(positions, size)[:, None],
        )


def _mlp(in_dim: int, hidden_dim: int, out_dim: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(in_dim, hidden_dim),
        nn.LayerNorm(hidden_dim),
        nn.ReLU(),
        nn.Linear(hidden_dim, out_dim),
    )
