# Copyright (C) 2026 anomalib-fewshot contributors
# SPDX-License-Identifier: Apache-2.0

"""Images with an EXIF orientation: `inspect` applies it, and anomalib's commands refuse them."""

import json
import runpy
import shlex
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
from PIL import ExifTags, Image, ImageChops, ImageOps
from weave import HEIGHT, WIDTH, draw

from anomalib_fewshot import CoftAD, inspect
from anomalib_fewshot.data.validation.image import TRANSPOSITIONS, read_image_info, read_upright
from anomalib_fewshot.data.validation.image_check import check_images
from anomalib_fewshot.errors import ArgumentError
from anomalib_fewshot.upright import rotate_pixels

INVERSE = {2: 2, 3: 3, 4: 4, 5: 5, 6: 8, 7: 7, 8: 6}  # the orientation that undoes another one


def save_rotated(upright: Path, path: Path, orientation: int, **options: int) -> None:
    """Save rotated pixels with the EXIF orientation that restores the image."""
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    path.parent.mkdir(parents=True, exist_ok=True)
    with Image.open(upright) as image:
        pixels = image if orientation == 1 else image.transpose(TRANSPOSITIONS[INVERSE[orientation]])
        pixels.save(path, exif=exif, **options)


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_read_upright_agrees_with_pil(tmp_path: Path, orientation: int, suffix: str) -> None:
    draw(tmp_path / "upright.png", 0, hole=True)
    path = tmp_path / f"rotated.{suffix}"
    save_rotated(tmp_path / "upright.png", path, orientation)
    with Image.open(path) as file:
        expected = ImageOps.exif_transpose(file).convert("RGB")
    image = read_upright(path)
    assert image.size == (WIDTH, HEIGHT) == read_image_info(path, decode=False).upright().size
    assert ImageChops.difference(image, expected).getbbox() is None
    if suffix == "png":
        with Image.open(tmp_path / "upright.png") as upright:
            assert ImageChops.difference(image, upright).getbbox() is None


def test_new_images_are_scored_upright(
    trained: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    draw(tmp_path / "new/upright.png", 20, hole=True)
    for orientation in range(1, 9):
        save_rotated(tmp_path / "new/upright.png", tmp_path / f"new/{orientation}.png", orientation)
        save_rotated(tmp_path / "new/upright.png", tmp_path / f"new/{orientation}.jpg", orientation, quality=95)
    table = inspect(new="new", model=trained, strict=True).set_index("path")
    run = Path("results/inspect/v0")
    assert "orientation" not in capsys.readouterr().out
    assert not (run / "findings.csv").exists()
    for orientation in range(1, 9):
        assert table.score[f"{orientation}.png"] == table.score["upright.png"]
        assert table.score[f"{orientation}.jpg"] == pytest.approx(table.score["upright.png"], rel=0.03)
        for path in (f"overlays/{orientation}.jpg.jpg", f"page/thumbnails/{orientation}.png.jpg"):
            with Image.open(run / path) as image:
                assert image.size == (WIDTH, HEIGHT)
                assert image.getexif().get(ExifTags.Base.Orientation, 1) == 1
    entries = [json.loads(line) for line in (run / "scored.jsonl").read_text(encoding="utf-8").splitlines()]
    assert {(entry["width"], entry["height"]) for entry in entries} == {(WIDTH, HEIGHT)}


def test_training_reads_good_images_upright(
    small: Callable[[], CoftAD],
    part: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    del small
    monkeypatch.chdir(tmp_path)
    for orientation, path in zip((6, 8, 3, 5), sorted((part / "good").iterdir()), strict=True):
        save_rotated(path, tmp_path / "rotated" / path.name, orientation)
    expected = inspect(part / "good", part / "new", progress=False)
    table = inspect("rotated", part / "new", strict=True, progress=False)
    pd.testing.assert_frame_equal(table, expected, check_exact=False, atol=1e-5)


def test_shape_is_compared_upright(tmp_path: Path) -> None:
    draw(tmp_path / "good.png", 0)
    save_rotated(tmp_path / "good.png", tmp_path / "rotated.png", 6)
    assert check_images([tmp_path / "good.png"], [tmp_path / "rotated.png"], upright=True) == []
    with Image.open(tmp_path / "good.png") as image:
        image.rotate(90, expand=True).save(tmp_path / "portrait.png")
    (issue,) = check_images([tmp_path / "good.png"], [tmp_path / "portrait.png"], upright=True)
    assert f"{HEIGHT} x {WIDTH} pixels" in issue.message


def test_transparent_images_are_upright_too(tmp_path: Path) -> None:
    draw(tmp_path / "good.png", 0)
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    image = Image.new("RGBA", (HEIGHT, WIDTH), (200, 100, 50, 0))
    image.putpixel((0, 0), (0, 0, 0, 0))
    image.save(tmp_path / "new.png", exif=exif)
    issues = check_images([tmp_path / "good.png"], [tmp_path / "new.png"], decode=False, upright=True)
    assert [issue.severity for issue in issues] == ["warning"]


def test_command_in_the_message_converts_the_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "my photos"
    draw(tmp_path / "upright.png", 0, hole=True)
    for orientation in range(1, 9):
        save_rotated(tmp_path / "upright.png", folder / f"{orientation}.png", orientation)
    save_rotated(tmp_path / "upright.png", folder / "photo.jpg", 6)
    shutil.copy(tmp_path / "upright.png", folder / "plain.png")
    (folder / "broken.png").write_bytes(b"no image")
    before = (folder / "plain.png").read_bytes()
    message = next(str(issue) for issue in check_images(folder) if "orientation 6" in issue.message)
    command = shlex.split(message[message.index("python ") :])
    assert command[:2] == ["python", "-m"]
    monkeypatch.setattr(sys, "argv", command[2:])
    monkeypatch.delitem(sys.modules, command[2])  # or `runpy` warns
    runpy.run_module(command[2], run_name="__main__")
    assert [issue.path.name for issue in check_images(folder) if issue.severity == "error"] == ["broken.png"]
    assert (folder / "plain.png").read_bytes() == before
    with Image.open(tmp_path / "upright.png") as upright:
        for orientation in range(1, 9):
            with Image.open(folder / f"{orientation}.png") as image:
                assert ImageChops.difference(image, upright).getbbox() is None
    with Image.open(folder / "photo.jpg") as image:
        assert (image.format, image.size) == ("JPEG", (WIDTH, HEIGHT))
    assert rotate_pixels(folder) == 0
    with pytest.raises(ArgumentError, match="no_folder"):
        rotate_pixels(tmp_path / "no_folder")
