# Copyright (C) 2026 anomalib-fewshot contributors
# SPDX-License-Identifier: Apache-2.0

"""Features of folds, and their whitening out of fold, against loops on small untrained backbones."""

from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch

from anomalib_fewshot import CoftAD
from anomalib_fewshot.models.coft_ad.features import FEATURE_GROUPS, subsample_grid
from anomalib_fewshot.models.coft_ad.folds import (
    FoldFeatures,
    FoldSettings,
    OutOfFold,
    _fitted_views,
    anomalous_cells,
    extract_fold_features,
    total_moments,
    whiten_out_of_fold,
)
from anomalib_fewshot.models.coft_ad.torch_model import CoftADModel
from anomalib_fewshot.models.components import (
    Moments,
    SupportAugmentation,
    rotated_views,
    seeded,
    symmetric_whitening,
    symmetry,
)

PLAIN = FoldSettings(lambda images, _: images, num_views=1, right_angles=False)
MILD = FoldSettings(SupportAugmentation([0.5] * 3, [0.5] * 3), num_views=2)


@pytest.fixture(scope="module")
def model() -> CoftADModel:
    with seeded(0):
        return CoftADModel("test_efficientnet", None, pre_trained=False, weights=None, image_size=(64, 64)).eval()


def images(count: int) -> torch.Tensor:
    return torch.rand(count, 3, 64, 64, generator=torch.Generator().manual_seed(0)) * 2 - 1


