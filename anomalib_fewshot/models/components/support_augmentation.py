# Copyright (C) 2026 anomalib-fewshot contributors
# SPDX-License-Identifier: Apache-2.0

"""Views of support images, fixed or random, and pasted anomalies, reproducible with an explicit generator."""

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
    """Draw a random view of each image, with the changes that a fixture and a lamp make to a good part.

    Views are rotated by up to 5 degrees, shifted by 3 %, scaled by 5 %, and changed by 5 % in brightness and contrast.

    Args:
        mean (Sequence[float]): Mean of the images' normalization, per channel.
        std (Sequence[float]): Standard deviation of the images' normalization, per channel.
    """

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        channel_mean, channel_std = torch.tensor(mean), torch.tensor(std)
        self.steps = nn.Sequential(
            K.Denormalize(channel_mean, channel_std),  # colors are changed in [0, 1]
            K.RandomAffine(degrees=5, translate=(0.03, 0.03), scale=(0.95, 1.05), padding_mode="reflection", p=1),
            K.ColorJiggle(brightness=0.05, contrast=0.05, p=1),
            K.Normalize(channel_mean, channel_std),
        )

    def forward(self, images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        """Return a view of each image.

        Args:
            images (torch.Tensor): Normalised images, shape ``(B, 3, H, W)``.
            generator (torch.Generator): Generator on the CPU that decides the views.

        Returns:
            torch.Tensor: Views, shape ``(B, 3, H, W)``.
        """
        with seeded(generator):  # kornia draws from the global generator of the CPU
            return self.steps(images)


def fixed_views(images: torch.Tensor, mean: Sequence[float], std: Sequence[float]) -> Iterator[torch.Tensor]:
    """Yield 22 views of each image, the image itself first, each made from the image and not from another view.

    They are: the image; rotations by -45 to 45 degrees in steps of 11.25; translations by 10 and by 5 % of the sides in
    each diagonal direction; the mirror image; the grey image; rotations by 90, 180 and 270 degrees. Borders are
    reflected. An image that is not square is stretched to its size after a quarter turn.

    Args:
        images (torch.Tensor): Normalised images, shape ``(B, 3, H, W)``.
        mean (Sequence[float]): Mean of the images' normalization, per channel.
        std (Sequence[float]): Standard deviation of the images' normalization, per channel.

    Yields:
        torch.Tensor: A view of each image, shape ``(B, 3, H, W)``.

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
    scale, offset = (images.new_tensor(list(values)).view(3, 1, 1) for values in (std, mean))
    yield (rgb_to_grayscale(images * scale + offset, num_output_channels=3) - offset) / scale
    for turns in (1, 2, 3):
        yield symmetry(images, turns)


def symmetry(images: torch.Tensor, number: int) -> torch.Tensor:
    """Return images by one of the eight symmetries of a square.

    Args:
        images (torch.Tensor): Images, shape ``(B, C, H, W)``.
        number (int): 0 to 3: as many quarter turns. 4 to 7: of the mirror image, 0 to 3. Any other, modulo 8.

    Returns:
        torch.Tensor: Images of the same shape: those that are not square are stretched after a quarter turn.
    """
    mirrored, turns = divmod(number % 8, 4)
    view = (images.flip(-1) if mirrored else images).rot90(turns, (-2, -1))
    if view.shape != images.shape:
        view = F.interpolate(view, images.shape[-2:], mode="bilinear", align_corners=False)
    return view


def rotated_views(images: torch.Tensor, count: int) -> Iterator[torch.Tensor]:
    """Yield images rotated by ``count`` angles in equal steps, 0 degrees first. Borders are reflected.

    Args:
        images (torch.Tensor): Images, shape ``(B, C, H, W)``.
        count (int): Number of angles.

    Yields:
        torch.Tensor: A view of each image, shape ``(B, C, H, W)``.
    """
    for step in range(count):
        angle = images.new_full((len(images),), 360 / count * step)
        yield rotate(images, angle, padding_mode="reflection", align_corners=False)


def cut_paste(images: torch.Tensor, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """Make an anomaly of each image: a rectangle of it, pasted elsewhere in it.

    Args:
        images (torch.Tensor): Images, shape ``(B, C, H, W)``.
        generator (torch.Generator): Generator on the CPU that decides the rectangles.

    Returns:
        tuple[torch.Tensor, torch.Tensor]: Anomalous images, shape ``(B, C, H, W)``, and masks of the pasted
        pixels, shape ``(B, H, W)``, boolean.

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
        top, to_top = (int(corner * (height - h + 1)) for corner in corners[:2])
        left, to_left = (int(corner * (width - w + 1)) for corner in corners[2:])
        result[:, to_top : to_top + h, to_left : to_left + w] = image[:, top : top + h, left : left + w]
        mask[to_top : to_top + h, to_left : to_left + w] = True
    return anomalous, masks
