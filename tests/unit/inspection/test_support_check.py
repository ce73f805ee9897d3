# Copyright (C) 2026 anomalib-fewshot contributors
# SPDX-License-Identifier: Apache-2.0

"""Warnings about unusual good pictures: closed forms, synthetic pictures, and unusual support sets."""

import numpy as np
import pytest
import torch
from torch.nn import functional as F  # noqa: N812
from weave import small_model

from anomalib_fewshot.inspection.nearest import extract_features
from anomalib_fewshot.inspection.support_check import (
    Comparison,
    SupportCheck,
    brightness_shift,
    find_outlier,
    group_duplicates,
)
from anomalib_fewshot.models import CoftAD
from anomalib_fewshot.models.coft_ad.features import Features


def texture(seed: int, period: float = 5.0, shape: tuple[int, int] = (64, 64)) -> torch.Tensor:
    """Return an image of random stripes and spots, shape ``(1, 3, H, W)``."""
    generator = torch.Generator().manual_seed(seed)
    spots = F.avg_pool2d(torch.randn(1, 3, shape[0] + 4, shape[1] + 4, generator=generator), 5, stride=1)
    phase = 6 * torch.rand(1, generator=generator)
    return spots + torch.sin(torch.arange(shape[1]) / period + phase)


def check_of(parts: list[torch.Tensor], model: CoftAD) -> SupportCheck:
    images = torch.cat(parts)
    return SupportCheck([f"good/{index}.png" for index in range(len(parts))], images, extract_features(model, parts))


@pytest.fixture(scope="module")
def model() -> CoftAD:
    """Return an untrained small model: the check needs only its backbone."""
    return small_model().eval()


def test_different_pictures_give_no_warning(model: CoftAD) -> None:
    check = check_of([texture(seed) for seed in range(6)], model)
    assert check.groups == [[0], [1], [2], [3], [4], [5]]
    assert check.warnings() == []


def test_copies(model: CoftAD) -> None:
    noise = 0.01 * torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(9))
    parts = [texture(0), texture(1), texture(0), texture(1) + noise, texture(2), 1.1 * texture(0)]
    check = check_of(parts, model)
    assert check.groups == [[0, 2, 5], [1, 3], [4]]
    rest = "are nearly identical. They count as one picture: provide different ones."
    assert check.warnings() == [
        f"good/0.png, good/2.png and good/5.png {rest}",
        f"good/1.png and good/3.png {rest}",
    ]


def test_a_small_shift_is_a_duplicate(model: CoftAD) -> None:
    shifted = texture(0).roll(1, dims=-1)
    assert check_of([texture(0), shifted, texture(1)], model).groups == [[0, 1], [2]]


def test_copy_limit() -> None:
    """Compare the decision with a slow reference, for noise of several strengths."""
    noise = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(9))
    bank = torch.randn(2, 3, 3, 8, generator=torch.Generator().manual_seed(0))
    decisions = []
    for strength in (0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 2.0):
        first, second = texture(0), texture(0) + strength * noise
        is_copy = slow_copy_ratio(first, second) < 0.15
        assert group_duplicates(torch.cat([first, second]), bank) == ([[0, 1]] if is_copy else [[0], [1]])
        decisions.append(is_copy)
    assert decisions == sorted(decisions, reverse=True)
    assert 0 < sum(decisions) < 7  # the limit is between two of the strengths


def slow_copy_ratio(first: torch.Tensor, second: torch.Tensor) -> float:
    """Return the difference of two thumbnails relative to that of neighboring pixels."""
    thumbnails, steps = [], []
    for image in (first, second):
        pixels = image[0].double().numpy().reshape(3, 16, 4, 16, 4).mean((2, 4))
        for channel in range(3):
            pixels[channel] -= pixels[channel].mean()
        pixels /= pixels.std(ddof=1)
        squares: list[list[float]] = [[], []]
        for row in range(16):
            for column in range(16):
                if row > 0:
                    squares[0].append(float(((pixels[:, row, column] - pixels[:, row - 1, column]) ** 2).sum()))
                if column > 0:
                    squares[1].append(float(((pixels[:, row, column] - pixels[:, row, column - 1]) ** 2).sum()))
        thumbnails.append(pixels)
        steps.append((np.sqrt(np.mean(squares[0])) + np.sqrt(np.mean(squares[1]))) / 2)
    difference = np.sqrt(((thumbnails[0] - thumbnails[1]) ** 2).sum(0).mean())
    return float(difference / np.mean(steps))


