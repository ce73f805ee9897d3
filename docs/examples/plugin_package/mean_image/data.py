# Copyright (C) 2026 anomalib-fewshot contributors
# SPDX-License-Identifier: Apache-2.0

"""Data module with synthetic images, so that the example requires no dataset."""

from pathlib import Path

import numpy as np
from anomalib.data import Folder
from PIL import Image


class Stripes(Folder):
    """Synthetic images of stripes. Anomalous images contain a dark square. They are generated on first use.

    Args:
        root (str | Path): Folder for the images. Defaults to ``"./datasets/stripes"``.
        num_images (int): Number of images per folder. Defaults to ``8``.
    """

    def __init__(self, root: str | Path = "./datasets/stripes", num_images: int = 8) -> None:
        super().__init__(
            name="stripes",
            root=root,
            normal_dir="good",
            normal_test_dir="test_good",
            abnormal_dir="square",
            train_batch_size=8,
            eval_batch_size=8,
            num_workers=0,
        )
        self.num_images = num_images

    def prepare_data(self) -> None:
        """Generate missing images."""
        rng = np.random.default_rng(0)
        for kind in ("good", "test_good", "square"):
            for index in range(self.num_images):
                path = Path(self.root) / kind / f"{index:03}.png"
                image = 120 + 60 * np.sin(np.arange(64) / 3) + rng.normal(0, 4, (64, 64))
                if kind == "square":
                    top, left = rng.integers(0, 48, 2)
                    image[top : top + 16, left : left + 16] = 10
                if not path.exists():
                    path.parent.mkdir(parents=True, exist_ok=True)
                    Image.fromarray(image.clip(0, 255).astype(np.uint8)).save(path)
