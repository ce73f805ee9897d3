# Copyright (C) 2026 anomalib-fewshot contributors
# SPDX-License-Identifier: Apache-2.0

"""Compare the automatic image size with a square on elongated images, cut from folders in MVTec AD's layout with masks.

python image_shape.py CATEGORY [CATEGORY ...] [--k_shot 4] [--seeds 0 1]

A category is a folder, such as `datasets/MVTecAD/bottle`. From each image, a strip of each aspect ratio is cut: through
the middle of the defect, or at a random position.
"""

import argparse
import logging
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pandas as pd
from anomalib.engine import Engine
from PIL import Image

from anomalib_fewshot import CoftAD, FewShot, MVTecFolder

RATIOS = (0.25, 0.5, 2.0, 4.0)  # height / width


def cut_category(source: Path, target: Path, ratio: float) -> None:
    """Write strips of all images and masks of a category."""
    rng = np.random.default_rng(0)
    for path in sorted([*source.glob("train/*/*.png"), *source.glob("test/*/*.png")]):
        image = Image.open(path)
        mask_path = source / "ground_truth" / path.parent.name / f"{path.stem}_mask.png"
        mask = Image.open(mask_path).convert("L") if mask_path.is_file() else None
        width, height = min(image.width, image.height / ratio), min(image.height, image.width * ratio)
        free = np.array([image.width - width, image.height - height])
        corner = rng.uniform(0, free)
        if mask is not None:
            rows, columns = np.nonzero(np.asarray(mask))
            corner = np.clip([np.median(columns) - width / 2, np.median(rows) - height / 2], 0, free)
        left, top = np.round(corner).astype(int).tolist()
        box = (left, top, left + round(width), top + round(height))
        for picture, file in ((image, path), (mask, mask_path)):
            if picture is not None:
                output = target / file.relative_to(source)
                output.parent.mkdir(parents=True, exist_ok=True)
                picture.crop(box).save(output)


def measure(category: Path, image_size: int | str, k_shot: int, seed: int) -> dict:
    """Return the metrics of a run."""
    model = CoftAD(image_size=image_size, visualizer=False)
    datamodule = FewShot(MVTecFolder(category.parent, category.name, num_workers=0), k_shot=k_shot, seed=seed)
    with TemporaryDirectory() as folder:
        engine = Engine(default_root_dir=folder, logger=False, enable_progress_bar=False, enable_model_summary=False)
        engine.fit(model, datamodule=datamodule)
        (metrics,) = engine.test(model, datamodule=datamodule, verbose=False)
    return metrics | {"size": "{} x {}".format(*model.model.image_size)}


def main() -> None:
    """Print the mean over the support sets."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("categories", nargs="+", type=Path)
    parser.add_argument("--k_shot", type=int, default=4)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1])
    parser.add_argument("--results", type=Path, default=Path("image_shape.csv"))
    arguments = parser.parse_args()
    logging.disable(logging.WARNING)
    rows = []
    for category in arguments.categories:
        for ratio in RATIOS:
            with TemporaryDirectory() as folder:
                strips = Path(folder) / category.name
                cut_category(category, strips, ratio)
                for seed in arguments.seeds:
                    for image_size in ("auto", 320):
                        row = {"set": category.name, "ratio": ratio, "seed": seed, "image_size": image_size}
                        rows.append(row | measure(strips, image_size, arguments.k_shot, seed))
                        pd.DataFrame(rows).to_csv(arguments.results, index=False)
    table = pd.DataFrame(rows)
    values = [name for name in ("image_AUROC", "pixel_AUROC") if name in table]
    print(table.pivot_table(index=["set", "ratio"], columns="image_size", values=values).round(3).to_string())


if __name__ == "__main__":
    main()
