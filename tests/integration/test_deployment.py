# Copyright (C) 2026 anomalib-fewshot contributors
# SPDX-License-Identifier: Apache-2.0

"""The example of a deployment says what `predict` says, without torch, anomalib and this package."""

import json
import runpy
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from anomalib.engine import Engine
from test_contract import SMALL

from anomalib_fewshot import CoftAD, FewShot, MVTecFolder

DOCS = Path(__file__).parents[2] / "docs"
EXAMPLE = DOCS / "examples" / "score_pictures.py"
NEEDED = ("numpy*", "PIL", "pillow*", "onnxruntime*")


def engine(folder: Path) -> Engine:
    return Engine(default_root_dir=folder, logger=False, enable_progress_bar=False, accelerator="cpu", devices=1)


@pytest.fixture(scope="module", params=[1, 4])
def fitted(request: pytest.FixtureRequest, mvtec_root: Path, tmp_path_factory: pytest.TempPathFactory) -> CoftAD:
    model = CoftAD(**SMALL["CoftAD"], visualizer=False)
    datamodule = FewShot(MVTecFolder(mvtec_root, "bolt", num_workers=0), k_shot=request.param)
    engine(tmp_path_factory.mktemp("fit")).fit(model, datamodule=datamodule)
    return model


@pytest.fixture(scope="module")
def packages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder of onnxruntime, numpy and Pillow alone."""
    folder = tmp_path_factory.mktemp("packages")
    installed = Path(np.__file__).parents[1]
    for pattern in NEEDED:
        for path in installed.glob(pattern):
            (folder / path.name).symlink_to(path)
    return folder


def run(packages: Path, code: str, *arguments: str, cwd: Path) -> str:
    """Run Python without site-packages, but for some."""
    start = f"import sys; sys.path.append({str(packages)!r}); {code}"
    command = [sys.executable, "-I", "-S", "-c", start, *arguments]
    return subprocess.run(command, check=True, cwd=cwd, capture_output=True, text=True).stdout


@pytest.mark.parametrize("name", ["torch", "anomalib", "anomalib_fewshot", "lightning", "cv2", "scipy"])
def test_nothing_else_is_there(packages: Path, tmp_path: Path, name: str) -> None:
    with pytest.raises(subprocess.CalledProcessError) as error:
        run(packages, f"import {name}", cwd=tmp_path)
    assert f"No module named '{name}'" in error.value.stderr


def test_example_says_what_predict_says(fitted: CoftAD, packages: Path, mvtec_root: Path, tmp_path: Path) -> None:
    path = fitted.eval().to_onnx(tmp_path)
    pictures = sorted(map(str, mvtec_root.glob("bolt/test/*/*.png")))
    start = f"import runpy; sys.argv[:1] = [{str(EXAMPLE)!r}]; runpy.run_path({str(EXAMPLE)!r}, run_name='__main__')"
    lines = run(packages, start, str(path), *pictures, cwd=tmp_path).splitlines()
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
    wanted = {"good", "look"} | ({"defect"} if len(fitted.model.held_out) > 0 else set())
    assert {line["verdict"] for line in found.values()} <= wanted


def test_heat_map_is_red_above_the_threshold() -> None:
    heat_map = runpy.run_path(str(EXAMPLE))["heat_map"]
    anomaly_map = np.full((4, 4), 0.4)
    anomaly_map[:, 3] = 1.0
    picture = np.full((1, 3, 8, 16), 0.5, dtype=np.float32)
    shown = np.asarray(heat_map(picture, anomaly_map))
    assert shown.shape == (8, 16, 3)
    assert (shown[:, 0] == 63).all()  # half as bright, without red
    assert (shown[:, -1, 0] == 191).all()
    assert (shown[:, -1, 1:] == 63).all()


@pytest.mark.parametrize(
    ("rules", "score", "expected"),
    [
        ({}, 0.2, ("defect", None)),  # the model's label, of validation images
        ({"rule": "views"}, 0.9, ("look", None)),
        ({"rule": "seen"}, 0.9, ("defect", None)),
        ({"rule": "held-out"}, 0.5, ("look", 2 / 3)),  # not above the line
        ({"rule": "held-out"}, 0.9, ("defect", 1 / 3)),
        ({"rule": "held-out"}, 0.1, ("good", 1.0)),
    ],
)
def test_verdict(rules: dict[str, Any], score: float, expected: tuple[str, float | None]) -> None:
    levels = [{"score_up_to": 0.3, "p": 1.0}, {"score_up_to": 0.5, "p": 2 / 3}]
    values = {"look_score": 0.3, "defect_score": 0.5, "num_normal": 2, "p_values": levels}
    judge = runpy.run_path(str(EXAMPLE))["judge"]
    assert judge(score, label=True, rules=values | rules if rules else {}) == expected
