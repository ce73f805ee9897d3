# Copyright (C) 2026 anomalib-fewshot contributors
# SPDX-License-Identifier: Apache-2.0

"""Patch features: groups that have a Gaussian each, and those of the memory bank."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch.nn import functional as F  # noqa: N812

from anomalib_fewshot.models.components import scale_by_norm


@dataclass(frozen=True)
class FeatureGroup:
    """Patch features that share one Gaussian.

    Args:
        is_deep (bool): Take the last feature map on its own grid. Otherwise take the layers of the anomaly map.
        norm_power (float): Power of its norm that each layer's feature is divided by. 1 keeps only the direction.
        regularization (float): Variance added in every direction of the standardized features.
        weight (float): Weight in the anomaly map.
    """

    is_deep: bool
    norm_power: float
    regularization: float
    weight: float


# Chosen on five sets of industrial images, see docs/research/coft_ad.md.
FEATURE_GROUPS = (
    FeatureGroup(is_deep=False, norm_power=1.0, regularization=0.3, weight=1.0),
    FeatureGroup(is_deep=True, norm_power=1.0, regularization=0.1, weight=0.5),
)


@dataclass(frozen=True)
class Features:
    """Features of B images.

    Args:
        embeddings (torch.Tensor): Image embeddings of length 1, shape ``(B, E)``.
        patches (list[torch.Tensor]): Patches of each group, shape ``(B, h, w, D)``.
        bank (torch.Tensor): Patches for the memory bank, shape ``(B, h, w, D)``.
    """

    embeddings: torch.Tensor
    patches: list[torch.Tensor]
    bank: torch.Tensor

    def __getitem__(self, images: slice) -> "Features":
        """Return the features of some of the images."""
        return Features(self.embeddings[images], [part[images] for part in self.patches], self.bank[images])

    @classmethod
    def cat(cls, parts: Sequence["Features"]) -> "Features":
        """Return the features of all images."""
        embeddings = torch.cat([part.embeddings for part in parts])
        patches = [torch.cat(group) for group in zip(*[part.patches for part in parts], strict=True)]
        return cls(embeddings, patches, torch.cat([part.bank for part in parts]))


def features_of_maps(maps: Sequence[torch.Tensor], layers: Sequence[int], groups: Sequence[FeatureGroup]) -> Features:
    """Return the features of images from the feature maps of a backbone.

    Args:
        maps (Sequence[torch.Tensor]): All feature maps, the deepest last, each of shape ``(B, C, h, w)``.
        layers (Sequence[int]): Indices of the maps of the anomaly map.
        groups (Sequence[FeatureGroup]): Groups of patches.
    """
    maps = [part.float() for part in maps]  # differences of similar numbers follow
    chosen = [maps[layer] for layer in layers]
    patches = [group_patches(maps[-1:] if group.is_deep else chosen, group.norm_power) for group in groups]
    return Features(F.normalize(maps[-1].mean((-2, -1)), dim=-1), patches, bank_patches(chosen))


def group_patches(maps: Sequence[torch.Tensor], norm_power: float) -> torch.Tensor:
    """Return the patches of a group: maps, ``(B, C, h, w)``, on the grid of the first -> ``(B, h, w, D)``."""
    scaled = scale_by_norm(on_one_grid(maps), norm_power)
    return torch.cat(scaled, dim=1).movedim(1, -1)


def bank_patches(maps: Sequence[torch.Tensor]) -> torch.Tensor:
    """Return means over 3 x 3 positions: maps, ``(B, C, h, w)``, on the grid of the first -> ``(B, h, w, D)``.

    As in PatchCore, positions beyond the border count as zeros. This reduces the distances along the border, which the
    padding of the backbone would raise.
    """
    means = [F.avg_pool2d(part, 3, stride=1, padding=1) for part in maps]
    return torch.cat(on_one_grid(means), dim=1).movedim(1, -1)


def on_one_grid(maps: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """Return maps of shape ``(B, C, h, w)``, whose grids differ, on the grid of the first."""
    grid = maps[0].shape[-2:]
    return [m if m.shape[-2:] == grid else F.interpolate(m, grid, mode="bilinear", align_corners=False) for m in maps]


def subsample_grid(patches: torch.Tensor, stride: int = 2) -> torch.Tensor:
    """Return patches of every second position: ``(B, h, w, D)`` -> ``(B, h', w', D)``. Means over 3 x 3 overlap."""
    return patches[:, ::stride, ::stride]


def mean_of_highest(maps: torch.Tensor, fraction: float = 0.003) -> torch.Tensor:
    """Return the mean of the highest 0.3 % of each map: ``(..., h, w)`` -> ``(...)``."""
    values = maps.flatten(-2)
    return values.topk(max(1, round(fraction * values.shape[-1])), dim=-1).values.mean(-1)