def bright_square(image: torch.Tensor, rng: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    anomaly, mask = image[None].clone(), torch.zeros(1, *image.shape[1:], dtype=torch.bool)
    top, left = torch.randint(0, image.shape[-1] - 24, (2,), generator=rng).tolist()
    anomaly[..., top : top + 24, left : left + 24] = 1
    mask[..., top : top + 24, left : left + 24] = True
    return anomaly, mask


@torch.no_grad()
def folds_of(model: CoftADModel, batches: Sequence[torch.Tensor], settings: FoldSettings) -> list[FoldFeatures]:
    return extract_fold_features(model.features, batches, settings)


@torch.no_grad()
def whitened(folds: list[FoldFeatures]) -> list[OutOfFold]:
    return [whiten_out_of_fold(folds, number, group) for number, group in enumerate(FEATURE_GROUPS)]


@pytest.mark.parametrize("sizes", [(1, 1, 1, 1), (3, 1)])
def test_batches_do_not_decide_the_features(sizes: tuple[int, ...], model: CoftADModel) -> None:
    settings = replace(MILD, synthesize=bright_square, num_angles=2)
    expected = folds_of(model, [images(4)], settings)
    for one, two in zip(folds_of(model, images(4).split(sizes), settings), expected, strict=True):
        assert torch.equal(one.views.bank, two.views.bank)
        assert torch.equal(one.moments[0].gram, two.moments[0].gram)
        assert torch.equal(one.anomalous[0], two.anomalous[0])
        assert torch.equal(one.rotated, two.rotated)


def test_views_of_an_image_follow_from_the_seed_and_its_position(model: CoftADModel) -> None:
    """Other images have no influence, and anomalies none on the views."""
    whole, changed = images(3), images(3)
    changed[0] = 0
    one, two = (folds_of(model, [batch], replace(MILD, synthesize=bright_square)) for batch in (whole, changed))
    plain = folds_of(model, [whole], MILD)
    for fold in (1, 2):
        assert torch.equal(one[fold].views.bank, two[fold].views.bank)
        assert torch.equal(one[fold].anomalous[0], two[fold].anomalous[0])
        assert torch.equal(one[fold].moments[0].gram, plain[fold].moments[0].gram)
    other = folds_of(model, [whole], replace(MILD, seed=1))
    assert not torch.equal(other[1].views.bank, plain[1].views.bank)
    same = folds_of(model, [whole[:1].expand(2, -1, -1, -1)], MILD)
    assert not torch.equal(same[0].views.bank[1], same[1].views.bank[1])


@pytest.mark.parametrize("count", [2, 3, 8, 11])
def test_whitening_is_that_of_a_loop(count: int, model: CoftADModel) -> None:
    """Against a loop that fits Gaussians without each eighth, the images themselves being the only views."""
    support = images(count)
    folds = folds_of(model, support.split(4), PLAIN)
    with torch.no_grad():
        features = model.features(support)
    torch.testing.assert_close(total_moments(folds, -1).mean.float(), features.embeddings.mean(0))
    part = torch.arange(count) % 8
    order = sorted(range(count), key=lambda index: int(part[index]))
    for number, (group, own) in enumerate(zip(FEATURE_GROUPS, whitened(folds), strict=True)):
        patches = features.patches[number]
        for row, index in enumerate(order):
            others = Moments.of(patches[part != part[index]])
            mean, whitening = symmetric_whitening(others, group.regularization)
            expected = ((patches[index] - mean) @ whitening).norm(dim=-1)
            actual = own.normal[2 * row : 2 * row + 2].norm(dim=-1)  # the image and its view
            torch.testing.assert_close(actual, expected.expand(2, -1, -1), rtol=1e-3, atol=1e-3)
        assert len(own.anomalous) == 0


def test_a_fit_to_some_folds_is_that_of_a_support_of_these_alone(model: CoftADModel) -> None:
    support = images(4)
    some, alone = folds_of(model, [support], PLAIN)[1:], folds_of(model, [support[1:]], PLAIN)
    for one, two in zip(whitened(some), whitened(alone), strict=True):
        torch.testing.assert_close(one.normal, two.normal, rtol=1e-4, atol=1e-4)


def test_a_single_image_is_represented_by_its_views(model: CoftADModel) -> None:
    folds = folds_of(model, [images(1)], replace(MILD, synthesize=bright_square))
    assert len(folds[0].anomalous[0]) > 0
    for own in whitened(folds):
        assert len(own.normal) == 8
        assert len(own.anomalous) == 0  # there is nothing to compare them with


def test_of_many_images_some_are_scored_out_of_fold(model: CoftADModel) -> None:
    folds = folds_of(model, [images(10)], replace(MILD, max_folds=3, max_images=5))
    assert [len(fold.images.bank) for fold in folds] == [2, 2, 1]
    assert [len(own.normal) for own in whitened(folds)] == [10, 10]  # each image with a view
    assert total_moments(folds, -1).count == 20  # the Gaussians are fitted to all


@pytest.mark.parametrize("right_angles", [True, False])
def test_gaussians_are_fitted_to_rotated_views(right_angles: bool, model: CoftADModel) -> None:
    support = images(2)
    settings = replace(PLAIN, num_views=6, right_angles=right_angles, num_angles=3)
    with torch.no_grad():
        for fold, image in zip(folds_of(model, [support], settings), support.split(1), strict=True):
            views = torch.cat([symmetry(image, number if right_angles else 0) for number in range(6)])
            expected = Moments.of(model.features(views).patches[0].flatten(0, -2))
            torch.testing.assert_close(fold.moments[0].mean, expected.mean)
            torch.testing.assert_close(fold.moments[0].covariance, expected.covariance)
            angles = subsample_grid(model.features(torch.cat([*rotated_views(image, 3)])).bank)
            torch.testing.assert_close(fold.rotated, angles, rtol=1e-4, atol=1e-4)
            assert len(fold.views.bank) == fold.num_views == 2  # out-of-fold views are not rotated


@pytest.mark.parametrize(
    ("size", "keeps_shape"),
    [((64, 64), False), ((64, 96), False), ((64, 100), True), ((96, 32), True)],
)
def test_views_of_elongated_images_are_not_squeezed(size: tuple[int, int], keeps_shape: bool) -> None:
    """Rotations by 90 degrees would be resized to the shape of the image, so only the other symmetries are used."""
    image = torch.rand(3, *size, generator=torch.Generator().manual_seed(0))
    views = _fitted_views(image, 0, replace(PLAIN, num_views=8, right_angles=True))
    for number, view in enumerate(views):
        expected = symmetry(image[None], 2 * number if keeps_shape else number)[0]
        torch.testing.assert_close(view, expected)


def drawn_parts(*, rotated: bool) -> torch.Tensor:
    """Return four noisy images of a ribbed bar with a head, at one angle or at arbitrary ones."""
    rng, size = torch.Generator().manual_seed(0), 160
    y, x = torch.meshgrid(torch.linspace(-1, 1, size), torch.linspace(-1, 1, size), indexing="ij")
    parts = []
    for _ in range(4):
        angle = 2 * torch.pi * torch.rand((), generator=rng) if rotated else torch.tensor(0.3)
        along, across = x * angle.cos() + y * angle.sin(), y * angle.cos() - x * angle.sin()
        bar = (along.abs() < 0.7) & (across.abs() < 0.12)
        head = (along - 0.7).square() + across.square() < 0.06
        part = (bar | head) + 0.5 * bar * (20 * along).sin()
        parts.append(part.clamp(0, 1) * 1.6 - 0.8 + 0.05 * torch.randn(3, size, size, generator=rng))
    return torch.stack(parts)


@pytest.mark.parametrize("rotated", [True, False])
def test_the_support_shows_whether_orientation_is_arbitrary(rotated: bool) -> None:
    model = CoftAD(image_size=160, num_steps=0).eval()
    settings = replace(model.fold_settings(), num_views=2, right_angles=False)
    model.model.scorer.memory_bank.fit(folds_of(model.model, [drawn_parts(rotated=rotated)], settings))
    assert model.model.scorer.memory_bank.is_rotated.tolist() == [rotated] * 5


def test_no_image_is_refused(model: CoftADModel) -> None:
    with pytest.raises(ValueError, match="support set must have an image"):
        folds_of(model, [], PLAIN)


@pytest.mark.parametrize("stride", [2, 4, 8, 16])
def test_cell_that_is_all_anomalous_counts(stride: int) -> None:
    masks = torch.zeros(1, 32, 32)
    masks[:, :16] = 1
    rows = anomalous_cells(masks, (32 // stride, 32 // stride))[0].all(1)
    assert rows.tolist() == [True] * (16 // stride) + [False] * (16 // stride)
