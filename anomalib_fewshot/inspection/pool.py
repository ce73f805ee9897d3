# Copyright (C) 2026 anomalib-fewshot contributors
# SPDX-License-Identifier: Apache-2.0

"""The pool: unlabeled pictures that the model learns from in addition to the good ones."""

import os
from collections.abc import Callable, Iterable, Sequence, Set
from dataclasses import dataclass, field
from pathlib import Path

import torch

from anomalib_fewshot.models.coft_ad.folds import MAX_POOL_SIZE, MIN_POOL_SIZE

from .picture_files import list_pictures


@dataclass
class Pool:
    """Unlabeled pictures of a run: the new ones, and older ones that are not scored.

    Args:
        parts (Sequence[str]): Folders and files of older pictures.
        find_unusable (Callable[..., Set[Path]]): Records the issues of a list of files and returns those that cannot be
            used. With the argument ``decode``, it decodes the files.
        num_found (int): Number of usable pictures. Defaults to ``0``.
        older (list[Path]): Usable older pictures.
        chosen (list[Path]): Pictures to learn from. Empty if there are too few.
    """

    parts: Sequence[str]
    find_unusable: Callable[..., Set[Path]]
    num_found: int = 0
    older: list[Path] = field(default_factory=list)
    chosen: list[Path] = field(default_factory=list)

    def find_older(self, left_out: Set[str]) -> None:
        """Find the usable older pictures, without those of given real paths."""
        files = [path for part in self.parts for path in list_pictures(Path(part))]
        files = without_duplicates(files, left_out)
        unusable = self.find_unusable(files, decode=False)
        self.older = [path for path in files if path not in unusable]

    def choose(self, new: Iterable[Path], left_out: Set[str]) -> Set[Path]:
        """Choose the pictures to learn from, at random if there are many. The choice does not depend on their content.

        A file that is broken in the middle would end the training, so the chosen files are decoded.

        Args:
            new (Iterable[Path]): New pictures whose headers can be read.
            left_out (Set[str]): Real paths of the files to leave out.

        Returns:
            Set[Path]: Pictures that turned out to be unusable.
        """
        found = without_duplicates([*new, *self.older], left_out)
        order = torch.randperm(len(found), generator=torch.Generator().manual_seed(0))
        waiting = [found[number] for number in order] if len(found) >= MIN_POOL_SIZE else []
        chosen: set[Path] = set()
        broken: set[Path] = set()
        while waiting and len(chosen) < MAX_POOL_SIZE:
            num_missing = MAX_POOL_SIZE - len(chosen)
            paths, waiting = waiting[:num_missing], waiting[num_missing:]
            unusable = self.find_unusable(paths, decode=True) & set(paths)
            broken |= unusable
            chosen |= set(paths) - unusable
        self.num_found = len(found) - len(broken)
        self.chosen = [path for path in found if path in chosen] if len(chosen) >= MIN_POOL_SIZE else []
        return broken

    def describe(self, num_used: int, num_outdated: int) -> str:
        """Return a sentence about the pool, and one about pictures that must be scored again. May be empty.

        Args:
            num_used (int): Number of pictures in the pool of the model.
            num_outdated (int): Number of pictures whose scores are those of an earlier model.
        """
        text = describe_pool(num_used, self.num_found, "unlabeled" if self.parts else "new")
        if num_outdated:
            verb = "picture still has its score" if num_outdated == 1 else "pictures still have their scores"
            text += f" {num_outdated} {verb} of an earlier model with fewer unlabeled pictures."
        return text


def without_duplicates(paths: Iterable[Path], left_out: Set[str]) -> list[Path]:
    """Return the paths of different files, without some of them.

    Args:
        paths (Iterable[Path]): Paths, some of which may be links to the same file.
        left_out (Set[str]): Real paths of the files to leave out.
    """
    seen = set(left_out)
    kept = []
    for path in paths:
        realpath = os.path.realpath(path)
        if realpath not in seen:
            seen.add(realpath)
            kept.append(path)
    return kept


def next_pool_size(size: int) -> int | None:
    """Return the number of pictures from which on a model is trained again. ``None`` for a pool of the full size.

    Args:
        size (int): Number of pictures in the pool of the current model.

    Example:
        >>> next_pool_size(0), next_pool_size(20), next_pool_size(100), next_pool_size(128)
        (8, 40, 128, None)
    """
    if size >= MAX_POOL_SIZE:
        return None
    return min(2 * size, MAX_POOL_SIZE) if size else MIN_POOL_SIZE


def describe_pool(num_used: int, num_found: int, kind: str = "new") -> str:
    """Return a sentence about the number of pictures in the pool. It is empty if none are found.

    Args:
        num_used (int): Number of pictures in the pool of the model.
        num_found (int): Number of usable pictures.
        kind (str): Word for these pictures if there are too few. Defaults to ``"new"``.

    Example:
        >>> describe_pool(72, 72), describe_pool(128, 300)
        ('72 unlabeled pictures used.', '128 of 300 unlabeled pictures used.')
        >>> describe_pool(0, 5)
        '5 new pictures are too few to learn from (8 needed).'
    """
    if num_used:
        number = f"{num_used}" if num_used >= num_found else f"{num_used} of {num_found}"
        return f"{number} unlabeled pictures used."
    if not num_found:
        return ""
    verb = "picture is" if num_found == 1 else "pictures are"
    return f"{num_found} {kind} {verb} too few to learn from ({MIN_POOL_SIZE} needed)."
