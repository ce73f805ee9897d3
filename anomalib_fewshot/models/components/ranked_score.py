# Copyright (C) 2026 anomalib-fewshot contributors
# SPDX-License-Identifier: Apache-2.0

"""Score of an image by the number of out-of-fold images that it exceeds."""

import torch
from anomalib.models.components.base import DynamicBufferMixin


class RankedScore(DynamicBufferMixin):
    r"""Order images by the number of out-of-fold images that they exceed, where it decides a verdict, then by a score.

    A new image exceeds the out-of-fold image i if its score by the fit without i is the higher one of the two. Of k
    images that are exchangeable with a new one, it exceeds all with a probability of at most 1 / (k + 1), whatever the
    fit and the score. This gives a threshold. Only the highest ranks R are distinct, because the score by the fit to
    all images orders better than the number of exceeded images. With that number b, the score s and the mean
    out-of-fold score c by the fit to all,

    .. math:: r = a + f \text{ for } a < R, \quad r = R + \frac{f}{1 - f} \text{ for } a = R, \quad
        a = \max(0, b - (k - R)), \quad f = \frac{1}{2} + \frac{z}{2 (1 + |z|)}, \quad z = \frac{s - c}{|c|},

    whose integer part is a up to the threshold at R. Without out-of-fold images the score is unchanged.

    Reference:
        Jackknife+, theorem 1 of https://arxiv.org/abs/1905.02928.
    """

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("out_of_fold_scores", torch.zeros(0))  # (k,)
        self.register_buffer("fold", torch.zeros(0, dtype=torch.long))  # (k,)
        self.register_buffer("center", torch.ones(()))
        self.register_buffer("ranks", torch.zeros((), dtype=torch.long))  # R
        self.out_of_fold_scores: torch.Tensor
        self.fold: torch.Tensor
        self.center: torch.Tensor
        self.ranks: torch.Tensor

    @torch.no_grad()
    def fit(self, out_of_fold_scores: torch.Tensor, fold: torch.Tensor, ranks: int) -> None:
        """Store the scores of the out-of-fold images.

        Args:
            out_of_fold_scores (torch.Tensor): Score of each image by the fit without it, shape ``(k,)``.
            fold (torch.Tensor): Which of the F fits that is, shape ``(k,)``.
            ranks (int): Number of the highest ranks that are distinct. More than k are k.
        """
        self.center.copy_(out_of_fold_scores.mean())
        self.out_of_fold_scores = out_of_fold_scores
        self.fold = fold.to(out_of_fold_scores.device)
        self.ranks.fill_(min(ranks, len(out_of_fold_scores)))

    @property
    def calibration_scores(self) -> torch.Tensor:
        """Ranked scores that an image must be above to exceed 1, 2, ... k images, shape ``(k,)``.

        The lowest k - R are equal to the next one: these ranks are not distinct.
        """
        count = len(self.out_of_fold_scores)
        return (torch.arange(1.0, count + 1, device=self.center.device) - (count - self.ranks)).clamp_min(1)

    def forward(self, scores: torch.Tensor, by_fold: torch.Tensor) -> torch.Tensor:
        """Rank scores.

        Args:
            scores (torch.Tensor): Scores of images by the fit to all, shape ``(B,)``.
            by_fold (torch.Tensor): Their scores by the fit without each fold, shape ``(F, B)``.

        Returns:
            torch.Tensor: Ranked scores r, shape ``(B,)``.
        """
        count = len(self.out_of_fold_scores)
        if count == 0:
            return scores
        z = (scores - self.center) / self.center.abs().clamp_min(1e-6)
        within = 0.5 + 0.5 * z / (1 + z.abs()) * (1 - 1e-6)
        exceeded = (by_fold[self.fold] > self.out_of_fold_scores[:, None]).sum(0)
        rank = (exceeded - (count - self.ranks)).clamp_min(0)
        return rank + torch.where(rank == self.ranks, within / (1 - within), within)
