# Copyright (C) 2026 anomalib-fewshot contributors
# SPDX-License-Identifier: Apache-2.0

"""RegAD's spatial transformers: transforms, their inverses, and warps that are undone."""

import pytest
import torch

from anomalib_fewshot.models.reg_ad.stn import MODES, SpatialTransformer, compose, invert, transform_matrix, warp

COUNT = {
    "affine": 6,
    "translation": 2,
    "rotation": 1,
    "scale": 2,
    "shear": 2,
    "rotation_scale": 3,
    "translation_scale": 4,
    "rotation_translation": 3,
    "rotation_translation_scale": 5,
}


def parameters(mode: str, batch: int = 5, size: float = 0.2) -> torch.Tensor:
    values = torch.rand(batch, COUNT[mode], generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return size * (2 * values - 1)


def homogeneous(matrix: torch.Tensor) -> torch.Tensor:
    return torch.cat([matrix, matrix.new_tensor([0, 0, 1]).expand(len(matrix), 1, 3)], dim=1)


def smooth(height: int, width: int, batch: int = 5) -> torch.Tensor:
    y, x = torch.meshgrid(torch.linspace(0, 3, height), torch.linspace(0, 3, width), indexing="ij")
    return torch.stack([(x + y).sin(), (x - y).cos()]).expand(batch, 2, height, width)


def test_every_mode_is_tested() -> None:
    assert set(MODES) == set(COUNT)


@pytest.mark.parametrize("mode", MODES)
def test_zero_is_the_identity(mode: str) -> None:
    identity = torch.eye(2, 3, dtype=torch.float64).expand(5, 2, 3)
    torch.testing.assert_close(transform_matrix(0 * parameters(mode), mode), identity, rtol=0, atol=0)


@pytest.mark.parametrize("mode", MODES)
def test_inverse_is_that_of_linear_algebra(mode: str) -> None:
    matrix = transform_matrix(parameters(mode, size=0.4), mode)
    torch.testing.assert_close(homogeneous(invert(matrix)), torch.linalg.inv(homogeneous(matrix)))


@pytest.mark.parametrize("size", [(48, 48), (40, 64)])
@pytest.mark.parametrize("mode", MODES)
def test_warp_is_undone_in_the_interior(mode: str, size: tuple[int, int]) -> None:
    matrix = transform_matrix(parameters(mode), mode, size[0] / size[1]).float()
    back = warp(warp(smooth(*size), matrix), invert(matrix))
    inner = (..., slice(size[0] // 3, -size[0] // 3), slice(size[1] // 3, -size[1] // 3))
    torch.testing.assert_close(back[inner], smooth(*size)[inner], rtol=0, atol=0.01)
    assert (warp(smooth(*size), matrix)[inner] - smooth(*size)[inner]).abs().max() > 0.05


def test_parts_of_a_combination() -> None:
    angle, tall, wide = 0.3, 0.1, -0.2
    matrix = transform_matrix(torch.tensor([[angle, wide, tall]], dtype=torch.float64), "rotation_scale")
    rotation = transform_matrix(torch.tensor([[angle]], dtype=torch.float64), "rotation")
    scale = transform_matrix(torch.tensor([[wide, tall]], dtype=torch.float64), "scale")
    torch.testing.assert_close(matrix, compose(rotation, scale))
    torch.testing.assert_close(scale[0, :, :2].diagonal(), torch.tensor([wide, tall], dtype=torch.float64).exp())
    torch.testing.assert_close(rotation[0, 1, 0], torch.tensor(angle, dtype=torch.float64).sin())


def test_composition_is_the_matrix_product() -> None:
    outer, inner = (transform_matrix(parameters("affine", size=size), "affine") for size in (0.2, 0.5))
    torch.testing.assert_close(homogeneous(compose(outer, inner)), homogeneous(outer) @ homogeneous(inner))


def test_quarter_turn_is_exact() -> None:
    maps = torch.rand(1, 3, 9, 9, generator=torch.Generator().manual_seed(1))
    matrix = transform_matrix(torch.tensor([[torch.pi / 2]]), "rotation")
    torch.testing.assert_close(warp(maps, matrix), maps.rot90(1, (-2, -1)), rtol=0, atol=1e-5)


def test_rotation_keeps_distances_where_a_map_is_not_square() -> None:
    """In pixels, that is: a point on the middle line stays as far from the centre."""
    height, width = 20, 40
    matrix = transform_matrix(torch.tensor([[torch.pi / 2]]), "rotation", height / width)
    point = matrix[0, :, :2] @ torch.tensor([0.5, 0.0])  # 10 pixels beside the centre
    torch.testing.assert_close(point * torch.tensor([width, height]) / 2, torch.tensor([0.0, 10.0]), atol=1e-5, rtol=0)


def test_singular_transform_stays_finite() -> None:
    assert invert(torch.zeros(1, 2, 3)).isfinite().all()
    assert invert(torch.tensor([[[1.0, 1.0, 1.0], [1.0, 1.0, 0.0]]])).isfinite().all()


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf, 1e30])
def test_warp_by_what_is_not_finite_does_not_crash(value: float) -> None:
    """In torch 2.15 the backward pass of `grid_sample` ends the process with it."""
    maps, matrix = torch.rand(2, 3, 8, 8, requires_grad=True), torch.eye(2, 3).repeat(2, 1, 1)
    matrix[0, 1, 0] = value
    warp(maps, matrix.requires_grad_()).sum().backward()
    assert maps.grad.isfinite().all()


@pytest.mark.parametrize("size", [(56, 56), (14, 14), (9, 13), (4, 4)])
def test_transformer_starts_with_the_identity_and_learns(size: tuple[int, int]) -> None:
    transformer = SpatialTransformer(8)
    maps = torch.rand(2, 8, *size)
    warped, inverse = transformer(maps)
    torch.testing.assert_close(warped, maps, rtol=0, atol=1e-4)
    torch.testing.assert_close(inverse, torch.eye(2, 3).expand(2, 2, 3))
    (warped * torch.rand_like(warped)).sum().backward()
    assert transformer.localization[-1].bias.grad.abs().sum() > 0


def test_transformer_keeps_its_transforms_in_no_attribute() -> None:
    transformer = SpatialTransformer(8)
    before = set(vars(transformer))
    transformer(torch.rand(2, 8, 16, 16))
    assert set(vars(transformer)) == before


def test_half_precision_transforms_in_single() -> None:
    transformer = SpatialTransformer(8)
    maps = torch.rand(2, 8, 16, 16)
    with torch.autocast("cpu", torch.bfloat16):
        warped, inverse = transformer(maps)
    assert warped.dtype == inverse.dtype == torch.float32
    torch.testing.assert_close(warped, maps, rtol=0, atol=1e-4)


def test_unknown_mode() -> None:
    with pytest.raises(ValueError, match=r"`stn_mode` must be one of .* got 'perspective'"):
        SpatialTransformer(8, "perspective")


def rotated(angles: torch.Tensor) -> torch.Tensor:
    """Return a map of two blobs, rotated by each of the angles."""
    y, x = torch.meshgrid(torch.linspace(-1, 1, 24), torch.linspace(-1, 1, 24), indexing="ij")
    blobs = (-((x - 0.4) ** 2) / 0.08 - y**2 / 0.25).exp(), (-((x + 0.3) ** 2) / 0.05 - (y - 0.3) ** 2 / 0.2).exp()
    maps = torch.stack(blobs).expand(len(angles), 2, 24, 24)
    return warp(maps, transform_matrix(angles[:, None], "rotation"))


def test_transformer_learns_to_register() -> None:
    """Rotated copies are aligned, also at angles that were not in the training. A pure rotation cannot collapse."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        transformer = SpatialTransformer(2, "rotation")
    optimizer = torch.optim.SGD(transformer.parameters(), lr=0.05, momentum=0.9)
    generator = torch.Generator().manual_seed(1)
    for _ in range(80):
        warped = transformer(rotated(1.2 * torch.rand(16, generator=generator) - 0.6))[0].flatten(1)
        loss = -torch.cosine_similarity(warped, warped.roll(1, 0)).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    maps = rotated(torch.linspace(-0.6, 0.6, 16))
    with torch.no_grad():
        warped = transformer.eval()(maps)[0]
    before, after = (torch.cosine_similarity(m.flatten(1), m.roll(8, 0).flatten(1)).mean() for m in (maps, warped))
    assert before < 0.8
    assert after > 0.98
