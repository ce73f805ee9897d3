# Copyright (C) 2026 anomalib-fewshot contributors
# SPDX-License-Identifier: Apache-2.0

"""The transformer of UniAD, against slow loops and what it must not be able to do."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812

from anomalib_fewshot.models.uni_ad.transformer import (
    DecoderLayer,
    EncoderLayer,
    ReconstructionTransformer,
    feature_jitter,
    neighbor_mask,
)

GRID, CHANNELS, DIM = (5, 6), 12, 16


def transformer(grid: tuple[int, int] = GRID, neighbor_size: int = 3, **arguments) -> ReconstructionTransformer:
    settings = {"dim": DIM, "num_heads": 2, "num_layers": 2, "feedforward_dim": 32, "dropout": 0.1}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return ReconstructionTransformer(CHANNELS, grid, neighbor_size, **settings | arguments).eval()


def tokens(count: int = 2, positions: int = 30, channels: int = CHANNELS, seed: int = 0) -> torch.Tensor:
    return torch.randn(count, positions, channels, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(("grid", "size"), [((14, 14), 7), ((5, 6), 3), ((4, 9), 5), ((1, 4), 1)])
def test_mask_is_that_of_a_slow_loop(grid: tuple[int, int], size: int) -> None:
    mask = neighbor_mask(grid, size)
    positions = [(row, column) for row in range(grid[0]) for column in range(grid[1])]
    for i, (row, column) in enumerate(positions):
        for j, (other_row, other_column) in enumerate(positions):
            near = abs(row - other_row) <= size // 2 and abs(column - other_column) <= size // 2
            assert bool(mask[i, j]) is near
    assert not mask.all(1).any()  # every position sees something


def test_mask_hides_the_paper_s_49_keys_from_a_position_inside_and_16_from_a_corner() -> None:
    hidden = neighbor_mask((14, 14), 7).sum(1).view(14, 14)
    assert (hidden[3:11, 3:11] == 49).all()
    assert (hidden[0, 0], hidden[0, 6], hidden[13, 13]) == (16, 28, 16)


@pytest.mark.parametrize(("grid", "size"), [((14, 14), 6), ((5, 5), 5), ((4, 4), 7), ((4, 4), -1), ((1, 1), 1)])
def test_mask_that_hides_everything_or_has_no_middle(grid: tuple[int, int], size: int) -> None:
    with pytest.raises(ValueError, match=rf"must be odd and less than .* grid of {grid[0]} x {grid[1]} .*, got {size}"):
        neighbor_mask(grid, size)


def test_jitter_has_the_published_statistics() -> None:
    """Normal noise whose deviation is a token's length over its channels, times the scale."""
    clean = torch.tensor([3.0, 4.0]).repeat(1, 1, 136) * torch.tensor([1.0, 2.0, 0.0])[:, None]  # 3 lengths
    clean = clean.view(1, 3, 272).repeat(400, 1, 1)
    noise = feature_jitter(clean, 20.0, torch.Generator().manual_seed(0)) - clean
    expected = 20 * torch.linalg.vector_norm(clean[0], dim=-1) / 272
    torch.testing.assert_close(noise.std((0, 2)), expected, rtol=0.02, atol=1e-6)
    torch.testing.assert_close(noise.mean((0, 2)), torch.zeros(3), rtol=0, atol=0.1)
    within = (noise[:, 0].abs() < expected[0]).float().mean()
    assert float(within) == pytest.approx(0.683, abs=0.01)  # as a normal distribution has it


def test_jitter_follows_its_generator_alone() -> None:
    results = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        results.append(feature_jitter(tokens(), 20.0, torch.Generator().manual_seed(3)))
    assert torch.equal(*results)
    assert not torch.equal(results[0], feature_jitter(tokens(), 20.0, torch.Generator().manual_seed(4)))
    assert torch.equal(feature_jitter(tokens(), 0.0, torch.Generator()), tokens())


def slow_attention(
    layer: nn.MultiheadAttention,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
) -> torch.Tensor:
    """One image, one head and one query after the other."""
    hidden, heads = neighbor_mask(GRID, 3), layer.num_heads
    size, rows = DIM // heads, []
    weights, biases = layer.in_proj_weight.chunk(3), layer.in_proj_bias.chunk(3)
    projected = (x @ w.T + b for x, w, b in zip((query, key, value), weights, biases, strict=True))
    for q, k, v in zip(*projected, strict=True):
        mixed = torch.zeros(len(q), DIM)
        for head in range(heads):
            part = slice(head * size, (head + 1) * size)
            for position in range(len(q)):
                seen = ~hidden[position]
                share = torch.softmax(k[seen, part] @ q[position, part] / size**0.5, dim=0)
                mixed[position, part] = share @ v[seen, part]
        rows.append(layer.out_proj(mixed))
    return torch.stack(rows)


def norm(add_norm: nn.Module, rows: torch.Tensor) -> torch.Tensor:
    centred = rows - rows.mean(-1, keepdim=True)
    normal = centred / (rows.var(-1, correction=0, keepdim=True) + add_norm.norm.eps).sqrt()
    return normal * add_norm.norm.weight + add_norm.norm.bias


