# Copyright (C) 2026 anomalib-fewshot contributors
# SPDX-License-Identifier: Apache-2.0

"""The largest region: closed forms, a slow reference at full size, and unusual maps."""

import time

import cv2
import numpy as np
import pytest

from anomalib_fewshot.inspection.regions import MAX_SIDE, Region, largest_region


def slow_largest_region(heat: np.ndarray, size: tuple[int, int]) -> Region | None:
    """Fill one region after the other at the full size of the picture."""
    mask = cv2.resize(heat, size, interpolation=cv2.INTER_LINEAR) > 0.5
    best: list[tuple[int, int]] = []
    for start in zip(*np.nonzero(mask), strict=True):
        waiting, pixels = [start], []
        while waiting:
            row, column = waiting.pop()
            if not (0 <= row < size[1] and 0 <= column < size[0]) or not mask[row, column]:
                continue
            mask[row, column] = False
            pixels.append((row, column))
            waiting += [(row + i, column + j) for i in (-1, 0, 1) for j in (-1, 0, 1)]
        best = max(best, pixels, key=len)
    if not best:
        return None
    rows, columns = zip(*best, strict=True)
    width, height = max(columns) - min(columns) + 1, max(rows) - min(rows) + 1
    return Region(int(min(columns)), int(min(rows)), int(width), int(height), len(best))


def smooth_noise(seed: int, shape: tuple[int, int] = (40, 48)) -> np.ndarray:
    noise = np.random.default_rng(seed).random(shape, dtype=np.float32)
    blurred = cv2.GaussianBlur(noise, (0, 0), 3)
    return (blurred - blurred.min()) / (blurred.max() - blurred.min())


@pytest.mark.parametrize("size", [(48, 40), (96, 80), (131, 57), (20, 90)])
def test_equals_a_slow_reference(size: tuple[int, int]) -> None:
    for seed in range(2):
        heat = smooth_noise(seed)
        assert largest_region(heat, size) == slow_largest_region(heat, size)


def test_the_area_decides_and_not_the_maximum() -> None:
    heat = np.zeros((10, 20), dtype=np.float32)
    heat[1, 1] = 1.0
    heat[5:8, 10:14] = 0.6
    assert largest_region(heat, (20, 10)) == Region(x=10, y=5, width=4, height=3, area=12)


def test_corners_connect() -> None:
    assert largest_region(np.eye(5, dtype=np.float32), (5, 5)) == Region(0, 0, 5, 5, 5)


@pytest.mark.parametrize("value", [0.0, 0.5, np.nan])
def test_no_region(value: float) -> None:
    assert largest_region(np.full((6, 7), value, dtype=np.float32), (70, 60)) is None


def test_the_whole_picture() -> None:
    assert largest_region(np.ones((6, 7)), (6000, 4000)) == Region(0, 0, 6000, 4000, 24_000_000)


def test_one_pixel() -> None:
    heat = np.zeros((320, 320), dtype=np.float32)
    heat[319, 0] = 1
    assert largest_region(heat, (320, 320)) == Region(0, 319, 1, 1, 1)
    region = largest_region(heat, (6000, 4000))
    assert region is not None
    assert (region.x, region.y + region.height) == (0, 4000)
    assert 0 < region.area <= region.width * region.height < 40 * 40


@pytest.mark.parametrize("size", [(20000, 3), (3, 20000), (1, 1), (5000, 1024)])
def test_elongated_pictures(size: tuple[int, int]) -> None:
    heat = np.zeros((64, 64), dtype=np.float32)
    heat[:, 16:48] = 1
    region = largest_region(heat, size)
    assert region is not None
    assert (region.y, region.height) == (0, size[1])
    assert region.width / size[0] == pytest.approx(0.5, abs=max(0.01, 1 / size[0]))
    assert region.area <= region.width * region.height


def test_precision_and_time_for_large_pictures() -> None:
    """The edges differ from those at full size by at most two pixels of the searched map."""
    size = (6000, 4000)
    worst, seconds = 0.0, []
    for seed in range(4):
        heat = smooth_noise(seed, (320, 384))
        start = time.perf_counter()
        region = largest_region(heat, size)
        seconds.append(time.perf_counter() - start)
        mask = (cv2.resize(heat, size, interpolation=cv2.INTER_LINEAR) > 0.5).astype(np.uint8)
        _, _, stats, _ = cv2.connectedComponentsWithStats(mask, connectivity=8)
        x, y, width, height, area = stats[1 + stats[1:, cv2.CC_STAT_AREA].argmax()].tolist()
        assert region is not None
        assert region.area == pytest.approx(area, rel=0.01)
        edges = [(region.x, x, 0), (region.x + region.width, x + width, 0)]
        edges += [(region.y, y, 1), (region.y + region.height, y + height, 1)]
        for found, expected, axis in edges:
            worst = max(worst, abs(found - expected) * MAX_SIDE / size[axis])
    print(f"edges: {worst:.2f} pixels of the searched map, {1000 * np.median(seconds):.1f} ms")
    assert worst <= 2
    assert np.median(seconds) < 0.2


@pytest.mark.parametrize(
    ("shape", "size", "name"),
    [((3, 4, 4), (8, 8), "heat"), ((0, 4), (8, 8), "heat"), ((4, 4), (0, 8), "size")],
)
def test_errors(shape: tuple[int, ...], size: tuple[int, int], name: str) -> None:
    with pytest.raises(ValueError, match=f"`{name}` must"):
        largest_region(np.zeros(shape), size)
