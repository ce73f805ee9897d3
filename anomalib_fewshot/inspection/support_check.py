# Copyright (C) 2026 anomalib-fewshot contributors
# SPDX-License-Identifier: Apache-2.0

"""Warnings about unusual good pictures: near-duplicates, one of another kind, and new pictures that differ from all."""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

import torch
from torch.nn import functional as F  # noqa: N812

from anomalib_fewshot.models.coft_ad.features import Features, subsample_grid
from anomalib_fewshot.models.components import nearest_distances

# With three different good pictures, 6 % of support sets gave a wrong warning about an outlier, with four 1 %.
MIN_GOOD = 4
MIN_NEW = 8  # new pictures that a comparison requires
# Measured on seven sets of industrial images, see docs/research/support_check.py.
COPY_LIMIT = 0.15  # of thumbnails
SAME_VIEW_LIMIT = 1.0  # of patches: the distance between neighboring patches
OUTLIER_LIMIT = 2.0  # lowest ratio of distances
NEW_LIMIT = 1.5  # lowest ratio of distances
BRIGHTNESS_LIMIT = 1.25  # lowest ratio of the distance from the range of the good pictures to this range
MIN_BRIGHTNESS_RANGE = 0.2  # of the normalized input, which the default backbone expects between -1 and 1
QUERY_STRIDE = 4  # every 16th patch is compared with every fourth patch of the others
THUMBNAIL_STRIDE = 4  # pixels of the network's input
EPSILON = 1e-6


@dataclass(frozen=True)
class Comparison:
    """Comparison of a new picture with the good ones.

    Args:
        name (str): Name of the picture in messages.
        patch_distance (float): Mean distance of its patches from the nearest good picture.
        embedding_distance (float): Distance of its embedding from that of the nearest good picture.
        brightness (float): Mean of the network's input.
    """

    name: str
    patch_distance: float
    embedding_distance: float
    brightness: float


