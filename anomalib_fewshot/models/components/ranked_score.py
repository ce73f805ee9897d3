# Copyright (C) 2026 anomalib-fewshot contributors
# SPDX-License-Identifier: Apache-2.0

"""Score based on the number of out-of-fold images that an image exceeds."""

import torch
from anomalib.models.components.base import DynamicBufferMixin


class RankedScore(DynamicBufferMixin):
    r"""Rank images by the number of out-of-fold images that they exceed, and by a continuous score within a rank.

    For each out-of-fold image, the fit without its fold scores this image and the new image. The new image exceeds it
    if its score is higher. If the k out-of-fold images and the new image are exchangeable, the new image exceeds all of
    them with a probability of at most 1 / (k + 1). This holds for any fit and any score, and it gives a threshold.

    Only the R highest ranks are distinct. Below them, the score of the fit to all images is the better order. With the
    number of exceeded images b, the score s of the fit to all images and the mean out-of-fold score c, the result is

    .. math:: r = a + f \text{ for } a < R, \quad r = R + \frac{f}{1 - f} \text{ for } a = R, \quad
        a = \max(0, b - (k - R)), \quad f = \frac{1}{2} + \frac{z}{2 (1 + |z|)}, \quad z = \frac{s - c}{|c|}.

    The integer part of r is a for all a below R. Without out-of-fold images the score is unchanged.

    An image that the fit to all images contains, such as one of a pool of unlabeled images, is scored by this fit
    without itself. It is compared with the scores of the k images by the same rule (full conformal prediction).

    Reference:
        Jackknife+, theorem 1 of https://arxiv.org/abs/1905.02928.
    """

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("out_of_fold_scores", torch.zeros(0))  # (k,)
        self.register_buffer("fold", torch.zeros(0, dtype=torch.long))  # (k,)
        self.register_buffer("in_bag_scores", torch.zeros(0))  # (k,)
        self.register_buffer("center", torch.ones(()))
        self.register_buffer("ranks", torch.zeros((), dtype=torch.long))  # R
        self.out_of_fold_scores: torch.Tensor
        self.fold: torch.Tensor
        self.in_bag_scores: torch.Tensor
        self.center: torch.Tensor
        self.ranks: torch.Tensor

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
            ranks (int): Number R of distinct highest ranks. It is limited to k.
            in_bag_scores (torch.Tensor | None): Score of each image by the fit to all images without itself, shape
                ``(k,)``. Defaults to ``None``: no image that the fit contains is scored.
        """
        self.center.copy_(out_of_fold_scores.mean())
        self.out_of_fold_scores = out_of_fold_scores
        self.fold = fold.to(out_of_fold_scores.device)
        self.in_bag_scores = torch.zeros_like(out_of_fold_scores) if in_bag_scores is None else in_bag_scores
        self.ranks.fill_(min(ranks, len(out_of_fold_scores)))

    @property
    def calibration_scores(self) -> torch.Tensor:
        """Ranked scores above which an image exceeds 1, 2, ..., k out-of-fold images, shape ``(k,)``.

        The lowest k - R + 1 values are 1, because these ranks are not distinct.
        """
        count = len(self.out_of_fold_scores)
        return (torch.arange(1.0, count + 1, device=self.center.device) - (count - self.ranks)).clamp_min(1)

    def forward(
        self,
        scores: torch.Tensor,
        fold_scores: torch.Tensor,
        is_in_bag: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Return ranked scores.

        Args:
            scores (torch.Tensor): Scores of the fit to all images, shape ``(B,)``.
            fold_scores (torch.Tensor): Scores of the fit without each fold, shape ``(F, B)``.
            is_in_bag (torch.Tensor | None): Whether the fit contains each image, and scored it without itself, shape
                ``(B,)``. Defaults to ``None``: it contains none.

        Returns:
            torch.Tensor: Ranked scores r, shape ``(B,)``.
        """
        count = len(self.out_of_fold_scores)
        if count == 0:
            return scores
        z = (scores - self.center) / self.center.abs().clamp_min(1e-6)
        within = 0.5 + 0.5 * z / (1 + z.abs()) * (1 - 1e-6)
        exceeds = fold_scores[self.fold] > self.out_of_fold_scores[:, None]  # (k, B)
        if is_in_bag is not None:
            in_bag = scores > self.in_bag_scores[:, None]
            exceeds = (is_in_bag & in_bag) | (~is_in_bag & exceeds)  # ONNX Runtime has no `where` of booleans
        exceeded = exceeds.sum(0)
        rank = (exceeded - (count - self.ranks)).clamp_min(0)
        return rank + torch.where(rank == self.ranks, within / (1 - within), within)
