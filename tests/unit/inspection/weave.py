# Copyright (C) 2026 anomalib-fewshot contributors
# SPDX-License-Identifier: Apache-2.0

"""Synthetic images of a weave, and a small model."""

from pathlib import Path

import numpy as np
from PIL import Image

from anomalib_fewshot import CoftAD, SupportPostProcessor
from anomalib_fewshot.inspection.settings import Settings

WIDTH, HEIGHT = 96, 64


def draw(path: Path, seed: int, *, hole: bool = False) -> None:
    """Write an image of noisy stripes, with or without a dark square."""
    generator = np.random.default_rng(seed)
    pixels = np.tile(120 + 40 * np.sin(np.arange(WIDTH) / 3), (HEIGHT, 1))[..., None] * np.array([1.0, 0.8, 0.6])
    pixels = pixels + generator.normal(0, 4, pixels.shape)
    if hole:
        pixels[20:44, 30:54] = 5
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(path, quality=95)


def small_model(settings: Settings | None = None) -> CoftAD:
    """Return a model that trains in a second, with the false-alarm rate of the settings."""
    post_processor = SupportPostProcessor(None if settings is None else settings.false_alarm_rate)
    return CoftAD(image_size=64, num_steps=1, post_processor=post_processor, evaluator=False, visualizer=False)
