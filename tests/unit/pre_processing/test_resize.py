# Copyright (C) 2026 anomalib-fewshot contributors
# SPDX-License-Identifier: Apache-2.0

"""The exported resize against torchvision's, at every kind of size."""

from itertools import product
from pathlib import Path

import onnxruntime
import pytest
import torch
from torchvision.transforms.v2 import functional as F  # noqa: N812

from anomalib_fewshot.pre_processing import ExportableResize
from anomalib_fewshot.pre_processing.resize import resize

SIDES = (1, 2, 5, 17, 63, 64, 65, 127, 129, 200, 333)


def noise(*shape: int, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(sum(shape)), dtype=dtype)


def slow_row(image: torch.Tensor, size: int, row: int) -> torch.Tensor:
    """Return a row of the result by the definition: a triangle of the larger of both rows' heights."""
    scale = image.shape[0] / size
    width, centre = max(scale, 1.0), (row + 0.5) * scale
    weights = [max(0.0, 1 - abs(j + 0.5 - centre) / width) for j in range(image.shape[0])]
    return sum(w * values for w, values in zip(weights, image, strict=True)) / sum(weights)


@pytest.mark.parametrize("size", [(64, 64), (48, 80), (17, 31), (1, 2)])
def test_equals_torchvision_for_all_sizes(size: tuple[int, int]) -> None:
    for height, width in product(SIDES, SIDES):
        images = noise(2, 3, height, width)
        expected = F.resize(images, list(size), antialias=True)
        torch.testing.assert_close(resize(images, size), expected, rtol=0, atol=1e-6, msg=f"{height} x {width}")


@pytest.mark.parametrize("height", [*range(1, 40), 223, 224, 225, 447, 448, 449, 672, 1999, 4000])
def test_strips_contain_all_rows(height: int) -> None:
    images = noise(1, height, 2)
    expected = F.resize(images, [224, 2], antialias=True)
    torch.testing.assert_close(resize(images, (224, 2)), expected, rtol=0, atol=1e-6)


def test_single_precision_is_closer_to_double_than_torchvision() -> None:
    for height in (225, 300, 701, 2000):
        images = noise(3, height, 64)
        exact = F.resize(images, [224, 64], antialias=True)
        own, other = resize(images.float(), (224, 64)), F.resize(images.float(), [224, 64], antialias=True)
        assert (own - exact).abs().max() < (other - exact).abs().max() < 1e-4
        assert (own - exact).abs().max() < 1e-6


@pytest.mark.parametrize(("height", "size"), [(10, 4), (9, 4), (3, 8), (40, 7)])
def test_equals_the_definition(height: int, size: int) -> None:
    image = noise(height, 3)
    expected = torch.stack([slow_row(image, size, row) for row in range(size)])
    torch.testing.assert_close(resize(image, (size, 3)), expected, rtol=0, atol=1e-6)


def test_closed_forms() -> None:
    torch.testing.assert_close(resize(torch.full((1, 333, 77), 0.3), (64, 48)), torch.full((1, 64, 48), 0.3))
    images = noise(1, 64, 48)
    assert torch.equal(resize(images.float(), (64, 48)), images.float())  # its own size
    torch.testing.assert_close(resize(images.mT, (20, 30)).mT, resize(images, (30, 20)))
    torch.testing.assert_close(resize(images.flip(-2), (20, 30)), resize(images, (20, 30)).flip(-2))
    torch.testing.assert_close(resize(2 * images + 1, (20, 30)), 2 * resize(images, (20, 30)) + 1)


def test_checkerboard_becomes_gray() -> None:
    board = (torch.arange(605)[:, None] + torch.arange(605)) % 2.0
    assert (resize(board, (64, 64))[1:-1, 1:-1] - 0.5).abs().max() < 1e-3
    assert (F.resize(board[None], [64, 64], antialias=False) - 0.5).abs().max() > 0.4


def test_half_precision_and_gradient() -> None:
    images = noise(1, 90, 70)
    torch.testing.assert_close(resize(images.half(), (32, 32)).double(), resize(images, (32, 32)), rtol=0, atol=2e-3)
    assert torch.autograd.gradcheck(lambda x: resize(x, (3, 4)), noise(2, 7, 5).requires_grad_())


def test_transform_is_torchvision_s_outside_of_exports() -> None:
    images, transform = noise(2, 3, 90, 50, dtype=torch.float32), ExportableResize((32, 48))
    expected = F.resize(images, [32, 48], antialias=True)
    assert torch.equal(transform(images), expected)
    program = torch.export.export(transform, (images,))
    assert not [node for node in program.graph.nodes if "upsample" in str(node.target)]
    torch.testing.assert_close(program.module()(images), expected, rtol=0, atol=3e-5)


def test_exported_graph_has_dynamic_shapes(tmp_path: Path) -> None:
    names = ("batch", "height", "width")
    shapes = {axis: torch.export.Dim(name) for axis, name in zip((0, 2, 3), names, strict=True)}
    path = tmp_path / "resize.onnx"
    torch.onnx.export(
        ExportableResize((32, 48)).eval(),
        (torch.zeros(2, 3, 2, 2),),
        path,
        input_names=["input"],
        dynamo=True,
        dynamic_shapes=((shapes,),),
    )
    session = onnxruntime.InferenceSession(path)
    for shape in [(1, 3, 32, 48), (3, 3, 9, 20), (1, 3, 31, 49), (2, 3, 333, 64), (1, 3, 1, 700)]:
        images = noise(*shape, dtype=torch.float32)
        (output,) = session.run(None, {"input": images.numpy()})
        expected = F.resize(images.double(), [32, 48], antialias=True).float()
        torch.testing.assert_close(torch.from_numpy(output), expected, rtol=0, atol=1e-6)
