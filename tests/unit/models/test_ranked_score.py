# Copyright (C) 2026 anomalib-fewshot contributors
# SPDX-License-Identifier: Apache-2.0

"""Ranked scores against a loop."""

import pytest
import torch

from anomalib_fewshot.models.components import RankedScore


def fitted(count: int, folds: int | None = None, ranks: int | None = None) -> tuple[RankedScore, torch.Tensor]:
    rng = torch.Generator().manual_seed(count)
    ranked, out_of_fold = RankedScore(), 2 + torch.rand(count, generator=rng)
    ranked.fit(out_of_fold, torch.arange(count) % (folds or count), ranks or count)
    return ranked, out_of_fold


@pytest.mark.parametrize(("count", "folds"), [(2, None), (4, None), (8, None), (40, 32)])
def test_rank_is_the_number_of_out_of_fold_images_that_are_exceeded(count: int, folds: int | None) -> None:
    ranked, out_of_fold = fitted(count, folds)
    rng = torch.Generator().manual_seed(0)
    scores, by_fold = 4 * torch.rand(50, generator=rng), 4 * torch.rand(folds or count, 50, generator=rng)
    by_fold[:, 0], by_fold[:, 1] = 0, 9
    result = ranked(scores, by_fold)
    for image in range(50):
        exceeded = sum(bool(by_fold[i % (folds or count), image] > out_of_fold[i]) for i in range(count))
        assert (ranked.calibration_scores < result[image]).sum() == exceeded
        assert (result[image] > count) == (exceeded == count)
    assert 0 < result[0] < 1  # exceeds none
    assert result[1] > count  # exceeds all
    assert ranked.calibration_scores.tolist() == list(range(1, count + 1))


@pytest.mark.parametrize(("count", "ranks"), [(4, 1), (4, 2), (8, 3), (2, 9)])
def test_the_lowest_ranks_are_one(count: int, ranks: int) -> None:
    """With R ranks of k, those that exceed k - R images or fewer are ordered by the score alone."""
    (all_ranks, _), (ranked, _) = fitted(count), fitted(count, ranks=ranks)
    rng = torch.Generator().manual_seed(0)
    scores, by_fold = 4 * torch.rand(50, generator=rng), 4 * torch.rand(count, 50, generator=rng)
    whole, result = all_ranks(scores, by_fold), ranked(scores, by_fold)
    merged = max(0, count - ranks)
    low = whole < merged + 1
    torch.testing.assert_close(result[~low], whole[~low] - merged)
    assert (result[low] < 1).all()
    assert result[low].argsort().tolist() == scores[low].argsort().tolist()
    assert ranked.calibration_scores.tolist() == [1.0] * merged + list(range(1, count - merged + 1))


def test_among_equal_ranks_the_score_decides() -> None:
    ranked, out_of_fold = fitted(4)
    scores = torch.tensor([-1e4, 0.0, float(out_of_fold.mean()), 30.0, 1e4])
    for by_fold, middle in ((0.0, 0.5), (9.0, 5.0)):
        result = ranked(scores, torch.full((4, 5), by_fold))
        assert (result.diff() > 0).all()
        torch.testing.assert_close(float(result[2]), middle)  # the mean of the out-of-fold scores is in the middle


def test_without_out_of_fold_images_the_score_stays() -> None:
    scores = torch.tensor([-1.0, 3.0])
    torch.testing.assert_close(RankedScore()(scores, torch.zeros(0, 2)), scores)


def test_a_tie_does_not_exceed() -> None:
    ranked, out_of_fold = fitted(3)
    result = ranked(torch.ones(1), out_of_fold[:, None])
    assert result < 1


def test_a_checkpoint_may_have_another_number_of_images() -> None:
    ranked, other = fitted(5)[0], RankedScore()
    other.load_state_dict(ranked.state_dict())
    torch.testing.assert_close(other.calibration_scores, ranked.calibration_scores)
