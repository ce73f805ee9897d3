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
    """Backbone with a spatial transformer after each stage. The warped map is the input of the next stage.

    Args:
        backbone (str): Name of a convolutional timm model.
        layers (Sequence[int] | None): Feature maps at the end of the stages, see :func:`backbone_stages`.
        pre_trained (bool): Load pretrained weights.
        weights (str | Path | None): File with the weights.
        stn_mode (str): Type of the transforms, see :class:`SpatialTransformer`.
        freeze_batch_norm (bool): Keep the batch statistics of the backbone during training.

    Attributes:
        channels (list[int]): Number of channels of each stage.
        strides (list[int]): Stride of each stage.
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
        """Return the warped maps, and the inverse of the accumulated transforms of each stage.

        Args:
            images (torch.Tensor): Normalized images, shape ``(B, 3, H, W)``.

        Returns:
            tuple[list[torch.Tensor], list[torch.Tensor]]: One feature map, shape ``(B, C, h, w)``, and one inverse
            transform, shape ``(B, 2, 3)``, per stage.
        """
        maps: list[torch.Tensor] = []
        inverse_transforms: list[torch.Tensor] = []
        features = images
        for stage, transformer in zip(self.stages, self.transformers, strict=True):
            features, inverse = transformer(stage(features))
            maps.append(features)
            if inverse_transforms:
                inverse = compose(inverse, inverse_transforms[-1])
            inverse_transforms.append(inverse)
        return maps, inverse_transforms

    def train(self, mode: bool = True) -> "Trunk":
        """Set the mode of all modules except frozen batch normalization."""
        super().train(mode)
        for module in self.stages.modules():
            if isinstance(module, nn.BatchNorm2d) and self.freeze_batch_norm:
                module.eval()
        return self


class Registration(NamedTuple):
    """Inputs of the registration loss, each of shape ``(B, C, h, w)``.

    Args:
        query (torch.Tensor): Encodings z of the queries.
        support (torch.Tensor): Encodings z of the supports.
        query_prediction (torch.Tensor): Predictions p of the queries.
        support_prediction (torch.Tensor): Predictions p of the supports.
    """

    query: torch.Tensor
    support: torch.Tensor
    query_prediction: torch.Tensor
    support_prediction: torch.Tensor


class RegADModel(nn.Module):
    """Registration network, and a Gaussian of the inversely warped features at each position.

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
        ArgumentError: If the images are too small. See also :func:`backbone_stages`, :class:`SpatialTransformer` and
            :class:`PositionGaussian`.
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
        # The transformers would pool smaller maps to a single position, which has no batch statistics.
        minimum = 4 * self.trunk.strides[-1]
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
        """Load the state dicts of ``trunk``, ``encoder`` and ``predictor``."""
        for name, state in states.items():
            self.get_submodule(name).load_state_dict(state)

    def register(self, images: torch.Tensor, num_supports: int) -> Registration:
        """Register each image with other images of the batch. All images must have the same category.

        Args:
            images (torch.Tensor): Two or more normalized images, shape ``(B, 3, H, W)``.
            num_supports (int): See :func:`support_features`.

        Returns:
            Registration: Encodings and predictions of both branches.
        """
        features = self.trunk(images)[0][-1]
        query = self.encoder(features)
        support = self.encoder(support_features(features, num_supports))
        return Registration(query, support, self.predictor(query), self.predictor(support))

    def embed(self, images: torch.Tensor) -> torch.Tensor:
        """Return the features of the density: inversely warped maps of all stages, resized to that of the first stage.

        Args:
            images (torch.Tensor): Normalized images, shape ``(B, 3, H, W)``.

        Returns:
            torch.Tensor: Features, shape ``(B, E, h, w)``.
        """
        warped_maps, inverse_transforms = self.trunk(images)
        grid = warped_maps[0].shape[-2:]
        maps: list[torch.Tensor] = []
        for warped, inverse in zip(warped_maps, inverse_transforms, strict=True):
            feature_map = warp(warped, inverse)
            maps.append(F.interpolate(feature_map, grid, mode="nearest") if maps else feature_map)
        return torch.cat(maps, dim=1)

    def forward(self, images: torch.Tensor) -> InferenceBatch:
        """Return scores and anomaly maps.

        Args:
            images (torch.Tensor): Normalized images, shape ``(B, 3, H, W)``.

        Returns:
            InferenceBatch: Anomaly maps, shape ``(B, 1, H, W)``, and their maxima as scores, shape ``(B,)``.
        """
        return self.score(images, self.density)

    def score(self, images: torch.Tensor, density: PositionGaussian) -> InferenceBatch:
        """Return scores and anomaly maps with a given density, see :meth:`forward`."""
        anomaly_map = self.upsample(density(self.embed(images)))[:, None]
        return InferenceBatch(pred_score=anomaly_map.amax((1, 2, 3)), anomaly_map=anomaly_map)

    @torch.no_grad()
    def _grid(self) -> tuple[int, int]:
        """Return the height and width of the first feature map."""
        stage = deepcopy(self.trunk.stages[0]).eval()  # a copy, so that batch statistics and modes do not change
        height, width = stage(torch.zeros(1, 3, *self.image_size)).shape[-2:]
        return height, width


def support_features(features: torch.Tensor, num_supports: int) -> torch.Tensor:
    """Return the mean features of the next K images of each image in the batch, in cyclic order.

    Args:
        features (torch.Tensor): Features, shape ``(B, C, h, w)``.
        num_supports (int): Number of images K. A smaller batch uses all B - 1 other images.

    Returns:
        torch.Tensor: Mean features, shape ``(B, C, h, w)``.

    Raises:
        ArgumentError: If the batch contains a single image.

    Example:
        >>> support_features(torch.tensor([0.0, 1.0, 5.0]).view(3, 1, 1, 1), 2).flatten()
        tensor([3.0000, 2.5000, 0.5000])
    """
    count = min(num_supports, len(features) - 1)
    if count < 1:
        msg = f"`features` must contain two or more images, got {len(features)}. Increase the batch size."
        raise ArgumentError(msg)
    return torch.stack([features.roll(-step, 0) for step in range(1, count + 1)]).mean(0)


def _block(dim: int) -> list[nn.Module]:
    return [nn.Conv2d(dim, dim, 1, bias=False), nn.BatchNorm2d(dim), nn.ReLU()]
