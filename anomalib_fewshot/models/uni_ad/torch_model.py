# Copyright (C) 2026 anomalib-fewshot contributors
# SPDX-License-Identifier: Apache-2.0

"""PyTorch model of UniAD."""

from collections.abc import Sequence
from pathlib import Path

import torch
from anomalib.data import InferenceBatch
from torch import nn
from torch.nn import functional as F  # noqa: N812

from anomalib_fewshot.errors import ArgumentError
from anomalib_fewshot.models.components import Moments, backbone_stages, scale_by_norm

from .category_scale import CategoryScale
from .transformer import Reconstruction, ReconstructionTransformer

MIN_VARIANCE = 1e-4  # minimum channel variance relative to the mean variance, so that constant channels stay small
ADVERSARIAL_PAIRS = ("decoder", "layers", "reconstruction")


class UniADModel(nn.Module):
    """Model that reconstructs tokens, the frozen features of several layers, and scores the reconstruction error.

    Args:
        backbone (str): Name of a convolutional timm model.
        layers (Sequence[int] | None): Feature maps to reconstruct, see :func:`backbone_stages`. ``None``: strides 2, 4,
            8 and 16.
        pre_trained (bool): Load pretrained weights.
        weights (str | Path | None): File with the weights.
        image_size (tuple[int, int]): Height and width of the images, which determine the grid.
        norm_power (float): Exponent of :func:`scale_by_norm`.
        neighbor_size (int): See :class:`ReconstructionTransformer`.
        dim (int): See :class:`ReconstructionTransformer`.
        num_heads (int): See :class:`ReconstructionTransformer`.
        num_layers (int): See :class:`ReconstructionTransformer`.
        feedforward_dim (int): See :class:`ReconstructionTransformer`.
        dropout (float): See :class:`ReconstructionTransformer`.
        pool_size (int): Side of the average pooling window in pixels. The score is the maximum of the pooled map.

    Attributes:
        channels (int): Number of channels C of a token.
        grid (tuple[int, int]): Height h and width w of the token grid, which is that of the last feature map.

    Raises:
        ArgumentError: See :func:`backbone_stages` and :class:`ReconstructionTransformer`.
    """

    def __init__(
        self,
        backbone: str,
        layers: Sequence[int] | None,
        pre_trained: bool,
        weights: str | Path | None,
        image_size: tuple[int, int],
        norm_power: float,
        neighbor_size: int,
        dim: int,
        num_heads: int,
        num_layers: int,
        feedforward_dim: int,
        dropout: float,
        pool_size: int,
    ) -> None:
        super().__init__()
        self.stages, channels, _ = backbone_stages(backbone, layers, pre_trained, weights, strides=(2, 4, 8, 16))
        self.stages.requires_grad_(requires_grad=False).eval()
        self.channels = sum(channels)
        self.image_size = image_size
        self.norm_power = norm_power
        self.pool_size = pool_size
        height, width = self._maps(torch.zeros(1, 3, *image_size))[-1].shape[-2:]
        self.grid = height, width
        self.transformer = ReconstructionTransformer(
            self.channels,
            self.grid,
            neighbor_size,
            dim,
            num_heads,
            num_layers,
            feedforward_dim,
            dropout,
        )
        self.category_scale = CategoryScale()
        self.register_buffer("token_mean", torch.zeros(self.channels))
        self.register_buffer("token_std", torch.ones(self.channels))
        self.token_mean: torch.Tensor
        self.token_std: torch.Tensor

    def train(self, mode: bool = True) -> "UniADModel":
        """Set the mode of all modules except the frozen backbone."""
        super().train(mode)
        self.stages.eval()
        return self

    def embed(self, images: torch.Tensor) -> torch.Tensor:
        """Return the tokens of images, which are the concatenated features of all layers at each grid position.

        Args:
            images (torch.Tensor): Normalized images, shape ``(B, 3, H, W)``.

        Returns:
            torch.Tensor: Tokens, shape ``(B, N, C)``.
        """
        maps = self._maps(images)
        resized = [F.interpolate(features, self.grid, mode="bilinear", align_corners=True) for features in maps]
        scaled = scale_by_norm(resized, self.norm_power)
        return torch.cat(scaled, dim=1).flatten(2).transpose(1, 2)  # (B, C, h, w) -> (B, N, C)

    def _maps(self, images: torch.Tensor) -> list[torch.Tensor]:
        maps = [images]
        for stage in self.stages:
            maps.append(stage(maps[-1]))
        return maps[1:]

    def standardize(self, tokens: torch.Tensor) -> torch.Tensor:
        """Standardize the channels of tokens, shape ``(B, N, C)``, with the statistics of normal images."""
        return (tokens - self.token_mean) / self.token_std

    def fit_standardization(self, moments: Moments) -> None:
        """Fit :meth:`standardize` to the moments of normal tokens with C channels."""
        variance = moments.covariance.diagonal()
        self.token_mean.copy_(moments.mean)
        self.token_std.copy_(variance.clamp_min(MIN_VARIANCE * variance.mean()).sqrt())

    def score(self, tokens: torch.Tensor) -> InferenceBatch:
        """Return scores and anomaly maps for tokens, shape ``(B, N, C)``, see :meth:`forward`."""
        scale = self.category_scale(self.summarize(tokens))
        tokens = self.standardize(tokens)
        distance = torch.linalg.vector_norm(self.transformer(tokens).tokens.float() - tokens.float(), dim=-1)
        distance = (distance / scale[:, None]).unflatten(1, self.grid)[:, None]  # (B, N) -> (B, 1, h, w)
        anomaly_map = F.interpolate(distance, self.image_size, mode="bilinear", align_corners=True)
        height, width = (min(self.pool_size, side) for side in self.image_size)
        pooled = F.avg_pool2d(F.avg_pool2d(anomaly_map, (height, 1), 1), (1, width), 1)  # separable average pooling
        return InferenceBatch(pred_score=pooled.amax((1, 2, 3)), anomaly_map=anomaly_map)

    def summarize(self, tokens: torch.Tensor) -> torch.Tensor:
        """Return the image embeddings of the category scale: ``(B, N, C)`` -> ``(B, C)``."""
        return self.standardize(tokens).float().mean(dim=1)

    def forward(self, images: torch.Tensor) -> InferenceBatch:
        """Return scores and anomaly maps.

        Args:
            images (torch.Tensor): Normalized images, shape ``(B, 3, H, W)``.

        Returns:
            InferenceBatch: Scores, shape ``(B,)``, and anomaly maps, shape ``(B, 1, H, W)``.
        """
        return self.score(self.embed(images))


