# Copyright (C) 2026 anomalib-fewshot contributors
# SPDX-License-Identifier: Apache-2.0

"""The nearest place of the good pictures: closed forms, a slow reference, and a trained model."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from weave import draw

from anomalib_fewshot.data.validation.image import read_upright
from anomalib_fewshot.inspection import training
from anomalib_fewshot.inspection.nearest import (
    NearestGood,
    extract_features,
    peak_position,
    position_as_fractions,
)
from anomalib_fewshot.inspection.scoring import Scorer


@pytest.mark.parametrize("shape", [(1, 1, 1, 1), (1, 2, 7, 3), (3, 9, 1, 4), (3, 4, 5, 2)])
@pytest.mark.parametrize("neighborhood", [1, 3, 5])
def test_equals_a_slow_reference(shape: tuple[int, ...], neighborhood: int) -> None:
    generator = torch.Generator().manual_seed(0)
    bank, patches = torch.randn(shape, generator=generator), torch.randn(shape[1:], generator=generator)
    nearest, radius = NearestGood(bank.half(), neighborhood), neighborhood // 2
    for row in range(shape[1]):
        for column in range(shape[2]):
            best = (float("inf"), 0, 0, 0)
            for index, i, j in np.ndindex(*shape[:3]):
                distance = slow_distance(bank[index].half(), (i, j), patches, (row, column), radius)
                best = min(best, (distance, index, i, j))
            match = nearest(patches, (row, column))
            assert (match.index, match.row, match.column) == best[1:]
            assert match.distance == pytest.approx(best[0], abs=1e-3)
            assert (match.x, match.y) == ((match.column + 0.5) / shape[2], (match.row + 0.5) / shape[1])


def slow_distance(
    good: torch.Tensor,
    place: tuple[int, int],
    patches: torch.Tensor,
    position: tuple[int, int],
    radius: int,
) -> float:
    """Return the root mean square distance of two places, or infinity if the window of the second does not fit."""
    squares = []
    for i in range(-radius, radius + 1):
        for j in range(-radius, radius + 1):
            row, column = position[0] + i, position[1] + j
            if 0 <= row < len(patches) and 0 <= column < patches.shape[1]:
                good_row, good_column = place[0] + i, place[1] + j
                if not (0 <= good_row < len(good) and 0 <= good_column < good.shape[1]):
                    return float("inf")
                squares.append(float((good[good_row, good_column].float() - patches[row, column]).square().sum()))
    return float(np.sqrt(np.mean(squares)))


@pytest.mark.parametrize("position", [(3, 1), (0, 0), (4, 5)])
def test_a_good_picture_finds_itself(position: tuple[int, int]) -> None:
    bank = torch.randn(4, 5, 6, 8, generator=torch.Generator().manual_seed(0)).half()
    match = NearestGood(bank)(bank[2], position)
    assert (match.index, match.row, match.column) == (2, *position)
    assert match.distance == pytest.approx(0, abs=0.01)


def test_equal_patches_give_the_first() -> None:
    match = NearestGood(torch.ones(3, 9, 9, 4))(torch.zeros(9, 9, 4), (8, 8))
    assert (match.index, match.row, match.column, match.distance) == (0, 2, 2, 2.0)  # the window has 3 x 3 patches


@pytest.mark.parametrize(
    ("patches", "position", "name"),
    [
        ((2, 2, 3), (0, 0), "patches"),
        ((2, 3, 4), (0, 0), "patches"),
        ((2, 2, 4), (2, 0), "position"),
        ((2, 2, 4), (0, -1), "position"),
    ],
)
def test_errors(patches: tuple[int, ...], position: tuple[int, int], name: str) -> None:
    with pytest.raises(ValueError, match=f"`{name}` must"):
        NearestGood(torch.zeros(1, 2, 2, 4))(torch.zeros(patches), position)


@pytest.mark.parametrize("shape", [(0, 2, 2, 4), (2, 2, 4)])
def test_no_good_pictures(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="`bank` must"):
        NearestGood(torch.zeros(shape))
    with pytest.raises(ValueError, match="`neighborhood` must"):
        NearestGood(torch.zeros(1, 2, 2, 4), neighborhood=2)


@pytest.mark.parametrize(
    ("shape", "grid", "peak", "expected"),
    [
        ((320, 320), (40, 40), (0, 0), (0, 0)),
        ((320, 320), (40, 40), (319, 319), (39, 39)),
        ((160, 640), (20, 80), (8, 631), (1, 78)),
        ((10, 10), (3, 3), (6, 7), (1, 2)),
        ((1, 5), (1, 1), (0, 4), (0, 0)),
    ],
)
def test_peak_position(
    shape: tuple[int, int],
    grid: tuple[int, int],
    peak: tuple[int, int],
    expected: tuple[int, int],
) -> None:
    heat = np.full(shape, -1.0)
    heat[peak] = -0.5
    assert peak_position(heat, grid) == expected
    heat[0, 0] = np.nan if peak != (0, 0) else -0.5
    assert peak_position(heat, grid) == expected
    x, y = position_as_fractions(expected, grid)
    assert abs(x - (peak[1] + 0.5) / shape[1]) <= 0.5 / grid[1]
    assert abs(y - (peak[0] + 0.5) / shape[0]) <= 0.5 / grid[0]


def test_peak_of_unusual_maps() -> None:
    assert peak_position(np.zeros((4, 4)), (2, 2)) == (0, 0)
    for heat in (np.zeros((0, 3)), np.zeros(3), np.full((2, 2), np.nan)):
        with pytest.raises(ValueError, match="`heat` must"):
            peak_position(heat, (2, 2))


def test_trained_model(part: Path, trained: Path, tmp_path: Path) -> None:
    """The peak of the map is in the hole. The features are those that the score is computed from."""
    model = training.load(trained).eval()
    transform = model.pre_processor.transform  # type: ignore[union-attr]
    images = [transform(_read(part / "good" / f"{seed}.png")) for seed in range(4)]
    features = extract_features(model, images)
    assert features.bank.dtype == torch.float16
    draw(tmp_path / "new.png", 20, hole=True)
    (scored,) = Scorer(model)([tmp_path / "new.png"])
    assert scored.heat is not None
    with torch.inference_mode():
        (patches,) = model.model.features(transform(_read(tmp_path / "new.png"))).bank
    grid = (patches.shape[0], patches.shape[1])
    peak = peak_position(scored.heat, grid)
    x, y = position_as_fractions(peak, grid)
    assert 30 / 96 <= x <= 54 / 96
    assert 20 / 64 <= y <= 44 / 64
    match = NearestGood(features.bank)(patches, peak)
    assert 0 <= match.index < 4
    assert match.distance > NearestGood(features.bank)(patches, (0, grid[1] - 1)).distance
    copy = NearestGood(features.bank)(features.bank[3].float(), (2, 5))
    assert (copy.index, copy.row, copy.column) == (3, 2, 5)


def test_later_pictures_are_not_read(trained: Path) -> None:
    model = training.load(trained).eval()
    height, width = model.model.image_size
    read = []

    def images() -> Iterator[torch.Tensor]:
        for index in range(9):
            read.append(index)
            yield torch.zeros(1, 3, height, width)

    assert len(extract_features(model, images(), max_images=2).bank) == 2
    assert read == [0, 1]
    with pytest.raises(ValueError, match="`images` must"):
        extract_features(model, [])


def _read(path: Path) -> torch.Tensor:
    return torch.from_numpy(np.array(read_upright(path))).movedim(-1, 0)[None] / 255
