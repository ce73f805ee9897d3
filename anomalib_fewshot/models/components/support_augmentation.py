# Copyright (C) 2026 anomalib-fewshot contributors
# SPDX-License-Identifier: Apache-2.0

"""Augmentation of support images with fixed or random views, and CutPaste anomalies."""

from collections.abc import Iterator, Sequence

import kornia.augmentation as K  # noqa: N812  kornia's own abbreviation
import torch
from kornia.geometry.transform import rotate, translate
from torch import nn
from torch.nn import functional as F  # noqa: N812
from torchvision.transforms.v2.functional import rgb_to_grayscale

from .seeding import seeded

NUM_FIXED_VIEWS = 22


class SupportAugmentation(nn.Module):
    """Random views that imitate the variation of fixture and lighting between normal parts.

    A view is rotated by up to 5 degrees, shifted by up to 3 % and scaled by up to 5 %. Brightness and contrast change
    by up to 5 %.

    Args:
        mean (Sequence[float]): Normalization mean of the images, per channel.
        std (Sequence[float]): Normalization standard deviation of the images, per channel.
    """

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        channel_mean, channel_std = torch.tensor(mean), torch.tensor(std)
        self.steps = nn.Sequential(
            K.Denormalize(channel_mean, channel_std),  # `ColorJiggle` needs values in [0, 1]
            K.RandomAffine(degrees=5, translate=(0.03, 0.03), scale=(0.95, 1.05), padding_mode="reflection", p=1),
            K.ColorJiggle(brightness=0.05, contrast=0.05, p=1),
            K.Normalize(channel_mean, channel_std),
        )

    def forward(self, images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        """Return a random view of each image.

        Args:
            images (torch.Tensor): Normalized images, shape ``(B, 3, H, W)``.
            generator (torch.Generator): Generator on the CPU.

        Returns:
            torch.Tensor: Views, shape ``(B, 3, H, W)``.
        """
        with seeded(generator):  # kornia uses the global CPU generator
            return self.steps(images)


def fixed_views(images: torch.Tensor, mean: Sequence[float], std: Sequence[float]) -> Iterator[torch.Tensor]:
    """Yield 22 views of each image, the image itself first.

    The views are the image; rotations by -45 to 45 degrees in steps of 11.25; translations by 10 % and 5 % of the image
    size in the four diagonal directions; the horizontal flip; the grayscale image; and rotations by 90, 180 and 270
    degrees. Borders are reflected. Rotations by 90 and 270 degrees are resized to the image size.

    Args:
        images (torch.Tensor): Normalized images, shape ``(B, 3, H, W)``.
        mean (Sequence[float]): Normalization mean of the images, per channel.
        std (Sequence[float]): Normalization standard deviation of the images, per channel.

    Yields:
        torch.Tensor: One view of each image, shape ``(B, 3, H, W)``.

    Reference:
        The support set of RegAD, https://arxiv.org/abs/2207.07361.
    """
    yield images
    for step in (-4, -3, -2, -1, 1, 2, 3, 4):
        angle = images.new_full((len(images),), 11.25 * step)
        yield rotate(images, angle, padding_mode="reflection", align_corners=False)
    size = images.new_tensor([images.shape[-1], images.shape[-2]])
    for fraction in (0.1, 0.05):
        for signs in ((1, 1), (1, -1), (-1, 1), (-1, -1)):
            shift = (fraction * size * images.new_tensor(signs)).expand(len(images), 2)
            yield translate(images, shift, padding_mode="reflection", align_corners=False)
    yield symmetry(images, 4)
    scale = images.new_tensor(list(std)).view(3, 1, 1)
    offset = images.new_tensor(list(mean)).view(3, 1, 1)
    yield (rgb_to_grayscale(images * scale + offset, num_output_channels=3) - offset) / scale
    for quarter_turns in (1, 2, 3):
        yield symmetry(images, quarter_turns)


def symmetry(images: torch.Tensor, number: int) -> torch.Tensor:
    """Apply one of the eight symmetries of a square to images.

    Args:
        images (torch.Tensor): Images, shape ``(B, C, H, W)``.
        number (int): Index of the symmetry, modulo 8. 0 to 3: rotation by 0, 90, 180 or 270 degrees. 4 to 7: horizontal
            flip, then the same rotations.

    Returns:
        torch.Tensor: Images of the same shape. Rotated images that are not square are resized.
    """
    is_flipped, quarter_turns = divmod(number % 8, 4)
    view = (images.flip(-1) if is_flipped else images).rot90(quarter_turns, (-2, -1))
    if view.shape != images.shape:
        view = F.interpolate(view, images.shape[-2:], mode="bilinear", align_corners=False)
    return view


def rotated_views(images: torch.Tensor, count: int) -> Iterator[torch.Tensor]:
    """Yield rotations of images by ``count`` equally spaced angles, 0 degrees first. Borders are reflected.

    Args:
        images (torch.Tensor): Images, shape ``(B, C, H, W)``.
        count (int): Number of angles.

    Yields:
        torch.Tensor: One rotation of each image, shape ``(B, C, H, W)``.
    """
    for step in range(count):
        angle = images.new_full((len(images),), 360 / count * step)
        yield rotate(images, angle, padding_mode="reflection", align_corners=False)


def cut_paste(images: torch.Tensor, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """Create a CutPaste anomaly in each image: paste a rectangle of the image at another position.

    Args:
        images (torch.Tensor): Images, shape ``(B, C, H, W)``.
        generator (torch.Generator): Generator on the CPU.

    Returns:
        tuple[torch.Tensor, torch.Tensor]: Anomalous images, shape ``(B, C, H, W)``, and boolean masks of the pasted
        pixels, shape ``(B, H, W)``.

    Reference:
        Li et al., CutPaste, https://arxiv.org/abs/2104.04015: area of 2 to 15 % of the image, aspect ratio up to 3.3.
    """
    height, width = images.shape[-2:]
    anomalous, masks = images.clone(), torch.zeros_like(images[:, 0], dtype=torch.bool)
    for image, result, mask in zip(images, anomalous, masks, strict=True):
        area, aspect, *corners = torch.rand(6, generator=generator).tolist()
        area, aspect = height * width * (0.02 + 0.13 * area), 3.3 ** (2 * aspect - 1)
        h = min(max(round((area * aspect) ** 0.5), 1), height - 1)
        w = min(max(round((area / aspect) ** 0.5), 1), width - 1)
        top, target_top = (int(corner * (height - h + 1)) for corner in corners[:2])
        left, target_left = (int(corner * (width - w + 1)) for corner in corners[2:])
        rows, columns = slice(target_top, target_top + h), slice(target_left, target_left + w)
        result[:, rows, columns] = image[:, top : top + h, left : left + w]
        mask[rows, columns] = True
    return anomalous, masks
