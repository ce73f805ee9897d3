# Copyright (C) 2026 anomalib-fewshot contributors
# SPDX-License-Identifier: Apache-2.0

"""PyTorch model of RegAD."""

from collections.abc import Mapping, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any, NamedTuple

import torch
from anomalib.data import InferenceBatch
from torch import nn
from torch.nn import functional as F  # noqa: N812

from anomalib_fewshot.errors import ArgumentError
from anomalib_fewshot.models.components import SmoothUpsampling, backbone_stages

from .density import PositionGaussian
from .stn import SpatialTransformer, compose, warp


class Trunk(nn.Module):
    """Stages of a backbone with a spatial transformer after each, whose warped map is the input of the next.

    Args:
        backbone (str): Name of a convolutional timm model.
        layers (Sequence[int] | None): Feature maps to cut after, see :func:`backbone_stages`.
        pre_trained (bool): Load weights.
        weights (str | Path | None): File with the weights.
        stn_mode (str): What transforms there are, see :class:`SpatialTransformer`.
        freeze_batch_norm (bool): Keep the backbone's batch statistics in training.

    Attributes:
        channels (list[int]): Channels of each stage's map.
        strides (list[int]): Stride of each stage's map.
    """

    def __init__(
        self,
        backbone: str,
        layers: Sequence[int] | None,
        pre_trained: bool,
        weights: str | Path | None,
        stn_mode: str,
        freeze_batch_norm: bool,
    ) -> None:
        super().__init__()
        self.freeze_batch_norm = freeze_batch_norm
        self.stages, self.channels, self.strides = backbone_stages(backbone, layers, pre_trained, weights)
        self.transformers = nn.ModuleList(SpatialTransformer(channels, stn_mode) for channels in self.channels)
        self.train()

    def forward(self, images: torch.Tensor) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        """Return the warped maps, and the transforms that undo the warps of their own and of all earlier stages.

        Args:
            images (torch.Tensor): Normalized images, shape ``(B, 3, H, W)``.

        Returns:
            tuple[list[torch.Tensor], list[torch.Tensor]]: Maps of shape ``(B, C, h, w)`` and transforms of shape
            ``(B, 2, 3)``, one of each a stage.
        """
        maps: list[torch.Tensor] = []
        inverse_transforms: list[torch.Tensor] = []
        features = images
        for stage, transformer in zip(self.stages, self.transformers, strict=True):
            features, inverse = transformer(stage(features))
            maps.append(features)
            inverse_transforms.append(compose(inverse, inverse_transforms[-1]) if inverse_transforms else inverse)
        return maps, inverse_transforms

    def train(self, mode: bool = True) -> "Trunk":
        """Set the mode, but for the backbone's batch normalization if it is frozen."""
        super().train(mode)
        for module in self.stages.modules():
            if isinstance(module, nn.BatchNorm2d) and self.freeze_batch_norm:
                module.eval()
        return self


class Registration(NamedTuple):
    """What the loss is of. Each has shape ``(B, C, h, w)``.

    Args:
        query (torch.Tensor): Encodings z of the queries.
        support (torch.Tensor): Encodings z of their supports.
        query_prediction (torch.Tensor): Predictions p of the queries.
        support_prediction (torch.Tensor): Predictions p of the supports.
    """

    query: torch.Tensor
    support: torch.Tensor
    query_prediction: torch.Tensor
    support_prediction: torch.Tensor


