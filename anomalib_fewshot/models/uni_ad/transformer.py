# Copyright (C) 2026 anomalib-fewshot contributors
# SPDX-License-Identifier: Apache-2.0

"""Transformer of UniAD, which reconstructs a grid of tokens with neighbor-masked attention."""

from typing import NamedTuple

import torch
from torch import nn

from anomalib_fewshot.errors import ArgumentError


def neighbor_mask(grid: tuple[int, int], neighbor_size: int) -> torch.Tensor:
    """Return an attention mask that excludes the keys in a square window around each query.

    Args:
        grid (tuple[int, int]): Height h and width w of the grid in row-major order.
        neighbor_size (int): Side of the window in grid positions.

    Returns:
        torch.Tensor: Boolean mask, shape ``(h * w, h * w)``. ``True`` means that query i cannot attend to key j.

    Raises:
        ArgumentError: If the size is even, or so large that it could mask all keys of a query.

    Example:
        >>> neighbor_mask((1, 4), 3).int()
        tensor([[1, 1, 0, 0],
                [1, 1, 1, 0],
                [0, 1, 1, 1],
                [0, 0, 1, 1]], dtype=torch.int32)
    """
    if neighbor_size % 2 == 0 or not 0 < neighbor_size < max(grid):
        msg = (
            f"`neighbor_size` must be odd and less than the longer side of the grid of {grid[0]} x {grid[1]} features, "
            f"got {neighbor_size}. Decrease it or increase `image_size`."
        )
        raise ArgumentError(msg)
    positions = torch.cartesian_prod(torch.arange(grid[0]), torch.arange(grid[1]))  # (N, 2)
    distance = (positions[:, None] - positions).abs().amax(-1)  # (N, N)
    return distance <= neighbor_size // 2


def feature_jitter(tokens: torch.Tensor, scale: float, rng: torch.Generator) -> torch.Tensor:
    """Add Gaussian noise with a standard deviation of ``scale * |token| / C`` to tokens.

    Args:
        tokens (torch.Tensor): Tokens, shape ``(B, N, C)``.
        scale (float): Scale of the noise.
        rng (torch.Generator): Generator on the CPU.

    Returns:
        torch.Tensor: Noisy tokens, shape ``(B, N, C)``.
    """
    noise = torch.randn(tokens.shape, generator=rng).to(tokens)
    return tokens + scale * torch.linalg.vector_norm(tokens, dim=-1, keepdim=True) / tokens.shape[-1] * noise


class AddNorm(nn.Module):
    """Residual connection with dropout and post-layer normalization.

    Args:
        dim (int): Embedding dimension D.
        dropout (float): Dropout of the residual branch.
    """

    def __init__(self, dim: int, dropout: float) -> None:
        super().__init__()
        self.dropout = nn.Dropout(dropout)
        self.norm = nn.LayerNorm(dim)

    def forward(self, inputs: torch.Tensor, branch: torch.Tensor) -> torch.Tensor:
        """Return LN(inputs + branch), all of shape ``(B, N, D)``."""
        return self.norm(inputs + self.dropout(branch))


def _feed_forward(dim: int, hidden: int, dropout: float) -> nn.Sequential:
    return nn.Sequential(nn.Linear(dim, hidden), nn.ReLU(), nn.Dropout(dropout), nn.Linear(hidden, dim))


def _attend(
    attention: nn.MultiheadAttention,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor,
) -> torch.Tensor:
    """Return the attention output. Without attention weights, torch uses a fused kernel that saves memory."""
    return attention(query, key, value, attn_mask=mask, need_weights=False)[0]


