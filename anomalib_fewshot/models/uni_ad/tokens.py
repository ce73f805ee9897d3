# Copyright (C) 2026 anomalib-fewshot contributors
# SPDX-License-Identifier: Apache-2.0

"""Tokens of the training images. The backbone is frozen: they are computed once, and kept in memory or in a file."""

from collections.abc import Callable, Iterable, Sequence
from itertools import islice
from math import prod
from pathlib import Path
from shutil import disk_usage
from tempfile import TemporaryDirectory
from typing import Any

import torch
from anomalib.data import ImageItem
from rich.progress import track
from torch.utils.data import DataLoader


class TrainingTokens:
    """Tokens of every view of every image: index ``i * num_views + v`` is view v of image i.

    They are computed each time they are taken, until :meth:`keep` was called.

    Args:
        items (Any): Dataset of images: it has a length, and items by index.
        views (Callable): Returns the views of a batch of images as they are read, one batch after the other.
        num_views (int): Number of views.
        embed (Callable): Returns the tokens, shape ``(B, N, C)``, of a batch of views.
    """

    def __init__(
        self,
        items: Any,  # noqa: ANN401  torch has no type of a dataset with a length
        views: Callable[[torch.Tensor], Iterable[torch.Tensor]],
        num_views: int,
        embed: Callable[[torch.Tensor], torch.Tensor],
    ) -> None:
        self.items = items
        self.views = views
        self.num_views = num_views
        self.embed = embed
        self.kept: torch.Tensor | None = None  # (images, views, N, C)

    def __len__(self) -> int:
        """Return the number of views of all images."""
        return len(self.items) * self.num_views

    def take(self, indices: torch.Tensor) -> torch.Tensor:
        """Return the tokens of some views, shape ``(B, N, C)``."""
        if self.kept is not None:
            return self.kept.flatten(0, 1)[indices]
        return self.embed(torch.cat([self._view(*divmod(index, self.num_views)) for index in indices.tolist()]))

    def keep(self, batch_size: int, num_workers: int, limit: float, shown: bool = False) -> None:
        """Compute all tokens and keep them.

        Args:
            batch_size (int): Images to read at a time.
            num_workers (int): Processes that read images, at most one for each batch.
            limit (float): GiB of tokens to keep in memory at most. Above, a memory-mapped temporary file holds them.
            shown (bool): Show the progress. Defaults to ``False``.
        """
        num_workers = min(num_workers, len(self.items) // batch_size)  # none for a few images
        loader = DataLoader(self.items, batch_size, num_workers=num_workers, collate_fn=_stack)
        kept, start = torch.empty(0), 0
        for images in track(loader, "Computing tokens", disable=not shown):
            for number, view in enumerate(self.views(images)):
                tokens = self.embed(view)
                if len(kept) == 0:
                    kept = _allocate((len(self.items), self.num_views, *tokens.shape[1:]), limit)
                kept[start : start + len(images), number] = tokens
            start += len(images)
        self.kept = kept

    def _view(self, image: int, view: int) -> torch.Tensor:
        return next(islice(iter(self.views(self.items[image].image[None])), view, None))


def _stack(items: Sequence[ImageItem]) -> torch.Tensor:
    return torch.stack([item.image for item in items])


def _allocate(shape: Sequence[int], limit: float) -> torch.Tensor:
    """Return a tensor in memory, or in a file that goes when the tensor goes if it takes more than ``limit`` GiB.

    Raises:
        OSError: If there is no room for the file.
    """
    size = prod(shape) * torch.float32.itemsize
    if size <= limit * 2**30:
        return torch.empty(*shape)
    with TemporaryDirectory(ignore_cleanup_errors=True) as folder:  # a mapped file may be unlinked, but for Windows
        free = disk_usage(folder).free
        if size > free:  # the file is made without its blocks: to write where there are none would kill the process
            msg = (
                f"The tokens need {size / 2**30:.1f} GiB in {folder}, where {free / 2**30:.1f} are free. Name another "
                "folder by the variable TMPDIR, raise `cache_limit` to keep them in memory, or `cache_tokens` false."
            )
            raise OSError(msg)
        return torch.from_file(str(Path(folder) / "tokens"), shared=True, size=prod(shape)).view(*shape)
