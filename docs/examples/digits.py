# Copyright (C) 2026 anomalib-fewshot contributors
# SPDX-License-Identifier: Apache-2.0

"""Create a controlled dataset offline: one of scikit-learn's digits is normal, all others are defects.

python docs/examples/digits.py datasets/digits
anomalib fewshot --config configs/benchmark/controlled_digits.yaml --root datasets/digits
"""

import sys
from pathlib import Path

from PIL import Image
from sklearn.datasets import load_digits

SIDE = 96  # pixels; the original images have 8
NUM_TRAIN, NUM_GOOD, NUM_OTHER = 32, 40, 5  # images of each class


def write(folder: Path, classes: tuple[int, ...] = (0, 1, 3)) -> None:
    """Write one category without masks per class. Its defects are five images of each other class.

    Args:
        folder (Path): Root folder of the categories.
        classes (tuple[int, ...]): Digits that are normal, one per category.
    """
    digits = load_digits()
    images = (digits.images * 255 / 16).round().astype("uint8")
    rows = {digit: [index for index, label in enumerate(digits.target) if label == digit] for digit in range(10)}
    for good in classes:
        parts = {"train/good": rows[good][:NUM_TRAIN], "test/good": rows[good][NUM_TRAIN : NUM_TRAIN + NUM_GOOD]}
        parts |= {f"test/digit_{other}": rows[other][:NUM_OTHER] for other in rows if other != good}
        for part, selected in parts.items():
            target = folder / f"digit_{good}" / part
            target.mkdir(parents=True, exist_ok=True)
            for row in selected:
                image = Image.fromarray(images[row]).resize((SIDE, SIDE), Image.Resampling.BICUBIC)
                image.convert("RGB").save(target / f"{row:04}.png")


if __name__ == "__main__":
    write(Path(sys.argv[1]))
