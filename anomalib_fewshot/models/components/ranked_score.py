# Copyright (C) 2026 anomalib-fewshot contributors
# SPDX-License-Identifier: Apache-2.0

"""Score that is a distance relative to normal images, and whose order agrees with conformal ranks."""

import torch
from anomalib.models.components.base import DynamicBufferMixin

MIN_GAP = 0.01  # smallest relative difference of two levels
MARGIN = 0.01  # part of the interval between two levels for distances beyond it


class RankedScore(DynamicBufferMixin):
    r"""Convert scores to distances that agree with the number of out-of-fold images that an image exceeds.

    The distance of an image with the score s is

    .. math:: d = \exp((s - \max_i c_i) / w)

    where :math:`c_i` are the out-of-fold scores and w is the total weight of the logarithmic distances in a score. It
    is 1 for the most unusual out-of-fold image.

    For each out-of-fold image, the fit without its fold scores this image and the new image. The new image exceeds it
    if its score is higher. If the k out-of-fold images and the new image are exchangeable, the new image exceeds all of
    them with a probability of at most 1 / (k + 1). This holds for any fit and any score, and it gives a threshold.

    Only the R highest ranks are distinct. Below them, the distance is the better order. The *levels* are the distances
    of the R highest out-of-fold images. The distance of an image that exceeds all but j of the out-of-fold images is
    limited to the interval between two levels, the j-th highest and the one above it. Distances beyond the interval
    stay in order, within a hundredth of it.

    An image that every fit contains, such as one of a pool of unlabeled images, is scored without itself. The k images
    are then scored in the same way, each without itself and without its fold, and compared by the same rule.

    Reference:
        Jackknife+, theorem 1 of https://arxiv.org/abs/1905.02928.

    Args:
        weight (float): Total weight w.
    """

    def __init__(self, weight: float = 1.0) -> None:
        super().__init__()
        self.weight = weight
        self.register_buffer("out_of_fold_scores", torch.zeros(0))  # (k,)
        self.register_buffer("fold", torch.zeros(0, dtype=torch.long))  # (k,)
        self.register_buffer("in_bag_scores", torch.zeros(0))  # (k,)
        self.register_buffer("levels", torch.zeros(0))  # (R,)
        self.out_of_fold_scores: torch.Tensor
        self.fold: torch.Tensor
        self.in_bag_scores: torch.Tensor
        self.levels: torch.Tensor

    @torch.no_grad()
    def fit(
        self,
        out_of_fold_scores: torch.Tensor,
        fold: torch.Tensor,
        ranks: int,
        in_bag_scores: torch.Tensor | None = None,
    ) -> None:
        """Store the scores of the out-of-fold images.

        Args:
            out_of_fold_scores (torch.Tensor): Score of each image, computed without its fold, shape ``(k,)``.
            fold (torch.Tensor): Index of the fold of each image, 0 to F - 1, shape ``(k,)``.
            ranks (int): Number R of distinct highest ranks. It is limited to k. 0: distances are not limited.
            in_bag_scores (torch.Tensor | None): Score of each image as those of images that every fit contains, shape
                ``(k,)``. Defaults to ``None``: no image that the fits contain is scored.
        """
        self.out_of_fold_scores = out_of_fold_scores
        self.fold = fold.to(out_of_fold_scores.device)
        self.in_bag_scores = torch.zeros_like(out_of_fold_scores) if in_bag_scores is None else in_bag_scores
        self.levels = self.levels[:0]
        levels = self.calibration_scores[len(out_of_fold_scores) - min(ranks, len(out_of_fold_scores)) :].clone()
        for number in reversed(range(len(levels) - 1)):
            levels[number] = torch.minimum(levels[number], (1 - MIN_GAP) * levels[number + 1])
        self.levels = levels

    @property
    def calibration_scores(self) -> torch.Tensor:
        """Distance of each out-of-fold image, ascending, shape ``(k,)``."""
        scores = self.out_of_fold_scores.sort().values
        distances = ((scores - scores[-1:]) / self.weight).exp()
        if len(self.levels) == 0:
            return distances
        lower = torch.minimum(distances[: -len(self.levels)], self.levels[0])
        return torch.cat([lower, self.levels])

    def forward(
        self,
        scores: torch.Tensor,
        fold_scores: torch.Tensor,
        is_in_bag: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Return distances.

        Args:
            scores (torch.Tensor): Scores of the fit to all images, shape ``(B,)``.
            fold_scores (torch.Tensor): Scores of the fit without each fold, shape ``(F, B)``.
            is_in_bag (torch.Tensor | None): Whether the fits contain each image, and scored it without itself, shape
                ``(B,)``. Defaults to ``None``: they contain none.

        Returns:
            torch.Tensor: Distances, shape ``(B,)``.
        """
        count, num_levels = len(self.out_of_fold_scores), len(self.levels)
        if count == 0:
            return scores
        distances = ((scores - self.out_of_fold_scores.max()) / self.weight).exp()
        if num_levels == 0:
            return distances
        exceeds = fold_scores[self.fold] > self.out_of_fold_scores[:, None]  # (k, B)
        if is_in_bag is not None:
            in_bag = fold_scores[self.fold] > self.in_bag_scores[:, None]
            exceeds = (is_in_bag & in_bag) | (~is_in_bag & exceeds)  # ONNX Runtime has no `where` of booleans
            in_bag_distances = ((scores - self.in_bag_scores.max()) / self.weight).exp()
            distances = torch.where(is_in_bag, in_bag_distances, distances)
        rank = (exceeds.sum(0) - (count - num_levels)).clamp_min(0)  # (B,), from 0 to R
        infinite = torch.full_like(self.levels[:1], torch.inf)
        low = torch.cat([torch.zeros_like(infinite), self.levels])[rank]
        high = torch.cat([self.levels, infinite])[rank]
        return _limit(distances, low, high)


def _limit(distances: torch.Tensor, low: torch.Tensor, high: torch.Tensor) -> torch.Tensor:
    """Return distances in the same order, above ``low``, which may be 0, and up to ``high``, which may be infinite."""
    is_open = high.isinf()
    width = torch.where(is_open, low, high - low)
    below, above = (
        MARGIN * width * (low > 0),
        MARGIN * width * ~is_open,
    )  # parts of the interval for what lies beyond it
    slope = torch.where(is_open, 1, 1 - (below + above) / width)
    limited = low + below + slope * (distances - low)
    limited = torch.where(distances > high, high - above * high / distances, limited)
    return torch.where(distances < low, low + below * (distances / low).clamp_min(0.01), limited)
