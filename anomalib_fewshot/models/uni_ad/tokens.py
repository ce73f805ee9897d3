# Copyright (C) 2026 anomalib-fewshot contributors
# SPDX-License-Identifier: Apache-2.0

"""A cache of the training images' tokens: the backbone is frozen, so they are computed once."""

from collections.abc import Iterable, Sequence
from math import prod
from pathlib import Path
from shutil import disk_usage
from tempfile import TemporaryDirectory
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer


class TokenCache(Callback):
    """Tokens of every view of the training images, by path.

    It is a callback of Lightning's, so that it is emptied when a training ends, also by an exception. A copy of it is
    empty.

    Args:
        limit (float): GiB of tokens to keep in memory. Above, they are in a memory-mapped temporary file.

    Attributes:
        tokens (torch.Tensor | None): Tokens of K images and V views, shape ``(K, V, N, C)``. ``None`` if it is empty.
    """

    def __init__(self, limit: float) -> None:
        self.limit = limit
        self.tokens: torch.Tensor | None = None
        self._index: dict[str, int] = {}

    def precompute(
        self,
        batches: Iterable[tuple[Sequence[str], Iterable[torch.Tensor]]],
        num_images: int,
        num_views: int,
    ) -> None:
        """Fill the cache.

        Args:
            batches (Iterable[tuple[Sequence[str], Iterable[torch.Tensor]]]): Paths of each batch of images, and the
                tokens of each view of them, shape ``(B, N, C)``.
            num_images (int): Number of images K.
            num_views (int): Number of views V.

        Raises:
            OSError: If the tokens need a file and there is no room for it.
        """
        self.release()
        start = 0
        for paths, views in batches:
            for view, tokens in enumerate(views):
                if self.tokens is None:
                    self.tokens = _allocate((num_images, num_views, *tokens.shape[1:]), self.limit)
                self.tokens[start : start + len(paths), view] = tokens
            self._index |= {path: start + number for number, path in enumerate(paths)}
            start += len(paths)

    def get(self, paths: Sequence[str], views: Sequence[int]) -> torch.Tensor:
        """Return the tokens of one view of each of B images, shape ``(B, N, C)``.

        Raises:
            RuntimeError: If the cache is empty.
        """
        if self.tokens is None:
            msg = "TokenCache must be filled before it is read. Call `precompute` first."
            raise RuntimeError(msg)
        return self.tokens[[self._index[path] for path in paths], list(views)]

    def __getstate__(self) -> dict[str, Any]:
        """Return the state without the tokens: a copy or a pickle of a model in training would hold gigabytes."""
        return self.__dict__ | {"tokens": None, "_index": {}}

    def release(self) -> None:
        """Empty the cache."""
        self.tokens, self._index = None, {}

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Release the tokens."""
        del trainer, pl_module, stage
        self.release()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Release the tokens: there will be no teardown."""
        del trainer, pl_module, exception
        self.release()


def _allocate(shape: Sequence[int], limit: float) -> torch.Tensor:
    """Return a tensor in memory or, above ``limit`` GiB, in a file that is deleted with the tensor.

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
