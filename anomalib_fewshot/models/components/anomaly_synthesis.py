# Copyright (C) 2026 anomalib-fewshot contributors
# SPDX-License-Identifier: Apache-2.0

"""Synthetic anomalies for normal images: six kinds of small defects with masks.

anomalib's Perlin generator needs a texture data set and uses the global random state. This module uses only the image
and an explicit generator. The kinds and their ranges are choices of this package: some defects are hard to see.
"""

import math
from collections.abc import Callable

import cv2
import numpy as np
import torch
from torch.nn import functional as F  # noqa: N812

MIN_CHANGE = 0.015  # a pixel is anomalous if its colors, in [0, 1], change by more than this on average
MIN_DEFECT_PIXELS = 20  # a smaller defect is drawn again
MAX_TRIES = 6


def synthesize_anomalies(
    images: torch.Tensor,
    generator: torch.Generator,
    per_kind: int = 1,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Synthesize anomalous images, each with one small defect.

    The six kinds are a CutPaste rectangle, a scar, noise-shaped patches, a bright or dark stain, a blurred spot and a
    crack.

    Args:
        images (torch.Tensor): Images in [0, 1], shape ``(B, C, H, W)``.
        generator (torch.Generator): Generator on the CPU.
        per_kind (int): Number of anomalous images of each kind per image. Defaults to ``1``.

    Returns:
        tuple[torch.Tensor, torch.Tensor]: Anomalous images, shape ``(B * 6 * per_kind, C, H, W)``, and boolean masks of
        the changed pixels, shape ``(B * 6 * per_kind, H, W)``.

    Reference:
        Li et al., CutPaste, https://arxiv.org/abs/2104.04015; Zavrtanik et al., DRAEM, https://arxiv.org/abs/2108.07610.
    """
    anomalous, masks = [], []
    for image in images:
        for add_defect in _DEFECT_KINDS:
            for _ in range(per_kind):
                result, mask = _add_visible_defect(image, add_defect, generator)
                anomalous.append(result)
                masks.append(mask)
    return torch.stack(anomalous), torch.stack(masks)


def _add_visible_defect(
    image: torch.Tensor,
    add_defect: Callable[[torch.Tensor, torch.Generator], torch.Tensor],
    generator: torch.Generator,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Repeat until ``MIN_DEFECT_PIXELS`` or more pixels change, at most ``MAX_TRIES`` times."""
    for _ in range(MAX_TRIES):
        anomalous = add_defect(image, generator).clamp(0, 1)
        mask = (anomalous - image).abs().mean(0) > MIN_CHANGE
        if mask.sum() >= MIN_DEFECT_PIXELS:
            break
    return anomalous, mask


def _cut_paste(image: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    area_fraction, aspect = _uniform(generator, 0.003, 0.04), math.exp(_uniform(generator, -1.2, 1.2))
    source = _shifted_copy(image, generator)
    return _blend(image, source, _rectangle(image, generator, area_fraction, aspect, angle=0))


def _scar(image: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    area_fraction, aspect = _uniform(generator, 0.0008, 0.006), _uniform(generator, 4, 20)
    mask = _rectangle(image, generator, area_fraction, aspect, angle=_uniform(generator, 0, 180))
    source = _shifted_copy(image, generator) + _signed(generator, 0, 0.2)
    return _blend(image, source.clamp(0, 1), mask)


def _noise_patches(image: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    noise = _noise(image, generator, 2 ** _integer(generator, 3, 5))
    edge = noise.quantile(_uniform(generator, 0.955, 0.995))
    mask = ((noise - edge) * 6).clamp(0, 1) * _uniform(generator, 0.4, 1)
    return _blend(image, _shifted_copy(image, generator), mask)


def _stain(image: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    spot = _spot(image, generator)
    contrast = 1 + spot * _uniform(generator, -0.5, 0.5)
    return (image - 0.5) * contrast + 0.5 + spot * _signed(generator, 0.075, 0.35)


def _blur(image: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    radius = _integer(generator, 2, 5)
    blurred = F.avg_pool2d(F.pad(image[None], (radius,) * 4, mode="reflect"), 2 * radius + 1, stride=1)[0]
    return _blend(image, blurred, _spot(image, generator))


def _crack(image: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Draw the path of a random walk with a slowly changing direction and steps of one pixel."""
    height, width = image.shape[-2:]
    side = min(height, width)
    length = max(4, int(_uniform(generator, 0.08, 0.45) * side))
    start = [_uniform(generator, 0.15, 0.85) * width, _uniform(generator, 0.15, 0.85) * height]
    bends = (torch.rand(length, generator=generator) - 0.5) * 0.7
    angles = _uniform(generator, 0, 2 * math.pi) + bends.cumsum(0)
    points = np.array(start) + torch.stack([angles.cos(), angles.sin()], dim=-1).cumsum(0).numpy()
    mask = np.zeros((height, width), dtype=np.uint8)
    path = [points.round().astype(np.int32)]
    cv2.polylines(mask, path, isClosed=False, color=255, thickness=_integer(generator, 1, 3), lineType=cv2.LINE_AA)
    return image + torch.from_numpy(mask).to(image) / 255 * _signed(generator, 0.1, 0.4)


_DEFECT_KINDS = (_cut_paste, _scar, _noise_patches, _stain, _blur, _crack)


def _blend(image: torch.Tensor, other: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    return image * (1 - mask) + other * mask


def _shifted_copy(image: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Return a rolled copy with random 180-degree rotation, flip, contrast and brightness."""
    shifts = [_integer(generator, side // 8, 7 * side // 8) for side in image.shape[-2:]]
    moved = image.roll(shifts, (-2, -1))
    moved = moved.rot90(2 * _integer(generator, 0, 1), (-2, -1))
    if _uniform(generator, 0, 1) < 0.5:
        moved = moved.flip(-1)
    mean = moved.mean((-2, -1), keepdim=True)
    moved = (moved - mean) * _uniform(generator, 0.6, 1.4) + mean
    return (moved + _uniform(generator, -0.125, 0.125)).clamp(0, 1)


def _rectangle(
    image: torch.Tensor,
    generator: torch.Generator,
    area_fraction: float,
    aspect: float,
    angle: float,
) -> torch.Tensor:
    """Return the mask of a rectangle with a given fraction of the image area, rotated by an angle in degrees."""
    height, width = image.shape[-2:]
    center = (_uniform(generator, 0.1, 0.9) * width, _uniform(generator, 0.1, 0.9) * height)
    area = area_fraction * height * width
    corners = cv2.boxPoints((center, (math.sqrt(area / aspect), math.sqrt(area * aspect)), angle))
    mask = np.zeros((height, width), dtype=np.uint8)
    cv2.fillPoly(mask, [corners.round().astype(np.int32)], 1)
    return torch.from_numpy(mask).to(image)


def _spot(image: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Return the soft mask of an ellipse with an irregular boundary."""
    height, width = image.shape[-2:]
    radius = min(height, width) * _uniform(generator, 0.02, 0.1)
    flatness, angle = _uniform(generator, 0.4, 1), _uniform(generator, 0, math.pi)
    y = torch.arange(height)[:, None] - _uniform(generator, 0.1, 0.9) * height
    x = torch.arange(width)[None] - _uniform(generator, 0.1, 0.9) * width
    along = (x * math.cos(angle) + y * math.sin(angle)) / radius
    across = (y * math.cos(angle) - x * math.sin(angle)) / (radius * flatness)
    distance = (along.square() + across.square()).sqrt() + 0.35 * _noise(image, generator, 14).cpu()
    return ((1.2 - distance) * radius / 2).clamp(0, 1).to(image)


def _noise(image: torch.Tensor, generator: torch.Generator, cells: int) -> torch.Tensor:
    """Return smooth noise with about unit variance, shape ``(H, W)``, upsampled from ``cells`` x ``cells`` values."""
    noise = torch.randn(1, 1, cells, cells, generator=generator)
    return F.interpolate(noise, image.shape[-2:], mode="bicubic", align_corners=False)[0, 0].to(image)


def _uniform(generator: torch.Generator, low: float, high: float) -> float:
    return low + (high - low) * torch.rand((), generator=generator).item()


def _integer(generator: torch.Generator, low: int, high: int) -> int:
    """Return a uniform integer between low and high, both included."""
    return int(torch.randint(low, max(low, high) + 1, (), generator=generator))


def _signed(generator: torch.Generator, low: float, high: float) -> float:
    """Return a number with a uniform magnitude and a random sign."""
    return _uniform(generator, low, high) * (1 if _uniform(generator, 0, 1) < 0.5 else -1)
