# Copyright (C) 2026 anomalib-fewshot contributors
# SPDX-License-Identifier: Apache-2.0

"""Image files of a run: thumbnail, enlarged photo and heat map for the page, and an overlay at full size."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from anomalib_fewshot.data.validation.image import read_upright

from .scoring import ScoredImage

PARTS = {"photos": "jpg", "thumbnails": "jpg", "heat": "png"}  # subfolders of `page` and their file suffixes

THUMBNAIL, PHOTO = 320, 1600  # pixels of the longer side
PIXEL_THRESHOLD = 0.5
MIN_VISIBLE = 0.3  # lower values of the anomaly map are transparent
MAX_OPACITY = 0.75
COLORS = np.array([[255, 221, 64], [255, 140, 0], [225, 30, 60], [150, 0, 110]], dtype=np.float32)  # low to high
OUTLINE = (255, 255, 255)


@dataclass(frozen=True)
class GoodPicture:
    """Good picture on the page.

    Args:
        path (str): The file.
        width (int): Width in pixels.
        height (int): Height in pixels.
    """

    path: str
    width: int
    height: int


def heat_layer(heat: np.ndarray) -> Image.Image:
    """Return an anomaly map as a transparent RGBA layer. The color scale is the same for all pictures.

    Args:
        heat (np.ndarray): Anomaly map between 0 and 1, shape ``(H, W)``.
    """
    strength = np.clip((heat - MIN_VISIBLE) / (1 - MIN_VISIBLE), 0, 1)
    positions = np.linspace(0, 1, len(COLORS))
    channels = [np.interp(strength, positions, channel) for channel in COLORS.T]
    alpha = 255 * MAX_OPACITY * np.clip(1.6 * strength, 0, 1)
    return Image.fromarray(np.stack([*channels, alpha], axis=-1).round().astype(np.uint8), "RGBA")


def overlay(scored: ScoredImage) -> Image.Image:
    """Return a picture with its heat map at full size. Anomalous regions are outlined."""
    photo, heat = scored.photo, scored.heat
    if photo is None or heat is None:
        msg = f"`scored` must have a photo and an anomaly map, got none for {scored.path}. Score the picture first."
        raise ValueError(msg)
    layer = heat_layer(heat).resize(photo.size, Image.Resampling.BILINEAR)
    result = photo.copy()
    result.paste(layer, mask=layer.getchannel("A"))
    mask = (cv2.resize(heat, photo.size, interpolation=cv2.INTER_LINEAR) > PIXEL_THRESHOLD).astype(np.uint8)
    contours, _ = cv2.findContours(mask, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
    pixels = np.array(result)
    width = max(1, round(max(photo.size) / 400))
    cv2.drawContours(pixels, contours, -1, (0, 0, 0), 3 * width)  # dark border, visible on light parts
    cv2.drawContours(pixels, contours, -1, OUTLINE, width)
    return Image.fromarray(pixels)


def write_images(scored: ScoredImage, folder: Path, name: str) -> None:
    """Write the overlay of a picture to ``overlays`` and the files of the page to ``page``.

    Args:
        scored (ScoredImage): The scored picture.
        folder (Path): Folder of the run.
        name (str): Path of the picture, relative to the folder of new pictures. The output paths contain it.
    """
    if scored.photo is None or scored.heat is None:
        return
    _save(overlay(scored), folder / "overlays" / f"{name}.jpg", quality=90)
    for part, side in (("photos", PHOTO), ("thumbnails", THUMBNAIL)):
        small = scored.photo.copy()
        small.thumbnail((side, side), reducing_gap=2.0)
        _save(small, page_file(folder, part, name), quality=85)
    layer = heat_layer(scored.heat).resize(small.size, Image.Resampling.BILINEAR)  # the page enlarges it
    _save(layer, page_file(folder, "heat", name))


def write_good_pictures(paths: Sequence[Path], folder: Path) -> list[GoodPicture]:
    """Write the photos of the good pictures to ``page/good``, numbered in order, and return their sizes.

    Args:
        paths (Sequence[Path]): The good pictures.
        folder (Path): Folder of the run.
    """
    good = []
    for number, path in enumerate(paths):
        photo = read_upright(path)
        good.append(GoodPicture(str(path), *photo.size))
        photo.thumbnail((PHOTO // 2, PHOTO // 2), reducing_gap=2.0)
        _save(photo, good_file(folder, number), quality=85)
    return good


def good_file(folder: Path, number: int) -> Path:
    """Return the path of the photo of a good picture, by its number."""
    return folder / "page" / "good" / f"{number}.jpg"


def page_file(folder: Path, part: str, name: str) -> Path:
    """Return the path of a file that the page loads.

    Args:
        folder (Path): Folder of the run.
        part (str): ``"photos"``, ``"thumbnails"`` or ``"heat"``.
        name (str): Path of the picture, relative to the folder of new pictures.
    """
    return folder / "page" / part / f"{name}.{PARTS[part]}"


def _save(image: Image.Image, path: Path, quality: int = -1) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path, quality=quality)