def feed_forward(layer: nn.Module, rows: torch.Tensor) -> torch.Tensor:
    first, last = layer.feed_forward[0], layer.feed_forward[-1]
    return (rows @ first.weight.T + first.bias).clamp_min(0) @ last.weight.T + last.bias


def test_encoder_layer_is_that_of_a_slow_loop() -> None:
    layer, rows, position = (
        EncoderLayer(DIM, 2, 32, 0.1).eval(),
        tokens(channels=DIM),
        tokens(1, channels=DIM, seed=1)[0],
    )
    with torch.no_grad():
        attended = slow_attention(layer.attention, rows + position, rows + position, rows)  # the value has no position
        expected = norm(layer.add_norms[0], rows + attended)
        expected = norm(layer.add_norms[1], expected + feed_forward(layer, expected))
        torch.testing.assert_close(layer(rows, position, neighbor_mask(GRID, 3)), expected)


def test_decoder_layer_is_that_of_a_slow_loop() -> None:
    layer, position = DecoderLayer(30, DIM, 2, 32, 0.1).eval(), tokens(1, channels=DIM, seed=1)[0]
    memory, previous = tokens(channels=DIM, seed=2), tokens(channels=DIM, seed=3)
    query = layer.query.expand(2, -1, -1)
    with torch.no_grad():
        attended = slow_attention(layer.memory_attention, query + position, memory + position, memory)
        rows = norm(layer.add_norms[0], query + attended)
        attended = slow_attention(layer.previous_attention, rows + position, previous + position, previous)
        rows = norm(layer.add_norms[1], rows + attended)
        expected = norm(layer.add_norms[2], rows + feed_forward(layer, rows))
        torch.testing.assert_close(layer(memory, previous, position, neighbor_mask(GRID, 3)), expected)


def test_layers_are_one_after_the_other_and_all_see_the_memory() -> None:
    model = transformer()
    with torch.no_grad():
        result = model(tokens())
        position = torch.stack([
            torch.cat([model.row_embed[row, 0], model.col_embed[0, column]]) for row in range(5) for column in range(6)
        ])
        memory = model.input_proj(tokens())
        for layer in model.encoder:
            memory = layer(memory, position, model.mask)
        torch.testing.assert_close(result.layers[0], memory)
        for number, layer in enumerate(model.decoder):
            torch.testing.assert_close(
                result.layers[number + 1],
                layer(memory, result.layers[number], position, model.mask),
            )
        torch.testing.assert_close(result.tokens, model.output_proj(result.layers[-1]))
    assert len(result.layers) == 3


def test_size_is_the_published_one() -> None:
    model = ReconstructionTransformer(272, (14, 14), 7, 256, 8, 4, 1024, 0.1)
    assert sum(parameter.numel() for parameter in model.parameters()) // 10_000 == 771  # 7.72 million, rounded
    assert "mask" in dict(model.named_buffers())
    assert "mask" not in model.state_dict()


def test_neighbours_are_hidden_from_the_attention_of_a_position() -> None:
    """What a position attends to does not change with what is in its window, and does with what is outside."""
    layer, rows = EncoderLayer(DIM, 2, 32, 0.0).attention.eval(), tokens(1, channels=DIM)
    mask, position = neighbor_mask(GRID, 3), 14  # row 2, column 2
    changed = rows.clone().requires_grad_()
    layer(rows, changed, changed, attn_mask=mask)[0][0, position].sum().backward()
    sensitive = changed.grad[0].abs().sum(-1) > 0
    assert torch.equal(sensitive, ~mask[position])


def test_every_parameter_has_a_gradient() -> None:
    model = transformer().train()
    model(tokens()).tokens.square().mean().backward()
    assert all(p.grad is not None for p in model.parameters())
    assert all(p.grad.abs().sum() > 0 for p in model.parameters())


def test_anomaly_is_not_copied() -> None:
    """Normal images are two patterns. A model that can copy gives a strange token back, the transformer does not."""
    generator = torch.Generator().manual_seed(0)
    patterns = torch.randn(2, 30, CHANNELS, generator=generator)
    strange = torch.randn(CHANNELS, generator=generator)
    anomalous = patterns.index_fill(1, torch.tensor(14), 0) + strange * torch.eye(30)[14, :, None]
    model = transformer(num_layers=1, dropout=0.0).train()
    copier = nn.Linear(CHANNELS, CHANNELS)  # an autoencoder at each position
    lost = []
    for network, reconstruct in ((model, lambda rows: model(rows).tokens), (copier, copier)):
        optimizer = torch.optim.AdamW(network.parameters(), lr=1e-2)
        for _ in range(200):
            clean = patterns[torch.randint(2, (4,), generator=generator)]
            loss = F.mse_loss(reconstruct(feature_jitter(clean, 0.5, generator)), clean)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        with torch.no_grad():
            lost.append((reconstruct(anomalous) - strange)[:, 14].norm(dim=-1).mean() / strange.norm())
    assert lost[0] > 0.7
    assert lost[1] < 0.3  # the anomaly comes back nearly as it was, and would score low


def test_heads_that_do_not_divide_the_embedding() -> None:
    with pytest.raises(ValueError, match="`dim` must be a multiple of twice `num_heads`, 4, got 18"):
        transformer(dim=18)
