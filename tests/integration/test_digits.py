# Copyright (C) 2026 anomalib-fewshot contributors
# SPDX-License-Identifier: Apache-2.0

"""The controlled digits dataset: its files, and its use in a data module."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from anomalib_fewshot import FewShot, MVTecFolder

SCRIPT = Path(__file__).parents[2] / "docs/examples/digits.py"


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder that the example writes for one class."""
    spec = importlib.util.spec_from_file_location("digits", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    folder = tmp_path_factory.mktemp("digits")
    module.write(folder, classes=(3,))
    return folder


def test_each_other_class_is_a_kind_of_defect(root: Path) -> None:
    kinds = {path.name: len(list(path.iterdir())) for path in (root / "digit_3/test").iterdir()}
    assert kinds == {"good": 40} | {f"digit_{other}": 5 for other in range(10) if other != 3}
    assert len(list((root / "digit_3/train/good").iterdir())) == 32


def test_no_image_is_in_training_and_test(root: Path) -> None:
    names = [{path.name for path in (root / f"digit_3/{split}/good").iterdir()} for split in ("train", "test")]
    assert names[0].isdisjoint(names[1])


def test_images_are_large_with_dark_borders(root: Path) -> None:
    with Image.open(next((root / "digit_3/train/good").iterdir())) as image:
        assert (image.size, image.mode) == ((96, 96), "RGB")
        pixels = np.asarray(image)
    assert pixels[:, :6].mean() < pixels.mean() / 4


def test_data_module_reads_it(root: Path) -> None:
    data = FewShot(MVTecFolder(root, "digit_3"), k_shot=4)
    data.setup()
    assert (len(data.train_data), len(data.test_data)) == (4, 85)
