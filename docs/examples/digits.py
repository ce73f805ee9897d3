# Copyright (C) 2026 anomalib-fewshot contributors
# SPDX-License-Identifier: Apache-2.0

"""Write a controlled task that needs no network: of scikit-learn's digits one is good, all others are defects.

python docs/examples/digits.py datasets/digits
anomalib fewshot --config configs/benchmark/controlled_digits.yaml --root datasets/digits
"""

import sys
from pathlib import Path

from PIL import Image
from sklearn.datasets import load_digits

SIDE = 96  # pixels; the digits have 8
NUM_TRAIN, NUM_GOOD, NUM_OTHER = 32, 40, 5  # of each class


def write(folder: Path, classes: tuple[int, ...] = (0, 1, 3)) -> None:
    """Write a category for each class, without masks. Five images of each other class are its defects.

    Args:
        folder (Path): Root of the categories.
        classes (tuple[int, ...]): Digits that are good, each in its turn.
    """
    digits = load_digits()
    images = (digits.images * 255 / 16).round().astype("uint8")
    rows = {digit: [index for index, label in enumerate(digits.target) if label == digit] for digit in range(10)}
    for good in classes:
        parts = {"train/good": rows[good][:NUM_TRAIN], "test/good": rows[good][NUM_TRAIN : NUM_TRAIN + NUM_GOOD]}
        parts |= {f"test/digit_{other}": rows[other][:NUM_OTHER] for other in rows if other != good}
        for part, chosen in parts.items():
            there = folder / f"digit_{good}" / part
            there.mkdir(parents=True, exist_ok=True)
            for row in chosen:
                picture = Image.fromarray(images[row]).resize((SIDE, SIDE), Image.Resampling.BICUBIC)
                picture.convert("RGB").save(there / f"{row:04}.png")


if __name__ == "__main__":
    write(Path(sys.argv[1]))
