# Copyright (C) 2026 anomalib-fewshot contributors
# SPDX-License-Identifier: Apache-2.0

"""Cache for the tokens of the training images, which do not change because the backbone is frozen."""

from collections.abc import Iterable, Sequence
from math import prod
from pathlib import Path
from shutil import disk_usage
from tempfile import TemporaryDirectory
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer


class TokenCache(Callback):
    """Cache for the tokens of all views of the training images, indexed by path.

    The cache is a Lightning callback, so it is released at the end of the training and after an exception. Copies of
    the cache are empty.

    Args:
        limit (float): Maximum size in memory, in GiB. Larger caches use a memory-mapped temporary file.

    Attributes:
        tokens (torch.Tensor | None): Tokens of K images and V views, shape ``(K, V, N, C)``. ``None`` if the cache is
            empty.
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
            batches (Iterable[tuple[Sequence[str], Iterable[torch.Tensor]]]): For each batch, the B image paths and the
                tokens of each view, shape ``(B, N, C)``.
            num_images (int): Number of images K.
            num_views (int): Number of views V.

        Raises:
            OSError: If the temporary file does not fit on the disk.
        """
        self.release()
        start = 0
        for paths, views in batches:
            for view, tokens in enumerate(views):
                if self.tokens is None:
                    self.tokens = _allocate((num_images, num_views, *tokens.shape[1:]), self.limit)
                self.tokens[start : start + len(paths), view] = tokens
            for path in paths:
                self._index[path] = start
                start += 1

    def get(self, paths: Sequence[str], views: Sequence[int]) -> torch.Tensor:
        """Return the tokens of one view for each of B images, shape ``(B, N, C)``.

        Args:
            paths (Sequence[str]): Image paths.
            views (Sequence[int]): Index of the view of each image.

        Raises:
            RuntimeError: If the cache is empty.
        """
        if self.tokens is None:
            msg = "TokenCache is empty. Call `precompute` first."
            raise RuntimeError(msg)
        return self.tokens[[self._index[path] for path in paths], list(views)]

    def __getstate__(self) -> dict[str, Any]:
        """Return the state without the tokens, which would add gigabytes to a copy or a pickle of the model."""
        return self.__dict__ | {"tokens": None, "_index": {}}

    def release(self) -> None:
        """Empty the cache."""
        self.tokens, self._index = None, {}

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Release the tokens."""
        del trainer, pl_module, stage
        self.release()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Release the tokens, because Lightning does not call ``teardown`` after an exception."""
        del trainer, pl_module, exception
        self.release()


def _allocate(shape: Sequence[int], limit: float) -> torch.Tensor:
    """Return an uninitialized tensor in memory or, above ``limit`` GiB, in a file that is deleted with the tensor.

    Raises:
        OSError: If the file does not fit on the disk.
    """
    size = prod(shape) * torch.float32.itemsize
    if size <= limit * 2**30:
        return torch.empty(*shape)
    # Except on Windows, the mapped file can be deleted while it is in use.
    with TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        free = disk_usage(folder).free
        if size > free:  # the file is sparse: writing to it on a full disk would kill the process
            msg = (
                f"The token cache needs {size / 2**30:.1f} GiB, but only {free / 2**30:.1f} GiB are free. Set TMPDIR "
                "to a folder on another disk, increase `cache_limit` to use memory, or set `cache_tokens` to false. "
                f"Folder: {folder}"
            )
            raise OSError(msg)
        return torch.from_file(str(Path(folder) / "tokens"), shared=True, size=prod(shape)).view(*shape)
