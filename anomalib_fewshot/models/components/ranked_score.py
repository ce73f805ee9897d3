# Copyright (C) 2026 anomalib-fewshot contributors
# SPDX-License-Identifier: Apache-2.0

"""Score of an image by how many held-out images it beats."""

import torch
from anomalib.models.components.base import DynamicBufferMixin


class RankedScore(DynamicBufferMixin):
    r"""Order images by the number of held-out images that they beat, where that decides a verdict, then by a score.

    A new image beats the held-out image i if its score by the fit without i is the higher one of the two. Of k images
    that are exchangeable with a new one, it beats all with a probability of at most 1 / (k + 1): whatever the fit and
    the score, so that this is a threshold. Only the highest ranks R are told apart, because the score of the fit to all
    orders better than the number of images that are beaten. With that number b, and the score s and the mean held-out
    score c of the fit to all,

    .. math:: r = a + f \text{ for } a < R, \quad r = R + \frac{f}{1 - f} \text{ for } a = R, \quad
        a = \max(0, b - (k - R)), \quad f = \frac{1}{2} + \frac{z}{2 (1 + |z|)}, \quad z = \frac{s - c}{|c|},

    whose whole part is a up to the line at R. Without held-out images the score stays as it is.
    """

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("held_out_scores", torch.zeros(0))  # (k,)
        self.register_buffer("fold", torch.zeros(0, dtype=torch.long))  # (k,)
        self.register_buffer("center", torch.ones(()))
        self.register_buffer("ranks", torch.zeros((), dtype=torch.long))  # R
        self.held_out_scores: torch.Tensor
        self.fold: torch.Tensor
        self.center: torch.Tensor
        self.ranks: torch.Tensor

    @torch.no_grad()
    def fit(self, held_out_scores: torch.Tensor, fold: torch.Tensor, ranks: int) -> None:
        """Take the scores of the held-out images.

        Args:
            held_out_scores (torch.Tensor): Score of each image by the fit without it, shape ``(k,)``.
            fold (torch.Tensor): Which of the F fits that is, shape ``(k,)``.
            ranks (int): Number of the highest ranks that are told apart. More than k are k.
        """
        self.center.copy_(held_out_scores.mean())
        self.held_out_scores = held_out_scores
        self.fold = fold.to(held_out_scores.device)
        self.ranks.fill_(min(ranks, len(held_out_scores)))

    @property
    def calibration_scores(self) -> torch.Tensor:
        """Ranked scores that an image must be above to beat 1, 2, ... k images, shape ``(k,)``.

        To beat the lowest k - R needs no more than to beat one more than them: these are not told apart.
        """
        count = len(self.held_out_scores)
        return (torch.arange(1.0, count + 1, device=self.center.device) - (count - self.ranks)).clamp_min(1)

    def forward(self, scores: torch.Tensor, by_fold: torch.Tensor) -> torch.Tensor:
        """Rank scores.

        Args:
            scores (torch.Tensor): Scores of images by the fit to all, shape ``(B,)``.
            by_fold (torch.Tensor): Their scores by the fit without each fold, shape ``(F, B)``.

        Returns:
            torch.Tensor: Ranked scores r, shape ``(B,)``.
        """
        count = len(self.held_out_scores)
        if count == 0:
            return scores
        z = (scores - self.center) / self.center.abs().clamp_min(1e-6)
        within = 0.5 + 0.5 * z / (1 + z.abs()) * (1 - 1e-6)
        beaten = (by_fold[self.fold] > self.held_out_scores[:, None]).sum(0)
        rank = (beaten - (count - self.ranks)).clamp_min(0)
        return rank + torch.where(rank == self.ranks, within / (1 - within), within)
