# Copyright (C) 2026 anomalib-fewshot contributors
# SPDX-License-Identifier: Apache-2.0

"""What the page shows of a picture: a small one, a large one, its heat map, and the overlay at the photo's own size."""

from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from .scoring import Scored

PARTS = {"photos": "jpg", "thumbnails": "jpg", "heat": "png"}  # folders of `page`, and the suffix of their files

THUMBNAIL, PHOTO = 320, 1600  # pixels of the longer side
LINE = 0.5  # of the map: its threshold
FAINTEST = 0.3  # what is below is not shown
OPACITY = 0.75  # of the highest value
COLOURS = np.array([[255, 221, 64], [255, 140, 0], [225, 30, 60], [150, 0, 110]], dtype=np.float32)  # from low to high
OUTLINE = (255, 255, 255)


def heat_layer(heat: np.ndarray) -> Image.Image:
    """Return a map between 0 and 1 as a transparent layer of one scale for all pictures.

    Args:
        heat (np.ndarray): Anomaly map, shape ``(H, W)``.
    """
    strength = np.clip((heat - FAINTEST) / (1 - FAINTEST), 0, 1)
    places = np.linspace(0, 1, len(COLOURS))
    channels = [np.interp(strength, places, colour) for colour in COLOURS.T]
    alpha = 255 * OPACITY * np.clip(1.6 * strength, 0, 1)
    return Image.fromarray(np.stack([*channels, alpha], axis=-1).round().astype(np.uint8), "RGBA")


def overlay(scored: Scored) -> Image.Image:
    """Return a picture under its heat map, at its own size, with an outline unless it is good."""
    photo, heat = scored.photo, scored.heat
    if photo is None or heat is None:
        msg = f"A picture must be scored before it has an overlay, got {scored.path}. Score it."
        raise ValueError(msg)
    layer = heat_layer(heat).resize(photo.size, Image.Resampling.BILINEAR)
    result = photo.copy()
    result.paste(layer, mask=layer.getchannel("A"))
    if scored.verdict == "good":
        return result
    mask = (cv2.resize(heat, photo.size, interpolation=cv2.INTER_LINEAR) > LINE).astype(np.uint8)
    contours, _ = cv2.findContours(mask, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
    pixels = np.array(result)
    width = max(1, round(max(photo.size) / 400))
    cv2.drawContours(pixels, contours, -1, (0, 0, 0), 3 * width)  # seen on light and dark parts
    cv2.drawContours(pixels, contours, -1, OUTLINE, width)
    return Image.fromarray(pixels)


def write_pictures(scored: Scored, folder: Path, name: str) -> None:
    """Write the pictures of a picture: ``overlays``, and in ``page`` what the page loads.

    Args:
        scored (Scored): The picture.
        folder (Path): Folder of the run.
        name (str): Path of the picture in the folder of new pictures, of which the files have the folders and names.
    """
    if scored.photo is None or scored.heat is None:
        return
    _save(overlay(scored), folder / "overlays" / f"{name}.jpg", quality=90)
    for part, side in (("photos", PHOTO), ("thumbnails", THUMBNAIL)):
        small = scored.photo.copy()
        small.thumbnail((side, side), reducing_gap=2.0)
        _save(small, page_file(folder, part, name), quality=85)
    layer = heat_layer(scored.heat).resize(small.size, Image.Resampling.BILINEAR)  # lies on it, at any size
    _save(layer, page_file(folder, "heat", name))


def page_file(folder: Path, part: str, name: str) -> Path:
    """Return the file of a picture that the page loads.

    Args:
        folder (Path): Folder of the run.
        part (str): ``"photos"``, ``"thumbnails"`` or ``"heat"``.
        name (str): Path of the picture in the folder of new pictures.
    """
    return folder / "page" / part / f"{name}.{PARTS[part]}"


def _save(image: Image.Image, path: Path, quality: int = -1) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path, quality=quality)