class SupportCheck:
    """Compare the good pictures with each other and with new ones.

    All limits are ratios: a distance between two pictures is compared with distances between the good ones or within a
    picture. A defect in a single good picture is not found: most defects are smaller than differences between good
    pictures.

    Distances between all good pictures are computed. With 32 of them, this takes about a second.

    Args:
        names (Sequence[str]): Names of the K good pictures in messages.
        images (torch.Tensor): Their network inputs, shape ``(K, 3, H, W)``.
        features (Features): Their embeddings and bank patches.

    Raises:
        ValueError: If the numbers of names, images and features differ, or if there are none.
    """

    @torch.inference_mode()
    def __init__(self, names: Sequence[str], images: torch.Tensor, features: Features) -> None:
        if not len(names) == len(images) == len(features.bank) or not names:
            msg = f"`names`, `images` and `features` must be of the same pictures, got {len(names)}, {len(images)} "
            raise ValueError(msg + f"and {len(features.bank)}.")
        self.names = list(names)
        self.groups = group_duplicates(images, features.bank)
        first = [group[0] for group in self.groups]
        bank = features.bank[first].float()
        self.rows = subsample_grid(bank).flatten(1, 2)  # (U, R, D) of U different pictures
        self.embeddings = features.embeddings[first].float()
        self.brightness = _brightness(images[first])
        self.patch_distances = self._patch_distances(bank)  # (U, U)
        self.embedding_distances = _embedding_distances(self.embeddings, self.embeddings)  # (U, U)

    def warnings(self) -> list[str]:
        """Return warnings about the good pictures, one sentence or two each."""
        return [*self._duplicates(), *self._outlier()]

    def _duplicates(self) -> list[str]:
        texts = []
        for group in self.groups:
            if len(group) > 1:
                names = [self.names[index] for index in group]
                listed = f"{', '.join(names[:-1])} and {names[-1]}"
                texts.append(f"{listed} are nearly identical. They count as one picture: provide different ones.")
        return texts

    def _outlier(self) -> list[str]:
        if len(self.groups) < MIN_GOOD:
            return []
        patches, embeddings = find_outlier(self.patch_distances), find_outlier(self.embedding_distances)
        # The square, because distances of patches vary less between pictures.
        if patches.index != embeddings.index or min(patches.ratio**2, embeddings.ratio) < OUTLIER_LIMIT:
            return []
        name = self.names[self.groups[patches.index][0]]
        text = (
            f"{name} differs much more from the other good pictures than they differ from each other. Check that it "
            "shows the same kind of part and is free of defects: it raises the thresholds, so that defects are missed."
        )
        return [text]

    def _patch_distances(self, bank: torch.Tensor) -> torch.Tensor:
        """Return the mean distance of the patches of each image from each good one: ``(B, h, w, D)`` -> ``(B, U)``."""
        queries = subsample_grid(bank, QUERY_STRIDE).flatten(1, 2)
        return torch.stack([nearest_distances(rows, self.rows).mean(0) for rows in queries])

    @torch.inference_mode()
    def compare(self, names: Sequence[str], images: torch.Tensor, features: Features) -> list[Comparison]:
        """Compare new pictures with the good ones. About 32 of a folder are enough for :meth:`new_warnings`.

        Args:
            names (Sequence[str]): Names of B pictures in messages.
            images (torch.Tensor): Their network inputs, shape ``(B, 3, H, W)``.
            features (Features): Their embeddings and bank patches.
        """
        patch_distances = self._patch_distances(features.bank.float()).amin(-1)
        brightness = _brightness(images)
        embedding_distances = _embedding_distances(features.embeddings.float(), self.embeddings).amin(-1)
        comparisons = []
        for index, name in enumerate(names):
            comparisons.append(
                Comparison(
                    name,
                    patch_distance=float(patch_distances[index]),
                    embedding_distance=float(embedding_distances[index]),
                    brightness=float(brightness[index]),
                ),
            )
        return comparisons

    def new_warnings(self, new: Sequence[Comparison]) -> list[str]:
        """Return warnings if the new pictures as a whole differ from the good ones.

        Args:
            new (Sequence[Comparison]): The new pictures, of which most must be good. Fewer than 8 give no warning.
        """
        if len(self.groups) < MIN_GOOD or len(new) < MIN_NEW:
            return []
        patches = median(each.patch_distance for each in new) / _highest_nearest(self.patch_distances)
        embeddings = median(each.embedding_distance for each in new) / _highest_nearest(self.embedding_distances)
        if min(patches**2, embeddings) >= NEW_LIMIT:
            farthest = max(new, key=lambda each: each.patch_distance)
            text = (
                "Most new pictures differ much more from the good ones than these differ from each other, "
                f"{farthest.name} the most. Check that they show the same kind of part with the same crop and light."
            )
            return [text]
        shift = brightness_shift(self.brightness.tolist(), [each.brightness for each in new])
        if abs(shift) < BRIGHTNESS_LIMIT:
            return []
        direction = "brighter" if shift > 0 else "darker"
        text = (
            f"Most new pictures are {direction} than all good ones. Use one setting of camera and light, or add good "
            "pictures with the new setting."
        )
        return [text]


@dataclass(frozen=True)
class Outlier:
    """The picture that is farthest from its nearest one.

    Args:
        index (int): Its index.
        ratio (float): Its distance from the nearest picture, relative to the second highest such distance.
    """

    index: int
    ratio: float


def find_outlier(distances: torch.Tensor) -> Outlier:
    """Return the picture that is farthest from its nearest one.

    Args:
        distances (torch.Tensor): Distances between K pictures, K >= 2, shape ``(K, K)``. Both directions are averaged.

    Example:
        >>> find_outlier(torch.tensor([[0.0, 1, 3], [1, 0, 4], [3, 4, 0]]))
        Outlier(index=2, ratio=3.0)
    """
    nearest = _without_diagonal((distances + distances.T) / 2).amin(1)
    highest, index = nearest.topk(2)
    return Outlier(int(index[0]), float(highest[0] / highest[1].clamp_min(EPSILON)))


