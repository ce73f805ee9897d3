# Copyright (C) 2026 anomalib-fewshot contributors
# SPDX-License-Identifier: Apache-2.0

"""Batches of one category each."""

from collections.abc import Iterator, Sequence
from itertools import accumulate
from math import ceil

import torch
from torch.utils.data import Sampler


class CategoryBatchSampler(Sampler[list[int]]):
    """Batches of indices of concatenated datasets. Each batch has one category, and at least two images if possible.

    Args:
        lengths (Sequence[int]): Number of images of each category.
        batch_size (int): Highest number of images in a batch. A batch may have one image more, to avoid batches of one.
        generator (torch.Generator | None): Generator that shuffles the images of each category and the batches.
            Defaults to ``None``: a fixed order.
        rank (int): Rank of this process. All processes get the same number of batches, so a few batches may be used
            twice. Defaults to ``0``.
        num_replicas (int): Number of processes. Defaults to ``1``.

    Example:
        >>> list(CategoryBatchSampler([5, 2], batch_size=3))
        [[0, 1, 2], [3, 4], [5, 6]]
    """

    def __init__(
        self,
        lengths: Sequence[int],
        batch_size: int,
        generator: torch.Generator | None = None,
        rank: int = 0,
        num_replicas: int = 1,
    ) -> None:
        self.lengths = list(lengths)
        self.batch_size = batch_size
        self.generator = generator
        self.rank = rank
        self.num_replicas = num_replicas

    def __len__(self) -> int:
        """Return the number of batches of this process."""
        return ceil(sum(self._count(length) for length in self.lengths) / self.num_replicas)

    def __iter__(self) -> Iterator[list[int]]:
        """Yield the batches."""
        batches = []
        for length, end in zip(self.lengths, accumulate(self.lengths), strict=True):
            order = torch.arange(length) if self.generator is None else torch.randperm(length, generator=self.generator)
            batches += [part.tolist() for part in (order + end - length).tensor_split(self._count(length))]
        if self.generator is not None:
            batches = [batches[i] for i in torch.randperm(len(batches), generator=self.generator)]
        share = range(self.rank, len(self) * self.num_replicas, self.num_replicas)
        yield from (batches[number % len(batches)] for number in share)

    def _count(self, length: int) -> int:
        return max(1, min(ceil(length / self.batch_size), length // 2))
