# Copyright (C) 2026 anomalib-fewshot contributors
# SPDX-License-Identifier: Apache-2.0

"""Distances that agree with conformal ranks, against a loop."""

import pytest
import torch

from anomalib_fewshot.models.components import RankedScore

NUM_NEW = 200


def fitted(count: int, folds: int | None = None, ranks: int | None = None) -> tuple[RankedScore, torch.Tensor]:
    rng = torch.Generator().manual_seed(count)
    ranked, out_of_fold = RankedScore(weight=2.0), 2 + torch.rand(count, generator=rng)
    ranked.fit(out_of_fold, torch.arange(count) % (folds or count), count if ranks is None else ranks)
    return ranked, out_of_fold


def new_images(count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return scores of new images by the fit to all images, and by the fits without each fold."""
    rng = torch.Generator().manual_seed(0)
    return 4 * torch.rand(NUM_NEW, generator=rng), 4 * torch.rand(count, NUM_NEW, generator=rng)


@pytest.mark.parametrize(("count", "folds"), [(2, None), (4, None), (8, None), (40, 32)])
@pytest.mark.parametrize("ranks", [1, 2, 5])
def test_levels_divide_images_by_the_number_that_they_exceed(count: int, folds: int | None, ranks: int) -> None:
    ranked, out_of_fold = fitted(count, folds, ranks)
    scores, by_fold = new_images(folds or count)
    by_fold[:, 0], by_fold[:, 1] = 0, 9
    result, num_levels = ranked(scores, by_fold), min(ranks, count)
    levels = ranked.calibration_scores[count - num_levels :]
    for image in range(NUM_NEW):
        exceeded = sum(bool(by_fold[i % (folds or count), image] > out_of_fold[i]) for i in range(count))
        assert int((levels < result[image]).sum()) == max(0, exceeded - (count - num_levels))
    assert 0 < result[0] <= levels[0]
    assert result[1] > 1


def test_distances_are_ratios_within_their_interval() -> None:
    """A distance between its levels changes by less than 2 % of the interval."""
    ranked, out_of_fold = fitted(6, ranks=2)
    torch.testing.assert_close(ranked.calibration_scores, ((out_of_fold - out_of_fold.max()) / 2).exp().sort().values)
    second, highest = ranked.calibration_scores[-2:].tolist()
    scores, by_fold = new_images(6)
    plain, result = ((scores - out_of_fold.max()) / 2).exp(), ranked(scores, by_fold)
    edges = {0: (0.0, second), 1: (second, highest), 2: (highest, float("inf"))}
    for image in range(NUM_NEW):
        low, high = edges[int((result[image] > second) + (result[image] > highest))]
        if low < plain[image] <= high:
            assert abs(result[image] - plain[image]) < 0.02 * min(high - low, low or high)
        else:
            nearest = low if plain[image] <= low else high
            assert abs(result[image] - nearest) < 0.02 * min(high - low, low or high)


def test_order_within_a_rank_is_that_of_the_score() -> None:
    ranked, _ = fitted(6, ranks=3)
    scores = torch.linspace(-10, 15, 400)
    for exceeded in range(7):
        by_fold = torch.full((6, 400), -1.0)
        by_fold[ranked.out_of_fold_scores.argsort()[:exceeded]] = 9.0
        result = ranked(scores.double(), by_fold)
        assert (result.diff() >= 0).all()
        assert (result[100:300].diff() > 0).all()
        assert ((result[:, None] > ranked.levels).sum(1) == max(0, exceeded - 3)).all()  # also for extreme scores


def test_extreme_scores_stay_in_their_interval_in_single_precision() -> None:
    ranked, _ = fitted(4, ranks=2)
    scores = torch.tensor([-1e4, -50.0, 50.0, 150.0])
    for by_fold, num_levels in ((-1.0, 0), (9.0, 2)):
        result = ranked(scores, torch.full((4, 4), by_fold))
        assert ((result[:, None] > ranked.levels).sum(1) == num_levels).all()
        assert result.isfinite().all()


def test_equal_images_have_different_levels() -> None:
    ranked = RankedScore()
    ranked.fit(torch.full((3,), 2.0), torch.arange(3), 2)
    torch.testing.assert_close(ranked.calibration_scores, torch.tensor([0.99, 0.99, 1.0]))
    by_fold = torch.tensor([[9.0, 9.0, 9.0], [1.0, 9.0, 9.0], [1.0, 1.0, 9.0]])
    result = ranked(torch.full((3,), 2.0), by_fold)
    assert ((result[:, None] > ranked.levels).sum(1) == torch.tensor([0, 1, 2])).all()


def test_without_distinct_ranks_a_distance_is_a_ratio() -> None:
    ranked, out_of_fold = fitted(3, ranks=0)
    scores, _ = new_images(3)
    torch.testing.assert_close(ranked(scores, scores[None, :0]), ((scores - out_of_fold.max()) / 2).exp())


def test_without_out_of_fold_images_the_score_stays() -> None:
    scores = torch.tensor([-1.0, 3.0])
    torch.testing.assert_close(RankedScore()(scores, torch.zeros(0, 2)), scores)


def test_a_tie_does_not_exceed() -> None:
    ranked, out_of_fold = fitted(3)
    assert ranked(torch.ones(1), out_of_fold[:, None]) <= ranked.levels[0]


def test_nan_stays() -> None:
    ranked, _ = fitted(3)
    assert ranked(torch.tensor([torch.nan]), torch.full((3, 1), torch.nan)).isnan().all()


def test_a_checkpoint_may_have_another_number_of_images() -> None:
    ranked, other = fitted(5)[0], RankedScore(weight=2.0)
    other.load_state_dict(ranked.state_dict())
    torch.testing.assert_close(other.calibration_scores, ranked.calibration_scores)
    scores, by_fold = new_images(5)
    torch.testing.assert_close(other(scores, by_fold), ranked(scores, by_fold))