def test_same_view_limit() -> None:
    """Patches on a line with step 1: a displacement of less than one step is a duplicate."""
    line = torch.arange(6.0).expand(6, 6)
    images = torch.randn(3, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    # The mean step is 1 along rows and 0 along columns.
    bank = torch.stack([line, line + 0.49, line + 1.01])[..., None]
    assert group_duplicates(images, bank) == [[0, 1], [2]]


def test_duplicates_are_linked() -> None:
    line = torch.arange(6.0).expand(6, 6)
    images = torch.randn(4, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    bank = torch.stack([line, line + 9, line + 0.8, line + 0.4])[..., None]
    assert group_duplicates(images, bank) == [[0, 2, 3], [1]]


def test_outlier(model: CoftAD) -> None:
    parts = [texture(seed) for seed in range(5)]
    different = [*parts[:2], 3 * texture(9, period=0.7).clamp_min(0), *parts[2:]]
    (text,) = check_of(different, model).warnings()
    assert text.startswith("good/2.png differs much more from the other good pictures")
    assert check_of(different[:3], model).warnings() == []  # three pictures do not show which one is unusual


def test_find_outlier() -> None:
    """The distances from the nearest picture are 2, 3, 2 and 8."""
    distances = torch.tensor([[0.0, 3, 2, 9], [3, 0, 4, 9], [2, 4, 0, 8], [9, 9, 8, 0]])
    outlier = find_outlier(distances)
    assert outlier.index == 3
    assert outlier.ratio == pytest.approx(8 / 3)
    order = torch.tensor([3, 1, 0, 2])
    assert find_outlier(distances[order][:, order]).index == 0
    assert find_outlier(torch.zeros(4, 4)).ratio == 0
    assert find_outlier(torch.ones(4, 4)).ratio == 1


def test_new_pictures_of_the_same_kind(model: CoftAD) -> None:
    check = check_of([texture(seed) for seed in range(6)], model)
    assert check.new_warnings(_compare(check, [texture(seed) for seed in range(20, 30)], model)) == []


def test_new_pictures_of_another_kind(model: CoftAD) -> None:
    check = check_of([texture(seed) for seed in range(6)], model)
    parts = [3 * texture(seed, period=0.7).clamp_min(0) for seed in range(20, 30)]
    comparisons = _compare(check, parts, model)
    (text,) = check.new_warnings(comparisons)
    assert text.startswith("Most new pictures differ much more from the good ones")
    assert "new/" in text
    normal = _compare(check, [texture(seed) for seed in range(30, 41)], model)
    assert check.new_warnings(comparisons + normal) == []  # the majority is of the same kind
    assert check.new_warnings(comparisons[:7]) == []


@pytest.mark.parametrize(("offset", "text"), [(0.5, "are brighter"), (-0.5, "are darker"), (0.05, "")])
def test_brightness(offset: float, text: str, model: CoftAD) -> None:
    check = check_of([texture(seed) for seed in range(6)], model)
    new = _compare(check, [texture(seed) + offset for seed in range(20, 30)], model)
    near = [Comparison(each.name, 0.0, 0.0, each.brightness) for each in new]
    warnings = check.new_warnings(near)
    assert len(warnings) == (text != "")
    assert all(warning.startswith(f"Most new pictures {text} than all good ones.") for warning in warnings)


def test_brightness_shift() -> None:
    assert brightness_shift([1, 2], [0, 0, 9]) == -1
    assert brightness_shift([1, 2], [4]) == 2
    assert brightness_shift([1, 1], [2]) == pytest.approx(5)  # a range of 0 counts as 0.2


@pytest.mark.parametrize("count", [1, 2, 5])
def test_equal_and_constant_pictures(count: int, model: CoftAD) -> None:
    """No ratio is NaN, and copies are not compared with each other."""
    check = check_of([torch.zeros(1, 3, 64, 64)] * count, model)
    assert len(check.groups) == 1
    assert len(check.warnings()) == (count > 1)
    new = _compare(check, [torch.ones(1, 3, 64, 64)] * 9, model)
    assert check.new_warnings(new) == []
    assert all(np.isfinite([each.patch_distance, each.embedding_distance]).all() for each in new)


def test_elongated_pictures() -> None:
    model = CoftAD(image_size=(32, 128), evaluator=False, visualizer=False).eval()
    parts = [texture(seed, shape=(32, 128)) for seed in range(4)]
    assert check_of(parts, model).warnings() == []
    assert len(check_of([*parts, parts[0]], model).warnings()) == 1


def test_errors() -> None:
    features = Features(torch.zeros(2, 4), [], torch.zeros(2, 3, 3, 4))
    with pytest.raises(ValueError, match="`names`, `images` and `features` must be of the same pictures"):
        SupportCheck(["a"], torch.zeros(2, 3, 32, 32), features)


def _compare(check: SupportCheck, parts: list[torch.Tensor], model: CoftAD) -> list[Comparison]:
    names = [f"new/{index}.png" for index in range(len(parts))]
    return check.compare(names, torch.cat(parts), extract_features(model, parts, max_images=len(parts)))
