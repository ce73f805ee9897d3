# Copyright (C) 2026 anomalib-fewshot contributors
# SPDX-License-Identifier: Apache-2.0

"""PyTorch model of CoftAD."""

from collections.abc import Sequence
from pathlib import Path

import torch
from anomalib.data import InferenceBatch
from torch import nn
from torch.nn import functional as F  # noqa: N812

from anomalib_fewshot.models.components import Backbone, Moments, upsample_smoothly

from .density import FEATURE_GROUPS, FeatureGaussian, on_one_grid
from .gaussian import Gaussian
from .held_out import HeldOut

IMAGE_SCORES = ("embedding", "map")
TOP_FRACTION = 0.01  # of the patches, whose mean is the image's score


class CoftADModel(nn.Module):
    """Backbone with a Gaussian of image embeddings, and Gaussians of patches.

    The image embedding is the mean of the last feature map, and its Gaussian is the published density. The anomaly map,
    which is this package's extension, is the sum of the distances of three groups of features, see ``FEATURE_GROUPS``,
    each relative to those of held-out normal images.

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
        self.densities = nn.ModuleList(FeatureGaussian(g, channels[-1] if g.deep else shallow) for g in FEATURE_GROUPS)

    def image_embedding(self, images: torch.Tensor) -> torch.Tensor:
        """Return the embeddings of normalized images: ``(B, 3, H, W)`` -> ``(B, E)``."""
        return self.backbone(images)[-1].mean((-2, -1))

    def project(self, embeddings: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the outputs of the projection and the prediction head: ``(B, E)`` -> twice ``(B, hidden_dim)``."""
        projection = self.projection_head(embeddings)
        return projection, self.prediction_head(projection)

    def features(self, images: torch.Tensor) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """Return the features that the Gaussians are fitted to.

        Args:
            images (torch.Tensor): Normalized images, shape ``(B, 3, H, W)``.

        Returns:
            tuple[torch.Tensor, list[torch.Tensor]]: Image embeddings of length 1, shape ``(B, E)``, and the patches of
            each group, shape ``(B, h, w, D)``.
        """
        maps = [part.float() for part in self.backbone(images)]  # a difference of near numbers comes next
        image = F.normalize(maps[-1].mean((-2, -1)), dim=-1)
        shallow = on_one_grid([maps[layer] for layer in self.backbone.layers])
        return image, [d.group.patches(maps[-1:] if d.group.deep else shallow) for d in self.densities]

    def fit(self, moments: Sequence[Moments], held_out: HeldOut) -> None:
        """Fit the Gaussians to moments, and their scales to held-out images, both of :func:`leave_one_out`."""
        self.image_density.fit(moments[0])
        for density, own, normal in zip(self.densities, moments[1:], held_out.normal, strict=True):
            density.fit(own)
            density.fit_scale(density.whitened_distance(normal))

    def combine(self, distances: Sequence[torch.Tensor]) -> torch.Tensor:
        """Return the map of all groups.

        Args:
            distances (Sequence[torch.Tensor]): Distances of each group, shape ``(B, h, w)`` on a grid of its own.

        Returns:
            torch.Tensor: Weighted sum of the standardized distances on the grid of the first, shape ``(B, h, w)``.
        """
        pairs = zip(self.densities, distances, strict=True)
        parts = [density.group.weight * density.standardize(part)[:, None] for density, part in pairs]
        return torch.cat(on_one_grid(parts), dim=1).sum(1)

    def forward(self, images: torch.Tensor) -> InferenceBatch:
        """Score images.

        Args:
            images (torch.Tensor): Normalized images, shape ``(B, 3, H, W)``.

        Returns:
            InferenceBatch: Scores, shape ``(B,)``, and anomaly maps, shape ``(B, 1, H, W)``.
        """
        image, patches = self.features(images)
        with torch.autocast(images.device.type, enabled=False):
            distances = [density(part) for density, part in zip(self.densities, patches, strict=True)]
            return self.score(self.image_density(image), distances, images.shape[-2:])

    def score_held_out(self, held_out: HeldOut, rows: torch.Tensor) -> InferenceBatch:
        """Score some of the held-out images as :meth:`forward` does, by Gaussians fitted without them."""
        pairs = zip(self.densities, held_out.normal, strict=True)
        distances = [density.whitened_distance(normal[rows]) for density, normal in pairs]
        return self.score(held_out.image_distances[rows], distances, self.image_size)

    def score(
        self,
        image_distance: torch.Tensor,
        distances: Sequence[torch.Tensor],
        size: tuple[int, int] | torch.Size,
    ) -> InferenceBatch:
        """Score images by the distances of their features.

        Args:
            image_distance (torch.Tensor): Distances of the image embeddings, shape ``(B,)``.
            distances (Sequence[torch.Tensor]): Distances of the patches of each group, shape ``(B, h, w)``.
            size (tuple[int, int]): Height and width of the images.

        Returns:
            InferenceBatch: As :meth:`forward`.
        """
        patches = self.combine(distances)
        count = max(1, round(TOP_FRACTION * patches[0].numel()))
        highest = patches.flatten(1).topk(count, dim=-1).values.mean(-1)  # (B, h, w) -> (B,)
        return InferenceBatch(
            pred_score=image_distance if self.image_score == "embedding" else highest,
            anomaly_map=upsample_smoothly(patches, size)[:, None],
        )


def _mlp(in_dim: int, hidden_dim: int, out_dim: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(in_dim, hidden_dim),
        nn.LayerNorm(hidden_dim),
        nn.ReLU(),
        nn.Linear(hidden_dim, out_dim),
    )
