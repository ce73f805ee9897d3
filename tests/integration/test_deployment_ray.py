# Copyright (C) 2026 anomalib-fewshot contributors
# SPDX-License-Identifier: Apache-2.0

"""The example for Ray returns the rows of `score_images.py`, and a row with an error for a broken image."""

import csv
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from anomalib_fewshot import CoftAD, FewShot, ImageStatistic, MVTecFolder

EXAMPLES = Path(__file__).parents[2] / "docs" / "examples"


def run(script: str, *arguments: str | Path) -> subprocess.CompletedProcess:
    command = [sys.executable, str(EXAMPLES / script), *map(str, arguments)]
    return subprocess.run(command, check=False, capture_output=True, text=True, timeout=300)


def read_table(path: Path) -> dict[str, dict[str, str]]:
    with path.open(encoding="utf-8") as file:
        return {Path(row["path"]).name: row for row in csv.DictReader(file)}


@pytest.fixture(scope="module")
def onnx_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    model = ImageStatistic(image_size=64)
    model.is_fitted.fill_(value=True)
    return model.eval().to_onnx(tmp_path_factory.mktemp("onnx"))


@pytest.fixture(scope="module")
def calibrated_file(mvtec_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return an export with verdicts and p-values."""
    from anomalib.engine import Engine
    from small_models import SMALL

    folder = tmp_path_factory.mktemp("calibrated")
    model = CoftAD(**SMALL["CoftAD"], visualizer=False)
    engine = Engine(default_root_dir=folder, logger=False, enable_progress_bar=False, accelerator="cpu", devices=1)
    engine.fit(model, datamodule=FewShot(MVTecFolder(mvtec_root, "bolt", num_workers=0), k_shot=4))
    return model.eval().to_onnx(folder)


def test_rows_equal_those_of_the_script(calibrated_file: Path, mvtec_root: Path, tmp_path: Path) -> None:
    """100 images are two tasks, and the size alternates within them."""
    pytest.importorskip("ray", reason="needs Ray: pip install ray")
    sources = sorted(mvtec_root.glob("bolt/test/*/*.png"))
    folder = tmp_path / "images"
    folder.mkdir()
    for index in range(100):
        image = Image.open(sources[index % len(sources)])
        image.resize((64 + index // 8 % 2, 64)).save(folder / f"{index:03}.png")
    (folder / "050.png").write_bytes(b"no image")
    (folder / "051.png").write_bytes((folder / "052.png").read_bytes()[:200])
    arguments = [calibrated_file, folder, tmp_path / "ray.csv", "--workers", "2", "--batch", "4"]
    found_run = run("score_with_ray.py", *arguments)
    assert found_run.returncode == 1, found_run.stderr
    assert "Scored 98 of 100 images" in found_run.stdout
    assert run("score_images.py", calibrated_file, folder, "--csv", tmp_path / "single.csv").returncode == 1
    found, expected = read_table(tmp_path / "ray.csv"), read_table(tmp_path / "single.csv")
    assert list(found) == [f"{index:03}.png" for index in range(100)]
    assert {name for name, row in found.items() if row["error"]} == {"050.png", "051.png"}
    assert found["050.png"]["verdict"] == found["050.png"]["score"] == ""
    assert len(expected) == 98
    for name, row in expected.items():
        assert float(found[name]["score"]) == pytest.approx(float(row["score"]), abs=1e-4)
        assert found[name]["verdict"] == row["verdict"]
        assert found[name]["p_value"] == row["p_value"]
    assert len({row["verdict"] for row in expected.values()}) > 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("missing.onnx", "images", "scores.csv"), "does not exist. Copy the folder of the export"),
        (("MODEL", "missing", "scores.csv"), "The folder does not exist"),
        (("MODEL", "images", "missing/scores.csv"), "The table cannot be written: No such file or directory"),
        (("MODEL", "images", "scores.csv", "--workers", "0"), "must be at least 1"),
    ],
)
def test_wrong_arguments_are_explained(
    onnx_file: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: tuple[str, ...],
    message: str,
) -> None:
    pytest.importorskip("ray", reason="needs Ray: pip install ray")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "images").mkdir()
    Image.new("RGB", (64, 64)).save(tmp_path / "images" / "1.png")
    found = run("score_with_ray.py", *[onnx_file if value == "MODEL" else value for value in arguments])
    assert found.returncode != 0
    assert message in found.stderr.splitlines()[-1]


def test_throughput_table(onnx_file: Path, tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "1.png")
    Image.new("RGB", (32, 64)).save(tmp_path / "2.png")  # another size is left out
    (tmp_path / "3.png").write_bytes(b"no image")
    options = ["--batches", "1", "2", "--threads", "1", "2", "--count", "2", "--repeat", "2"]
    found = run("throughput.py", onnx_file, tmp_path, *options)
    assert found.returncode == 0, found.stderr
    lines = found.stdout.splitlines()
    assert lines[0].startswith("Images of 64 x 64 pixels. 1.00 means ")
    assert "| Runtime | threads | batch 1 | batch 2 |" in lines
    (first,) = [line for line in lines if line.startswith("| ONNX Runtime | 1 |")]
    assert first.split("|")[3].strip() == "1.00"
    assert "3.png" in found.stderr
