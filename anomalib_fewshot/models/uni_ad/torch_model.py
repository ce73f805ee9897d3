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

MIN_VARIANCE = 1e-4  # of a channel, as a fraction of the mean: a constant one must not be blown up
ADVERSARIAL_PAIRS = ("decoder", "layers", "reconstruction")


class UniADModel(nn.Module):
    """Frozen features of several depths as tokens, their reconstruction, and the distance between them.

    Args:
        backbone (str): Name of a convolutional timm model.
        layers (Sequence[int] | None): Feature maps to reconstruct, see :func:`backbone_stages`. ``None``: those of
            strides 2, 4, 8 and 16.
        pre_trained (bool): Load weights.
        weights (str | Path | None): File with the weights.
        image_size (tuple[int, int]): Height and width of the images, from which the grid follows.
        norm_power (float): The features of each depth are divided by their length to this power, see
            :func:`scale_by_norm`.
        neighbor_size (int): See :class:`ReconstructionTransformer`.
        dim (int): See :class:`ReconstructionTransformer`.
        num_heads (int): See :class:`ReconstructionTransformer`.
        num_layers (int): See :class:`ReconstructionTransformer`.
        feedforward_dim (int): See :class:`ReconstructionTransformer`.
        dropout (float): See :class:`ReconstructionTransformer`.
        pool_size (int): Side in pixels of the windows over which the anomaly map is averaged for the image's score.

    Attributes:
        channels (int): Channels C of a token.
        grid (tuple[int, int]): Height h and width w of the grid of tokens, that of the last feature map.

    Raises:
        ArgumentError: As :func:`backbone_stages` and :class:`ReconstructionTransformer` do.
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
        """Set the mode of all but the backbone, which is frozen."""
        super().train(mode)
        self.stages.eval()
        return self

    def embed(self, images: torch.Tensor) -> torch.Tensor:
        """Return the tokens of images: the features of all depths at each position of the grid.

        Args:
            images (torch.Tensor): Normalized images, shape ``(B, 3, H, W)``.

        Returns:
            torch.Tensor: Tokens, shape ``(B, N, C)``.
        """
        maps = [F.interpolate(m, self.grid, mode="bilinear", align_corners=True) for m in self._maps(images)]
        maps = scale_by_norm(maps, self.norm_power)
        return torch.cat(maps, dim=1).flatten(2).transpose(1, 2)  # (B, C, h, w) -> (B, N, C)

    def _maps(self, images: torch.Tensor) -> list[torch.Tensor]:
        maps = [images]
        for stage in self.stages:
            maps.append(stage(maps[-1]))
        return maps[1:]

    def standardize(self, tokens: torch.Tensor) -> torch.Tensor:
        """Scale the channels of tokens, shape ``(B, N, C)``, to mean 0 and deviation 1 on normal images."""
        return (tokens - self.token_mean) / self.token_std

    def fit_tokens(self, moments: Moments) -> None:
        """Fit :meth:`standardize` to the moments of normal tokens, with D = C."""
        variance = moments.covariance.diagonal()
        self.token_mean.copy_(moments.mean)
        self.token_std.copy_(variance.clamp_min(MIN_VARIANCE * variance.mean()).sqrt())

    def score(self, tokens: torch.Tensor) -> InferenceBatch:
        """Score images by their tokens, shape ``(B, N, C)``."""
        scale = self.category_scale(self.summarize(tokens))
        tokens = self.standardize(tokens)
        distance = torch.linalg.vector_norm(self.transformer(tokens).tokens.float() - tokens.float(), dim=-1)
        distance = (distance / scale[:, None]).unflatten(1, self.grid)[:, None]  # (B, N) -> (B, 1, h, w)
        anomaly_map = F.interpolate(distance, self.image_size, mode="bilinear", align_corners=True)
        height, width = (min(self.pool_size, side) for side in self.image_size)
        pooled = F.avg_pool2d(F.avg_pool2d(anomaly_map, (height, 1), 1), (1, width), 1)  # a mean over a window
        return InferenceBatch(pred_score=pooled.amax((1, 2, 3)), anomaly_map=anomaly_map)

    def summarize(self, tokens: torch.Tensor) -> torch.Tensor:
        """Return one embedding of each image, by which its category is recognized: ``(B, N, C)`` -> ``(B, C)``."""
        return self.standardize(tokens).float().mean(dim=1)

    def forward(self, images: torch.Tensor) -> InferenceBatch:
        """Score images.

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
    """Return the two features that the adversarial loss makes alike.

    Args:
        name (str): ``"decoder"``, the input and the output of the decoder; ``"layers"``, the inputs of all its layers
            side by side, and their outputs; or ``"reconstruction"``, the tokens and their reconstruction.
        tokens (torch.Tensor): Tokens, shape ``(B, N, C)``.
        reconstruction (Reconstruction): Their reconstruction.

    Returns:
        tuple[torch.Tensor, torch.Tensor]: Features, shape ``(B, N, channels)``, the channels being those of
        :func:`adversarial_channels`.
    """
    if name == "reconstruction":
        return tokens, reconstruction.tokens
    layers = reconstruction.layers
    if name == "decoder":
        return layers[0], layers[-1]
    return torch.cat(layers[:-1], dim=-1), torch.cat(layers[1:], dim=-1)


def adversarial_channels(name: str, channels: int, dim: int, num_layers: int) -> int:
    """Return the number of channels of a pair.

    Raises:
        ArgumentError: If there is no such pair.
    """
    if name not in ADVERSARIAL_PAIRS:
        msg = f"`adversarial_pair` must be one of {ADVERSARIAL_PAIRS}, got {name!r}."
        raise ArgumentError(msg)
    return {"decoder": dim, "layers": num_layers * dim, "reconstruction": channels}[name]
