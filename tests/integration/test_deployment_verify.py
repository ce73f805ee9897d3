# Copyright (C) 2026 anomalib-fewshot contributors
# SPDX-License-Identifier: Apache-2.0

"""The example `verify.py` finds each kind of difference, and names the image."""

import hashlib
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from anomalib_fewshot import ImageStatistic

EXAMPLE = Path(__file__).parents[2] / "docs" / "examples" / "verify.py"


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a model, images and their recorded results."""
    folder = tmp_path_factory.mktemp("recorded")
    model = ImageStatistic(image_size=64)
    model.is_fitted.fill_(value=True)
    path = model.eval().to_onnx(folder)
    shutil.copytree(path.parent, folder / "model")
    (folder / "images").mkdir()
    rng = np.random.default_rng(0)
    for index in range(3):
        pixels = rng.integers(0, 256, (40 + index, 50, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / "images" / f"{index}.png")
    run = verify(folder, "--write", "--images", "images")
    assert run.returncode == 0, run.stderr
    assert "Recorded 3 images" in run.stdout
    return folder


def verify(folder: Path, *arguments: str) -> subprocess.CompletedProcess:
    command = [sys.executable, str(EXAMPLE), "model/model.onnx", "golden.json", *arguments]
    return subprocess.run(command, check=False, cwd=folder, capture_output=True, text=True)


def change_image(folder: Path) -> None:
    Image.new("RGB", (50, 41)).save(folder / "images" / "1.png")


def remove_image(folder: Path) -> None:
    (folder / "images" / "1.png").unlink()


def edit(name: str, change: Callable[[dict[str, Any]], Any]) -> Callable[[Path], None]:
    """Return a function that changes the content of a JSON file."""

    def apply(folder: Path) -> None:
        content = json.loads((folder / name).read_text(encoding="utf-8"))
        change(content)
        (folder / name).write_text(json.dumps(content), encoding="utf-8")

    return apply


def change_model(folder: Path) -> None:
    """Append an unknown field, which changes the bytes of the file and not the graph."""
    with (folder / "model" / "model.onnx").open("ab") as file:
        file.write(b"\xa2\x06\x01x")


def test_recorded_results_agree_in_another_folder(recorded: Path, tmp_path: Path) -> None:
    shutil.copytree(recorded, tmp_path / "copy")
    run = verify(tmp_path / "copy")
    assert (run.returncode, run.stdout) == (0, "No differences: 3 images agree within 0.001.\n"), run.stderr
    golden = json.loads((recorded / "golden.json").read_text(encoding="utf-8"))
    assert [row["image"] for row in golden["images"]] == ["images/0.png", "images/1.png", "images/2.png"]


@pytest.mark.parametrize(
    ("change", "messages"),
    [
        (change_image, ["another file than the recorded one: images/1.png"]),
        (remove_image, ["missing: images/1.png"]),
        (
            edit("golden.json", lambda golden: golden["images"][1].update(score=golden["images"][1]["score"] + 0.01)),
            ["The score is"],
        ),
        (edit("golden.json", lambda golden: golden["images"][1].update(verdict="review")), ["recorded review"]),
        (edit("model/metadata.json", lambda metadata: metadata.update(model="Other")), ["metadata is another file"]),
        (change_model, ["model is another file"]),
    ],
)
def test_each_difference_is_named(
    recorded: Path,
    tmp_path: Path,
    change: Callable[[Path], None],
    messages: list[str],
) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(recorded, folder)
    change(folder)
    run = verify(folder)
    assert run.returncode == 1, run.stderr
    *lines, summary = run.stdout.splitlines()
    assert len(lines) == len(messages)
    for line, message in zip(lines, messages, strict=True):
        assert message in line
        assert "images/1.png" in line or "model" in line
    assert summary.startswith("Differences: 1. Recorded with")


def test_tolerance(recorded: Path, tmp_path: Path) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(recorded, folder)
    edit("golden.json", lambda golden: golden["images"][0].update(score=golden["images"][0]["score"] + 0.01))(folder)
    assert verify(folder, "--tolerance", "0.02").returncode == 0
    assert verify(folder, "--tolerance", "0.005").returncode == 1


@pytest.mark.parametrize("arguments", [("--write",), ()])
def test_what_is_missing_is_named_in_one_line(recorded: Path, tmp_path: Path, arguments: tuple[str, ...]) -> None:
    shutil.copytree(recorded / "model", tmp_path / "model")
    run = verify(tmp_path, *arguments)
    assert run.returncode == 1
    (line,) = run.stderr.splitlines()
    assert "--images FOLDER" in line


def test_image_that_cannot_be_read_is_named(recorded: Path, tmp_path: Path) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(recorded, folder)
    (folder / "images" / "1.png").write_bytes(b"no image")
    run = verify(folder, "--write", "--images", "images")
    assert run.returncode == 1
    (line,) = run.stderr.splitlines()
    assert line.startswith("Nothing was recorded")
    assert line.endswith("images/1.png")
    golden = json.loads((folder / "golden.json").read_text(encoding="utf-8"))
    golden["images"][1]["sha256"] = hashlib.sha256(b"no image").hexdigest()
    (folder / "golden.json").write_text(json.dumps(golden), encoding="utf-8")
    found = verify(folder)  # such as with another version of Pillow
    assert found.returncode == 1
    assert found.stdout.startswith("The image cannot be scored")


@pytest.mark.parametrize("content", ["no JSON", "[]", '{"images": []}'])
def test_other_file_than_recorded_results(recorded: Path, tmp_path: Path, content: str) -> None:
    shutil.copytree(recorded, tmp_path / "copy")
    (tmp_path / "copy" / "golden.json").write_text(content, encoding="utf-8")
    run = verify(tmp_path / "copy")
    assert run.returncode == 1
    (line,) = run.stderr.splitlines()
    assert line.startswith("The file does not contain recorded results")


def test_results_that_cannot_be_written(recorded: Path, tmp_path: Path) -> None:
    shutil.copytree(recorded, tmp_path / "copy")
    (tmp_path / "copy" / "golden.json").unlink()
    (tmp_path / "copy" / "golden.json").mkdir()
    run = verify(tmp_path / "copy", "--write", "--images", "images")
    assert run.returncode == 1
    assert run.stderr == "The results cannot be written: Is a directory: golden.json\n"