def brightness_shift(good: Sequence[float], new: Sequence[float]) -> float:
    """Return how far the median of the new pictures is outside the range of the good ones, relative to this range.

    Args:
        good (Sequence[float]): Brightness of the good pictures.
        new (Sequence[float]): Brightness of the new pictures.

    Returns:
        float: Positive above the range, negative below, 0 within.

    Example:
        >>> brightness_shift([1.0, 2.0], [4.0, 5.0, 3.0]), brightness_shift([1.0, 2.0], [1.5])
        (2.0, 0.0)
    """
    lowest, highest, middle = min(good), max(good), median(new)
    width = max(highest - lowest, MIN_BRIGHTNESS_RANGE)
    return (max(0.0, middle - highest) - max(0.0, lowest - middle)) / width


def group_duplicates(images: torch.Tensor, bank: torch.Tensor) -> list[list[int]]:
    """Group near-duplicates.

    Two pictures are near-duplicates if one of these ratios is low. The thumbnails of a copy differ only in noise or
    compression. Their difference is compared with the effect of a shift of the thumbnail by one pixel. Pictures of one
    part at nearly the same position differ in light or by a small shift. The distance of patches at the same position
    is compared with the distance of neighboring patches.

    Args:
        images (torch.Tensor): Network inputs, shape ``(K, 3, H, W)``.
        bank (torch.Tensor): Bank patches, shape ``(K, h, w, D)``.

    Returns:
        list[list[int]]: Indices of each group, ascending. Most groups have one picture.
    """
    thumbnails = _thumbnails(images)
    copies = _aligned_ratios(thumbnails.movedim(1, -1), squared=True) < COPY_LIMIT
    same_views = _aligned_ratios(bank, squared=False) < SAME_VIEW_LIMIT
    is_duplicate = copies | same_views
    groups: list[list[int]] = []
    for index in range(len(images)):
        linked = [group for group in groups if any(is_duplicate[index, other] for other in group)]
        groups = [group for group in groups if group not in linked]
        groups.append(sorted([index, *(other for group in linked for other in group)]))
    return sorted(groups)


def _thumbnails(images: torch.Tensor) -> torch.Tensor:
    """Return small images with mean 0 and standard deviation 1: ``(K, 3, H, W)`` -> ``(K, 3, H / 4, W / 4)``."""
    small = F.avg_pool2d(images.float(), THUMBNAIL_STRIDE)
    centered = small - small.mean((-2, -1), keepdim=True)
    return centered / centered.std((-3, -2, -1), keepdim=True).clamp_min(EPSILON)


def _aligned_ratios(maps: torch.Tensor, *, squared: bool) -> torch.Tensor:
    """Return the difference of each two maps, relative to the difference of neighboring positions within a map.

    Args:
        maps (torch.Tensor): Maps, shape ``(K, h, w, D)``.
        squared (bool): Average squared distances and take the root. Otherwise average distances.

    Returns:
        torch.Tensor: Ratios, shape ``(K, K)``.
    """

    def mean_distance(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
        distances = torch.linalg.vector_norm(first - second, dim=-1)
        return distances.square().mean((-2, -1)).sqrt() if squared else distances.mean((-2, -1))

    steps, differences = [], []
    for map_ in maps:
        own = map_.float()
        steps.append((mean_distance(own[1:], own[:-1]) + mean_distance(own[:, 1:], own[:, :-1])) / 2)
        differences.append(torch.stack([mean_distance(own, other.float()) for other in maps]))
    step = torch.stack(steps)
    return torch.stack(differences) / ((step + step[:, None]) / 2).clamp_min(EPSILON)


def _brightness(images: torch.Tensor) -> torch.Tensor:
    """Return the mean of each image: ``(K, 3, H, W)`` -> ``(K,)``."""
    return images.float().mean((1, 2, 3))


def _embedding_distances(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    """Return the distances of embeddings of length 1: ``(A, E)`` and ``(B, E)`` -> ``(A, B)``."""
    return (2 - 2 * first @ second.T).clamp_min(0).sqrt()


def _highest_nearest(distances: torch.Tensor) -> float:
    """Return the highest distance of a picture from its nearest one: ``(K, K)`` -> scalar."""
    return float(_without_diagonal(distances).amin(1).max().clamp_min(EPSILON))


def _without_diagonal(distances: torch.Tensor) -> torch.Tensor:
    return distances + torch.diag(torch.full((len(distances),), torch.inf, device=distances.device))
