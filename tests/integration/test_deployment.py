# Copyright (C) 2026 anomalib-fewshot contributors
# SPDX-License-Identifier: Apache-2.0

"""The deployment example returns the results of `predict` without torch, anomalib and this package."""

import json
import resource
import runpy
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from anomalib.engine import Engine
from PIL import ExifTags, Image
from small_models import SMALL

from anomalib_fewshot import CoftAD, FewShot, ImageStatistic, MVTecFolder

DOCS = Path(__file__).parents[2] / "docs"
EXAMPLE = DOCS / "examples" / "score_images.py"
EXAMPLE_AS_MAIN = f"import runpy; runpy.run_path({str(EXAMPLE)!r}, run_name='__main__')"
NEEDED = ("numpy*", "PIL", "pillow*", "onnxruntime*")


def engine(folder: Path) -> Engine:
    return Engine(default_root_dir=folder, logger=False, enable_progress_bar=False, accelerator="cpu", devices=1)


@pytest.fixture(scope="module", params=[pytest.param(1, marks=pytest.mark.slow), 4])
def fitted(request: pytest.FixtureRequest, mvtec_root: Path, tmp_path_factory: pytest.TempPathFactory) -> CoftAD:
    model = CoftAD(**SMALL["CoftAD"], visualizer=False)
    datamodule = FewShot(MVTecFolder(mvtec_root, "bolt", num_workers=0), k_shot=request.param)
    engine(tmp_path_factory.mktemp("fit")).fit(model, datamodule=datamodule)
    return model


