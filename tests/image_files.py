# Copyright (C) 2026 anomalib-fewshot contributors
# SPDX-License-Identifier: Apache-2.0

"""Image files that the tests make for themselves."""

from pathlib import Path

import numpy as np
from PIL import Image


def save_image(image: np.ndarray, path: Path) -> None:
    """Write an image, and create its folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image).save(path)