def adversarial_pair(
    name: str,
    tokens: torch.Tensor,
    reconstruction: Reconstruction,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the two features of the adversarial loss.

    Args:
        name (str): ``"decoder"``: input and output of the decoder; ``"layers"``: concatenated inputs and concatenated
            outputs of all decoder layers; ``"reconstruction"``: tokens and reconstruction.
        tokens (torch.Tensor): Tokens, shape ``(B, N, C)``.
        reconstruction (Reconstruction): Reconstruction of the tokens.

    Returns:
        tuple[torch.Tensor, torch.Tensor]: Features, each of shape ``(B, N, channels)``. See
        :func:`adversarial_channels` for the number of channels.
    """
    if name == "reconstruction":
        return tokens, reconstruction.tokens
    layers = reconstruction.layers
    if name == "decoder":
        return layers[0], layers[-1]
    return torch.cat(layers[:-1], dim=-1), torch.cat(layers[1:], dim=-1)


def adversarial_channels(name: str, channels: int, dim: int, num_layers: int) -> int:
    """Return the number of channels of the features in :func:`adversarial_pair`.

    Raises:
        ArgumentError: If ``name`` is unknown.
    """
    if name not in ADVERSARIAL_PAIRS:
        msg = f"`adversarial_pair` must be one of {ADVERSARIAL_PAIRS}, got {name!r}."
        raise ArgumentError(msg)
    return {"decoder": dim, "layers": num_layers * dim, "reconstruction": channels}[name]
