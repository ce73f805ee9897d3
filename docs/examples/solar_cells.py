# Copyright (C) 2026 anomalib-fewshot contributors
# SPDX-License-Identifier: Apache-2.0

"""Copy 4 good and 40 new solar cells to the folders ``good`` and ``new``. Ten of the new ones are defective.

python solar_cells.py

It requires the extra `elpv`.
"""

import shutil
from pathlib import Path

from anomalib_fewshot import ELPV, FewShot


def main() -> None:
    """Write the folders. The names of new pictures do not tell which are defective."""
    data = FewShot(ELPV(category="mono"), k_shot=4, seed=1)
    data.setup()
    test = data.test_data.samples
    intact = test.image_path[test.label_index == 0][:30]
    defective = test.image_path[test.label_index == 1][:10]
    for folder, paths in {"good": data.train_data.samples.image_path, "new": sorted([*intact, *defective])}.items():
        Path(folder).mkdir()
        for number, path in enumerate(paths):
            shutil.copy(path, Path(folder) / f"cell_{number:02}.png")


if __name__ == "__main__":
    main()
