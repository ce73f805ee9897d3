# Copyright (C) 2026 anomalib-fewshot contributors
# SPDX-License-Identifier: Apache-2.0

"""A datamodule whose pictures are drawn: the example needs no data of others."""

from pathlib import Path

import numpy as np
from anomalib.data import Folder
from PIL import Image


class Stripes(Folder):
    """Striped pictures, good or with a dark square. They are drawn into a folder at the first use.

    Args:
        root (str | Path): Folder to draw into. Defaults to ``"./datasets/stripes"``.
        num_images (int): Number of pictures of each kind. Defaults to ``8``.
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
        """Draw the pictures that are not there yet."""
        rng = np.random.default_rng(0)
        for kind in ("good", "test_good", "square"):
            for index in range(self.num_images):
                path = Path(self.root) / kind / f"{index:03}.png"
                picture = 120 + 60 * np.sin(np.arange(64) / 3) + rng.normal(0, 4, (64, 64))
                if kind == "square":
                    top, left = rng.integers(0, 48, 2)
                    picture[top : top + 16, left : left + 16] = 10
                if not path.exists():
                    path.parent.mkdir(parents=True, exist_ok=True)
                    Image.fromarray(picture.clip(0, 255).astype(np.uint8)).save(path)