@pytest.fixture(scope="module")
def onnx_file(fitted: CoftAD, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Export once: each export takes seconds."""
    return fitted.eval().to_onnx(tmp_path_factory.mktemp("onnx"))


@pytest.fixture(scope="module")
def packages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with only onnxruntime, numpy and Pillow."""
    folder = tmp_path_factory.mktemp("packages")
    installed = Path(np.__file__).parents[1]
    for pattern in NEEDED:
        for path in installed.glob(pattern):
            (folder / path.name).symlink_to(path)
    return folder


def run(packages: Path, code: str, *arguments: str, cwd: Path) -> str:
    """Run Python with the given packages only."""
    start = f"import sys; sys.path.append({str(packages)!r}); {code}"
    command = [sys.executable, "-I", "-S", "-c", start, *arguments]
    return subprocess.run(command, check=True, cwd=cwd, capture_output=True, text=True).stdout


@pytest.mark.parametrize("name", ["torch", "anomalib", "anomalib_fewshot", "lightning", "cv2", "scipy"])
def test_other_packages_are_missing(packages: Path, tmp_path: Path, name: str) -> None:
    with pytest.raises(subprocess.CalledProcessError) as error:
        run(packages, f"import {name}", cwd=tmp_path)
    assert f"No module named '{name}'" in error.value.stderr


def test_example_agrees_with_predict(
    fitted: CoftAD,
    onnx_file: Path,
    packages: Path,
    mvtec_root: Path,
    tmp_path: Path,
) -> None:
    images = sorted(map(str, mvtec_root.glob("bolt/test/*/*.png")))
    lines = run(packages, EXAMPLE_AS_MAIN, str(onnx_file), *images, cwd=tmp_path).splitlines()
    found = {line["path"]: line for line in map(json.loads, lines)}
    batches = engine(tmp_path / "predict").predict(
        fitted,
        data_path=mvtec_root / "bolt" / "test",
        return_predictions=True,
    )
    items = [item for batch in batches for item in batch]
    assert len(items) == len(found) == 8
    for item in items:
        line = found[item.image_path]
        assert line["score"] == pytest.approx(float(item.pred_score), abs=1e-4)
        verdict, *p_value = item.explanation.split(", p = ")
        assert line["verdict"] == verdict
        assert line["p_value"] == (pytest.approx(float(p_value[0]), abs=5e-3) if p_value else None)
    wanted = {"good", "review"} | ({"defect"} if len(fitted.model.ranked_score.out_of_fold_scores) > 0 else set())
    assert {line["verdict"] for line in found.values()} <= wanted


def test_heat_map_is_red_above_the_threshold() -> None:
    heat_map = runpy.run_path(str(EXAMPLE))["heat_map"]
    anomaly_map = np.full((4, 4), 0.4)
    anomaly_map[:, 3] = 1.0
    image = np.full((1, 3, 8, 16), 0.5, dtype=np.float32)
    shown = np.asarray(heat_map(image, anomaly_map))
    assert shown.shape == (8, 16, 3)
    assert (shown[:, 0] == 63).all()  # half as bright, without red
    assert (shown[:, -1, 0] == 191).all()
    assert (shown[:, -1, 1:] == 63).all()


@pytest.mark.parametrize(
    ("settings", "score", "expected"),
    [
        ({}, 0.2, ("defect", None)),  # the model's label, of validation images
        ({"scheme": "self-views", "defect_score": None}, 0.9, ("review", None)),
        ({"scheme": "training"}, 0.9, ("defect", None)),
        ({"scheme": "jackknife+"}, 0.5, ("review", 2 / 3)),  # not above the threshold
        ({"scheme": "jackknife+"}, 0.9, ("defect", 1 / 3)),
        ({"scheme": "jackknife+"}, 0.1, ("good", 1.0)),
    ],
)
def test_verdict(settings: dict[str, Any], score: float, expected: tuple[str, float | None]) -> None:
    p_values = [{"score_up_to": 0.3, "p": 1.0}, {"score_up_to": 0.5, "p": 2 / 3}]
    values = {"review_score": 0.3, "defect_score": 0.5, "num_normal": 2, "p_values": p_values}
    verdict_and_p_value = runpy.run_path(str(EXAMPLE))["verdict_and_p_value"]
    assert verdict_and_p_value(score, label=True, settings=values | settings if settings else {}) == expected


def test_example_refuses_an_image_of_another_size(
    packages: Path,
    mvtec_root: Path,
    tmp_path: Path,
) -> None:
    """For a graph with a fixed input size, the error names the image in one line."""
    model = ImageStatistic(image_size=64)
    model.is_fitted.fill_(value=True)
    path = model.eval().to_onnx(tmp_path, input_size=(64, 64))
    right = str(min(mvtec_root.glob("bolt/test/good/*.png")))
    Image.new("RGB", (80, 48)).save(tmp_path / "wrong.png")
    with pytest.raises(subprocess.CalledProcessError) as error:
        run(packages, EXAMPLE_AS_MAIN, str(path), right, str(tmp_path / "wrong.png"), cwd=tmp_path)
    assert json.loads(error.value.stdout)["path"] == right
    (line,) = error.value.stderr.splitlines()
    for part in ("wrong.png", "80 x 48", "64 x 64", "--input_size"):
        assert part in line


def test_example_reads_photographs_upright(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    Image.new("RGB", (80, 48)).save(tmp_path / "photo.jpg", exif=exif)
    assert runpy.run_path(str(EXAMPLE))["read_image"](tmp_path / "photo.jpg").shape == (1, 3, 80, 48)


@pytest.mark.parametrize("fitted", [4], indirect=True)
def test_two_processes_agree(onnx_file: Path, packages: Path, mvtec_root: Path, tmp_path: Path) -> None:
    images = sorted(map(str, mvtec_root.glob("bolt/test/*/*.png")))
    with ThreadPoolExecutor(2) as pool:
        command = partial(run, packages, EXAMPLE_AS_MAIN, str(onnx_file), *images, cwd=tmp_path)
        one, two = (one_run.result() for one_run in [pool.submit(command) for _ in range(2)])
    assert one == two


def test_batch_of_32_agrees_with_single_images(fitted: CoftAD) -> None:
    images = torch.rand(32, 3, 80, 96, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        together = fitted.eval()(images)
        alone = [fitted(image[None]) for image in images]
    for name in ("pred_score", "anomaly_map"):
        parts = torch.cat([getattr(found, name) for found in alone])
        torch.testing.assert_close(getattr(together, name).view_as(parts), parts, rtol=0, atol=1e-4)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("runtime", ["torch", "onnx"])
def test_memory_is_constant_over_10000_images(fitted: CoftAD, onnx_file: Path, runtime: str) -> None:
    rng = np.random.default_rng(0)
    images = [rng.random((1, 3, *size), dtype=np.float32) for size in ((64, 64), (96, 80), (51, 117), (240, 320))]
    if runtime == "torch":
        infer = torch.no_grad()(lambda image: fitted.eval()(torch.from_numpy(image)))
    else:
        session = onnxruntime.InferenceSession(onnx_file)
        infer = partial(_run_session, session)
    used = []
    for index in range(10_001):
        if index in {0, 1_000, 5_000, 10_000}:
            used.append(_resident_mib())
        infer(images[index % len(images)])
    print(f"{runtime}: MiB after 0, 1000, 5000 and 10000 images: {used}")
    assert used[-1] - used[1] < 10


def _run_session(session: onnxruntime.InferenceSession, image: np.ndarray) -> None:
    session.run(None, {"input": image})


def _resident_mib() -> int:
    return int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1]) * resource.getpagesize() // 2**20
