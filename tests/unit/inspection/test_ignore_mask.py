# Copyright (C) 2026 anomalib-fewshot contributors
# SPDX-License-Identifier: Apache-2.0

"""The mask for a region to ignore."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from weave import HEIGHT, WIDTH, draw

from anomalib_fewshot import inspect
from anomalib_fewshot.inspection.ignore_mask import IgnoreMask


def mask(path: Path, rows: slice = slice(16, 48), columns: slice = slice(26, 58)) -> Path:
    pixels = np.zeros((HEIGHT, WIDTH), dtype=np.uint8)
    pixels[rows, columns] = 255
    Image.fromarray(pixels).save(path)
    return path


def test_only_the_region_is_grayed_out(tmp_path: Path) -> None:
    ignored = IgnoreMask(mask(tmp_path / "mask.png"))
    image = torch.rand(3, HEIGHT, WIDTH)
    masked = ignored.apply(image)
    assert masked[:, 16:48, 26:58].eq(0.5).all()
    masked[:, 16:48, 26:58] = image[:, 16:48, 26:58]
    assert torch.equal(masked, image)
    heat = np.ones((HEIGHT // 2, WIDTH // 2))
    assert ignored.clear(heat).sum() == heat.size - 16 * 16


def test_resizing_keeps_single_pixels(tmp_path: Path) -> None:
    ignored = IgnoreMask(mask(tmp_path / "mask.png", slice(17, 18), slice(33, 34)))
    assert ignored.resized((8, 8)).sum() == 1
    assert ignored.resized((HEIGHT, WIDTH)).sum() == 1


@pytest.mark.parametrize(("value", "color"), [(0, "black"), (255, "white")])
def test_errors(tmp_path: Path, value: int, color: str) -> None:
    path = tmp_path / "mask.png"
    Image.new("L", (8, 8), value).save(path)
    with pytest.raises(ValueError, match=f"`ignore` must .*, which is all {color}"):
        IgnoreMask(path)
    path.write_bytes(b"no image")
    with pytest.raises(ValueError, match="`ignore` must be a readable mask"):
        IgnoreMask(path)


@pytest.mark.usefixtures("small")
def test_ignored_region_does_not_change_the_score(part: Path, tmp_path: Path) -> None:
    draw(tmp_path / "new" / "good.png", 20)
    draw(tmp_path / "new" / "hole.png", 20, hole=True)  # identical outside of the hole
    path = mask(tmp_path / "mask.png")
    table = inspect(part / "good", tmp_path / "new", out=tmp_path, ignore=path, progress=False)
    assert table.score[0] == table.score[1]
    assert table.verdict[0] != "defect"
    path.unlink()
    again = inspect(new=tmp_path / "new", model=tmp_path / "v0", out=tmp_path, progress=False)
    assert again.equals(table)  # the run has stored the mask
    shutil.rmtree(tmp_path / "v1")
    with pytest.raises(ValueError, match="`ignore` must be omitted with `model`"):
        inspect(new=tmp_path / "new", model=tmp_path / "v0", ignore=mask(path), progress=False)
