# Copyright (C) 2026 anomalib-fewshot contributors
# SPDX-License-Identifier: Apache-2.0

"""Copy 4 good and 40 new solar cells to the folders ``good`` and ``new``. Ten of the new ones are defective.

python solar_cells.py

It requires the extra `elpv`. The file ``labels.csv`` lists which new pictures are good and which are bad.
"""

import shutil
from pathlib import Path
from random import Random

from anomalib_fewshot import ELPV, FewShot


def main() -> None:
    """Write the folders and the labels. New pictures are selected and numbered in random order."""
    data = FewShot(ELPV(category="mono"), k_shot=4, seed=1)
    data.setup()
    test = data.test_data.samples
    random = Random(0)  # noqa: S311
    intact = random.sample(sorted(test.image_path[test.label_index == 0]), 30)
    defective = random.sample(sorted(test.image_path[test.label_index == 1]), 10)
    new = [*intact, *defective]
    random.shuffle(new)
    for folder, paths in {"good": data.train_data.samples.image_path, "new": new}.items():
        Path(folder).mkdir()
        for number, path in enumerate(paths):
            shutil.copy(path, Path(folder) / f"cell_{number:02}.png")
    lines = ["path,label"]
    for number, path in enumerate(new):
        lines.append(f"cell_{number:02}.png,{'bad' if path in defective else 'good'}")
    Path("labels.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