class EncoderLayer(nn.Module):
    """Encoder layer with masked self-attention and a feed-forward network.

    Args:
        dim (int): Embedding dimension D.
        num_heads (int): Number of attention heads.
        feedforward_dim (int): Hidden dimension of the feed-forward network.
        dropout (float): Dropout of all sublayers.
    """

    def __init__(self, dim: int, num_heads: int, feedforward_dim: int, dropout: float) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(dim, num_heads, dropout, batch_first=True)
        self.feed_forward = _feed_forward(dim, feedforward_dim, dropout)
        self.add_norms = nn.ModuleList(AddNorm(dim, dropout) for _ in range(2))

    def forward(self, embeddings: torch.Tensor, position: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Return the output of the layer.

        Args:
            embeddings (torch.Tensor): Output of the previous layer, shape ``(B, N, D)``.
            position (torch.Tensor): Position embeddings, shape ``(N, D)``, added to queries and keys only.
            mask (torch.Tensor): Attention mask, shape ``(N, N)``, see :func:`neighbor_mask`.

        Returns:
            torch.Tensor: Output of the layer, shape ``(B, N, D)``.
        """
        query = embeddings + position
        embeddings = self.add_norms[0](embeddings, _attend(self.attention, query, query, embeddings, mask))
        return self.add_norms[1](embeddings, self.feed_forward(embeddings))


class DecoderLayer(nn.Module):
    """Decoder layer with a learned query, which attends to the encoder memory and then to the previous layer.

    The learned query prevents the layer from copying its input.

    Args:
        num_positions (int): Number of grid positions N.
        dim (int): Embedding dimension D.
        num_heads (int): Number of attention heads.
        feedforward_dim (int): Hidden dimension of the feed-forward network.
        dropout (float): Dropout of all sublayers.
    """

    def __init__(self, num_positions: int, dim: int, num_heads: int, feedforward_dim: int, dropout: float) -> None:
        super().__init__()
        self.query = nn.Parameter(torch.randn(num_positions, dim))
        self.memory_attention = nn.MultiheadAttention(dim, num_heads, dropout, batch_first=True)
        self.previous_attention = nn.MultiheadAttention(dim, num_heads, dropout, batch_first=True)
        self.feed_forward = _feed_forward(dim, feedforward_dim, dropout)
        self.add_norms = nn.ModuleList(AddNorm(dim, dropout) for _ in range(3))

    def forward(
        self,
        memory: torch.Tensor,
        previous: torch.Tensor,
        position: torch.Tensor,
        mask: torch.Tensor,
    ) -> torch.Tensor:
        """Return the output of the layer.

        Args:
            memory (torch.Tensor): Output of the encoder, shape ``(B, N, D)``.
            previous (torch.Tensor): Output of the previous layer, shape ``(B, N, D)``.
            position (torch.Tensor): Position embeddings, shape ``(N, D)``, added to queries and keys only.
            mask (torch.Tensor): Attention mask, shape ``(N, N)``, see :func:`neighbor_mask`.

        Returns:
            torch.Tensor: Output of the layer, shape ``(B, N, D)``.
        """
        query = self.query.expand_as(memory)
        attended = _attend(self.memory_attention, query + position, memory + position, memory, mask)
        output = self.add_norms[0](query, attended)
        attended = _attend(self.previous_attention, output + position, previous + position, previous, mask)
        output = self.add_norms[1](output, attended)
        return self.add_norms[2](output, self.feed_forward(output))


class Reconstruction(NamedTuple):
    """Output of :class:`ReconstructionTransformer`.

    Args:
        tokens (torch.Tensor): Reconstructed tokens, shape ``(B, N, C)``.
        layers (list[torch.Tensor]): Encoder memory and output of each decoder layer, each of shape ``(B, N, D)``.
    """

    tokens: torch.Tensor
    layers: list[torch.Tensor]


class ReconstructionTransformer(nn.Module):
    """Transformer encoder and layer-wise query decoder with :func:`neighbor_mask` in all attention.

    Args:
        channels (int): Number of channels C of a token.
        grid (tuple[int, int]): Height and width of the token grid.
        neighbor_size (int): See :func:`neighbor_mask`.
        dim (int): Embedding dimension D.
        num_heads (int): Number of attention heads.
        num_layers (int): Number of encoder layers and of decoder layers.
        feedforward_dim (int): Hidden dimension of the feed-forward networks.
        dropout (float): Dropout of all sublayers.

    Raises:
        ArgumentError: If ``dim`` is not a multiple of ``2 * num_heads``. See also :func:`neighbor_mask`.
    """

    def __init__(
        self,
        channels: int,
        grid: tuple[int, int],
        neighbor_size: int,
        dim: int,
        num_heads: int,
        num_layers: int,
        feedforward_dim: int,
        dropout: float,
    ) -> None:
        super().__init__()
        if dim % (2 * num_heads) != 0:
            msg = f"`dim` must be a multiple of twice `num_heads`, {2 * num_heads}, got {dim}."
            raise ArgumentError(msg)
        self.register_buffer("mask", neighbor_mask(grid, neighbor_size), persistent=False)
        self.mask: torch.Tensor
        self.input_proj = nn.Linear(channels, dim)
        self.row_embed = nn.Parameter(torch.rand(grid[0], 1, dim // 2))
        self.col_embed = nn.Parameter(torch.rand(1, grid[1], dim // 2))
        sizes = dim, num_heads, feedforward_dim, dropout
        self.encoder = nn.ModuleList(EncoderLayer(*sizes) for _ in range(num_layers))
        self.decoder = nn.ModuleList(DecoderLayer(grid[0] * grid[1], *sizes) for _ in range(num_layers))
        self.output_proj = nn.Linear(dim, channels)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)

    def forward(self, tokens: torch.Tensor) -> Reconstruction:
        """Reconstruct tokens of shape ``(B, N, C)``."""
        grid = self.row_embed.shape[0], self.col_embed.shape[1]
        position = torch.cat([self.row_embed.expand(*grid, -1), self.col_embed.expand(*grid, -1)], dim=-1)  # (h, w, D)
        position = position.flatten(0, 1)  # (N, D)
        memory = self.input_proj(tokens)
        for encoder_layer in self.encoder:
            memory = encoder_layer(memory, position, self.mask)
        layers = [memory]
        for decoder_layer in self.decoder:
            layers.append(decoder_layer(memory, layers[-1], position, self.mask))
        return Reconstruction(self.output_proj(layers[-1]), layers)
