# Copyright (C) 2026 anomalib-fewshot contributors
# SPDX-License-Identifier: Apache-2.0

"""The picture, the page and the numbers."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml
from PIL import Image

from anomalib_fewshot.pipelines import compare_features
from anomalib_fewshot.pipelines.cli import FewShotFeatures

CONFIGS = Path(__file__).parents[3] / "configs"
SMALL = {"backbone": "resnet10t", "pre_trained": False}
COFT_AD = SMALL | {"image_size": 64}
METHODS = {
    "CoftAD, no fine-tuning": {"class_path": "CoftAD", "init_args": COFT_AD | {"num_steps": 0}},
    "CoftAD": {"class_path": "CoftAD", "init_args": COFT_AD | {"num_steps": 2}},
}


def source(root: Path) -> dict[str, Any]:
    return {"class_path": "MVTecFolder", "init_args": {"root": str(root), "category": "bolt"}}


def data_of(page: str) -> dict[str, Any]:
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.DOTALL)
    assert found is not None
    return json.loads(found[1])


def test_plot_page_and_numbers(mvtec_root: Path, tmp_path: Path) -> None:
    small = {"k_shot": 2, "num_images": 6, "projection": "pca", "accelerator": "cpu"}
    table = compare_features(METHODS, source(mvtec_root), tmp_path, **small)
    assert table.index.tolist() == list(METHODS)
    pd.testing.assert_frame_equal(pd.read_csv(tmp_path / "features.csv", index_col="method"), table)
    with Image.open(tmp_path / "features.png") as picture:
        assert len(np.unique(np.asarray(picture.convert("L")))) > 50  # something is drawn
    page = (tmp_path / "features.html").read_text(encoding="utf-8")
    data = data_of(page)
    assert [panel["name"] for panel in data["panels"]] == list(METHODS)
    kinds = [image["kind"] for image in data["images"]]
    assert kinds[:2] == ["support"] * 2
    assert kinds.count("good") == kinds.count("defect") == 2  # of 4 each every second, at most 3
    assert all(image["thumbnail"].startswith("data:image/jpeg;base64,") for image in data["images"])
    assert not re.findall(r"https?://(?!www\.w3\.org/2000/svg)", page)


@pytest.mark.slow
def test_command_takes_the_file(mvtec_root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    spec = {"methods": METHODS, "data": source(mvtec_root), "folder": str(tmp_path / "out"), "accelerator": "cpu"}
    (tmp_path / "features.yaml").write_text(yaml.safe_dump(spec | {"projection": "pca", "k_shot": 2}), encoding="utf-8")
    parser = FewShotFeatures.get_parser()
    FewShotFeatures().run(parser.parse_args(["--config", str(tmp_path / "features.yaml")]))
    assert "AUROC" in capsys.readouterr().out
    assert len(list((tmp_path / "out").iterdir())) == 3


def test_file_of_the_benchmarks_parses() -> None:
    arguments = FewShotFeatures.get_parser().parse_args(["--config", str(CONFIGS / "benchmark" / "features.yaml")])
    assert list(arguments.methods)[-1] == "UniAD"
    arguments.projection = "umap"
    with pytest.raises(SystemExit, match=r"`projection` must be one of \('tsne', 'pca'\), got 'umap'"):
        FewShotFeatures().run(arguments)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [({"pooling": "max"}, "`pooling` must be one of"), ({"num_images": 1}, "`num_images` must be at least 2")],
)
def test_wrong_argument(wrong: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        compare_features(METHODS, source(tmp_path), tmp_path, **wrong)
