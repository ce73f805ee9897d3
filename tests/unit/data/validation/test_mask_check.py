# Copyright (C) 2026 anomalib-fewshot contributors
# SPDX-License-Identifier: Apache-2.0

"""Masks that anomalib would read as something else."""

import re
from pathlib import Path

import numpy as np
import pytest
from anomalib.data.utils import read_mask
from corpus import HEIGHT, WIDTH, Maker, cut, rotated, written
from PIL import Image

from anomalib_fewshot.data.validation.image_check import check_images
from anomalib_fewshot.data.validation.mask_check import check_masks


def square(value: int = 255, rest: int = 0, size: tuple[int, int] = (WIDTH, HEIGHT)) -> Image.Image:
    """Return a mask with a small square."""
    mask = Image.new("L", size, rest)
    mask.paste(value, (4, 4, 14, 14))
    return mask


def with_alpha(image: Image.Image) -> Image.Image:
    white = Image.new("RGBA", image.size, "white")
    white.putalpha(image)
    return white


MASKS: dict[str, tuple[Image.Image, str, str]] = {
    "black": (Image.new("L", (WIDTH, HEIGHT)), "error", "is empty: no pixel is marked"),
    "inverted": (square(0, 255), "warning", "marks 98% of its image. If it is inverted"),
    "white": (Image.new("L", (WIDTH, HEIGHT), 255), "warning", "marks 100% of its image"),
    "in its alpha channel": (with_alpha(square()), "error", "must not be transparent"),
    "rotated": (square(size=(HEIGHT, WIDTH)), "error", "has 64 x 96 pixels, but its image has 96 x 64"),
    "square": (square(size=(64, 64)), "error", "has 64 x 64 pixels, but its image has 96 x 64"),
}


@pytest.mark.parametrize("case", MASKS)
def test_invalid_mask(good: Path, tmp_path: Path, case: str) -> None:
    mask, severity, message = MASKS[case]
    mask.save(tmp_path / "mask.png")
    (finding,) = check_images(good, masks={str(good / "0.png"): str(tmp_path / "mask.png")})
    assert (finding.path, finding.severity) == (tmp_path / "mask.png", severity)
    assert finding.message.startswith(message)


@pytest.mark.parametrize(
    "mask",
    [
        square(),
        square(1),
        square().convert("RGB"),
        square().convert("RGBA"),
        square().convert("1"),
        square().convert("P"),
        square(size=(48, 32)),
        square(size=(47, 32)),
        Image.fromarray(np.asarray(square()).astype(np.uint16) * 257),
    ],
)
def test_valid_masks(good: Path, tmp_path: Path, mask: Image.Image) -> None:
    mask.save(tmp_path / "mask.png")
    assert check_masks({good / "0.png": tmp_path / "mask.png"}) == []
    assert read_mask(tmp_path / "mask.png", as_tensor=True).sum() == 100


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (written("mask.png", b""), "is empty"),
        (cut("mask.png", 0.7), "cannot be read"),
        (rotated("mask.jpg", 6), "orientation 6"),
        (lambda folder: folder / "mask.png", r"does not exist, but is the mask of 0\.png"),
    ],
)
def test_mask_that_cannot_be_read(good: Path, tmp_path: Path, make: Maker, message: str) -> None:
    mask = make(tmp_path)
    (finding,) = check_masks({good / "0.png": mask})
    assert (finding.path, finding.severity) == (mask, "error")
    assert re.search(message, finding.message)


def test_mask_of_a_rotated_image_has_no_issue(tmp_path: Path) -> None:
    path = rotated("new.jpg", 6)(tmp_path)
    square(size=(HEIGHT, WIDTH)).save(tmp_path / "mask.png")
    (finding,) = check_masks({path: tmp_path / "mask.png"})
    assert (finding.path, finding.severity) == (path, "error")