class RegADModel(nn.Module):
    """Registration network, and a Gaussian of its un-warped features at each position.

    Args:
        backbone (str): See :class:`Trunk`.
        layers (Sequence[int] | None): See :class:`Trunk`.
        pre_trained (bool): See :class:`Trunk`.
        weights (str | Path | None): See :class:`Trunk`.
        image_size (tuple[int, int]): Height and width of the images.
        stn_mode (str): See :class:`SpatialTransformer`.
        regularization (float): See :class:`PositionGaussian`.
        freeze_batch_norm (bool): See :class:`Trunk`.

    Raises:
        ArgumentError: If the images are too small, or as :func:`backbone_stages`, :class:`SpatialTransformer` and
            :class:`PositionGaussian` do.
    """

    def __init__(
        self,
        backbone: str,
        layers: Sequence[int] | None,
        pre_trained: bool,
        weights: str | Path | None,
        image_size: tuple[int, int],
        stn_mode: str,
        regularization: float,
        freeze_batch_norm: bool,
    ) -> None:
        super().__init__()
        self.trunk = Trunk(backbone, layers, pre_trained, weights, stn_mode, freeze_batch_norm)
        minimum = 4 * self.trunk.strides[-1]  # of less a transformer makes one position, without batch statistics
        if min(image_size) < minimum:
            msg = f"`image_size` must be at least {minimum}, 4 times the last stride, got {tuple(image_size)}."
            raise ArgumentError(msg)
        self.image_size = image_size
        dim = self.trunk.channels[-1]
        self.encoder = nn.Sequential(*_block(dim), *_block(dim), nn.Conv2d(dim, dim, 1))
        self.predictor = nn.Sequential(*_block(dim), nn.Conv2d(dim, dim, 1))
        self.density = PositionGaussian(regularization)
        self.upsample = SmoothUpsampling(self._grid(), image_size)

    def load_network(self, states: Mapping[str, Mapping[str, Any]]) -> None:
        """Take the states of trunk, encoder and predictor, by these names."""
        for part, state in states.items():
            self.get_submodule(part).load_state_dict(state)

    def register(self, images: torch.Tensor, num_supports: int) -> Registration:
        """Register each image of a batch with others of it, which are of the same category.

        Args:
            images (torch.Tensor): Normalized images, shape ``(B, 3, H, W)``, two or more.
            num_supports (int): See :func:`support_features`.

        Returns:
            Registration: Encodings and predictions of both branches.
        """
        features = self.trunk(images)[0][-1]
        query = self.encoder(features)
        support = self.encoder(support_features(features, num_supports))
        return Registration(query, support, self.predictor(query), self.predictor(support))

    def embed(self, images: torch.Tensor) -> torch.Tensor:
        """Return the features that the density is of: the un-warped maps of all stages on the grid of the first.

        Args:
            images (torch.Tensor): Normalized images, shape ``(B, 3, H, W)``.

        Returns:
            torch.Tensor: Features, shape ``(B, E, h, w)``.
        """
        maps = [warp(warped, inverse_transform) for warped, inverse_transform in zip(*self.trunk(images), strict=True)]
        grid = maps[0].shape[-2:]
        return torch.cat([maps[0], *(F.interpolate(m, grid, mode="nearest") for m in maps[1:])], dim=1)

    def forward(self, images: torch.Tensor) -> InferenceBatch:
        """Score images.

        Args:
            images (torch.Tensor): Normalized images, shape ``(B, 3, H, W)``.

        Returns:
            InferenceBatch: Scores, shape ``(B,)``, the highest of the anomaly maps, shape ``(B, 1, H, W)``.
        """
        return self.score(images, self.density)

    def score(self, images: torch.Tensor, density: PositionGaussian) -> InferenceBatch:
        """Score images by a density, as :meth:`forward` does by the model's own."""
        anomaly_map = self.upsample(density(self.embed(images)))[:, None]
        return InferenceBatch(pred_score=anomaly_map.amax((1, 2, 3)), anomaly_map=anomaly_map)

    @torch.no_grad()
    def _grid(self) -> tuple[int, int]:
        """Return the height and width of the first feature map."""
        stage = deepcopy(self.trunk.stages[0]).eval()  # keeps its batch statistics
        height, width = stage(torch.zeros(1, 3, *self.image_size)).shape[-2:]
        return height, width


def support_features(features: torch.Tensor, num_supports: int) -> torch.Tensor:
    """Return the mean features of the images that follow each image in the batch, the first following the last.

    Args:
        features (torch.Tensor): Features, shape ``(B, C, h, w)``.
        num_supports (int): Number K of images. In a smaller batch it is all others.

    Returns:
        torch.Tensor: Means, shape ``(B, C, h, w)``.

    Raises:
        ArgumentError: If the batch is a single image.

    Example:
        >>> support_features(torch.tensor([0.0, 1.0, 5.0]).view(3, 1, 1, 1), 2).flatten()
        tensor([3.0000, 2.5000, 0.5000])
    """
    count = min(num_supports, len(features) - 1)
    if count < 1:
        msg = "`features` must be of two images or more, got one, which has no other to be registered with."
        raise ArgumentError(msg)
    return torch.stack([features.roll(-step, 0) for step in range(1, count + 1)]).mean(0)


def _block(dim: int) -> list[nn.Module]:
    return [nn.Conv2d(dim, dim, 1, bias=False), nn.BatchNorm2d(dim), nn.ReLU()]
