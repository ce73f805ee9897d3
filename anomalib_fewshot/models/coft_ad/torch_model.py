# Copyright (C) 2026 anomalib-fewshot contributors
# SPDX-License-Identifier: Apache-2.0

"""PyTorch model of CoftAD."""

from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from anomalib.data import InferenceBatch
from torch import nn
from torch.nn import functional as F  # noqa: N812

from anomalib_fewshot.models.components import Backbone, RankedScore, upsample_smoothly

from .adaptation import AdaptationSettings, adapt
from .density import FEATURE_GROUPS, on_one_grid
from .held_out import Features, Fold, hold_out
from .loss import AdaptationLoss
from .neighbors import Neighbors, raw_patches
from .stacked_density import StackedDensity
from .support_density import SupportDensity, mean_of_highest

IMAGE_SCORES = ("embedding", "map")


class CoftADModel(nn.Module):
    """Backbone with a Gaussian of image embeddings, and Gaussians of patches.

    The image embedding is the mean of the last feature map, and its Gaussian is the published density. The anomaly map,
    which is this package's extension, is the sum of the distances of three groups of features from their Gaussians, see
    ``FEATURE_GROUPS``, and of patches from their nearest :class:`Neighbors`, each relative to those of held-out normal
    images.

    Args:
        backbone (str): Name of a timm model.
        layers (Sequence[int] | None): Feature maps that the anomaly map is made of, see :class:`Backbone`.
        pre_trained (bool): Load weights.
        weights (str | Path | None): File with the weights, see :class:`Backbone`.
        image_size (tuple[int, int]): Height and width of the images.
        image_score (str): What the image's score is: the distance of its ``"embedding"``, as published, or the mean of
            the highest 0.5 % of its ``"map"``.
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
        self.image_size = image_size
        self.backbone = Backbone(backbone, layers, pre_trained, weights, image_size)
        channels = self.backbone.channels
        # Layer norms: a batch of a few images makes poor batch statistics, and a batch of one none at all.
        self.projection_head = _mlp(channels[-1], hidden_dim, hidden_dim)
        self.prediction_head = _mlp(hidden_dim, hidden_dim // 4, hidden_dim)
        shallow = sum(channels[layer] for layer in self.backbone.layers)
        dims = [channels[-1] if group.deep else shallow for group in FEATURE_GROUPS]
        self.image_score = image_score
        self._density = partial(SupportDensity, channels[-1], dims)
        self.density = self._density()
        self.held_out = nn.ModuleList()  # of the support without each of its folds
        self.neighbors = Neighbors(shallow)
        self.ranked_score = RankedScore()
        self.stack()
        self.register_load_state_dict_post_hook(_stack)

    def hold_out(self, count: int) -> None:
        """Make room for the densities of the support without each of its folds."""
        device = self.density.image.mean.device
        self.held_out = nn.ModuleList(self._density().to(device) for _ in range(count))
        self.ranked_score = RankedScore().to(device)

    def fit(
        self,
        folds: Sequence[Fold],
        loss: AdaptationLoss,
        settings: AdaptationSettings,
        *,
        always_turned: bool = False,
    ) -> Iterator[float]:
        """Fit the density of the support, those of it without each of its folds, and the memory bank.

        Args:
            folds (Sequence[Fold]): Features of the parts of the support, of :func:`describe`.
            loss (AdaptationLoss): Loss of the fine-tuning.
            settings (AdaptationSettings): Length, rate and seed of the fine-tuning, for each density.
            always_turned (bool): Keep the patches of turned images, if folds have them, whatever held-out images say.
                Defaults to ``False``.

        Yields:
            float: Loss of each step. All is fitted after the last.
        """
        self.hold_out(len(folds) if len(folds) > 1 else 0)
        others = [[*folds[:fold], *folds[fold + 1 :]] for fold in range(len(self.held_out))]
        for density, parts in zip([self.density, *self.held_out], [folds, *others], strict=True):
            moments, held_out = hold_out(parts)
            yield from adapt(density.groups, held_out, loss, settings)
            density.fit(moments, held_out)
        turned = [fold.turned for fold in folds if fold.turned is not None]
        self.neighbors.fit([fold.raw for fold in folds], turned, always=always_turned)
        self.stack()

    def stack(self) -> None:
        """Bring the densities in the form in which images are scored."""
        by_map = self.held_out if self.image_score == "map" else []
        self.stacked = StackedDensity([self.density, *by_map])

    def image_embedding(self, images: torch.Tensor) -> torch.Tensor:
        """Return the embeddings of normalized images: ``(B, 3, H, W)`` -> ``(B, E)``."""
        return self.backbone(images)[-1].mean((-2, -1))

    def project(self, embeddings: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the outputs of the projection and the prediction head: ``(B, E)`` -> twice ``(B, hidden_dim)``."""
        projection = self.projection_head(embeddings)
        return projection, self.prediction_head(projection)

    def features(self, images: torch.Tensor) -> Features:
        """Return the features that an image is scored by.

        Args:
            images (torch.Tensor): Normalized images, shape ``(B, 3, H, W)``.

        Returns:
            Features: Image embeddings of length 1, and patches.
        """
        maps = [part.float() for part in self.backbone(images)]  # a difference of near numbers comes next
        image = F.normalize(maps[-1].mean((-2, -1)), dim=-1)
        layers = [maps[layer] for layer in self.backbone.layers]
        shallow = on_one_grid(layers)
        groups = [group.patches(maps[-1:] if group.deep else shallow) for group in FEATURE_GROUPS]
        return Features(image, groups, raw_patches(layers))

    def forward(self, images: torch.Tensor) -> InferenceBatch:
        """Score images.

        Args:
            images (torch.Tensor): Normalized images, shape ``(B, 3, H, W)``.

        Returns:
            InferenceBatch: Scores, shape ``(B,)``, and anomaly maps, shape ``(B, 1, H, W)``.
        """
        features = self.features(images)
        with torch.autocast(images.device.type, enabled=False):
            scores, maps = self.score(features)
            return InferenceBatch(
                pred_score=self.ranked_score(scores[0], scores[1:]),
                anomaly_map=self.upsample(maps[:, 0], images.shape[-2:]),
            )

    def score(self, features: Features) -> tuple[torch.Tensor, torch.Tensor]:
        """Score images by the density of the support, and by those of it without each of its F folds.

        Args:
            features (Features): Features of B images.

        Returns:
            tuple[torch.Tensor, torch.Tensor]: Scores, shape ``(1 + F, B)``, and maps, shape ``(B, 1 + F, h, w)``, of
            which there is the first alone if it is not the map that is scored.
        """
        maps = self.stacked(features.patches)
        maps = maps + self.neighbors(features.raw)[:, : maps.shape[1]]
        return self._score(features.embeddings, maps, [self.density, *self.held_out]), maps

    def score_held_out(self, folds: Sequence[Fold]) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """Score the images of each fold by the density without it, or views of a single image by its own density.

        Args:
            folds (Sequence[Fold]): The parts of the support, each with a density in ``held_out`` unless there is one.

        Returns:
            list[tuple[torch.Tensor, torch.Tensor]]: Scores of each fold, shape ``(M,)``, and maps, shape ``(M, h, w)``.
        """
        densities = [self.density, *self.held_out]
        scored = []
        for number, fold in enumerate(folds):
            own, features = (number + 1, fold.images) if len(folds) > 1 else (0, fold.views)
            by = densities[own : own + 1]
            maps = StackedDensity(by)(features.patches) + self.neighbors(features.raw)[:, own, None]
            scored.append((self._score(features.embeddings, maps, by)[0], maps[:, 0]))
        return scored

    def _score(self, embeddings: torch.Tensor, maps: torch.Tensor, densities: Sequence[SupportDensity]) -> torch.Tensor:
        """Return the scores by F densities, ``(F, B)``, of embeddings, ``(B, E)``, and maps, ``(B, F, h, w)``."""
        if self.image_score == "map":
            return mean_of_highest(maps).T
        return torch.stack([density.image(embeddings) for density in densities])

    @staticmethod
    def upsample(maps: torch.Tensor, size: tuple[int, int] | torch.Size) -> torch.Tensor:
        """Return maps in the size of the images: ``(B, h, w)`` -> ``(B, 1, H, W)``."""
        return upsample_smoothly(maps, size)[:, None]

    def _load_from_state_dict(self, state_dict: dict[str, torch.Tensor], prefix: str, *args: Any) -> None:  # noqa: ANN401
        """Make room for as many densities as a checkpoint has."""
        key = f"{prefix}held_out."
        self.hold_out(len({name.removeprefix(key).split(".")[0] for name in state_dict if name.startswith(key)}))
        super()._load_from_state_dict(state_dict, prefix, *args)


def _stack(model: CoftADModel, _incompatible_keys: object) -> None:  # a function: models are pickled
    model.stack()


def _mlp(in_dim: int, hidden_dim: int, out_dim: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(in_dim, hidden_dim),
        nn.LayerNorm(hidden_dim),
        nn.ReLU(),
        nn.Linear(hidden_dim, out_dim),
    )
