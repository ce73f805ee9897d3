# Copyright (C) 2026 anomalib-fewshot contributors
# SPDX-License-Identifier: Apache-2.0

"""The picture, the page and the numbers."""

import io
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from PIL import Image
from test_embeddings import SMALL

from anomalib_fewshot.visualization import Embedded, compare_features, draw_one, project, separation, write_page
from anomalib_fewshot.visualization.cli import FewShotFeatures

CONFIGS = Path(__file__).parents[3] / "configs"
COFT_AD = SMALL | {"image_size": 64}
METHODS = {
    "CoftAD, no fine-tuning": {"class_path": "CoftAD", "init_args": COFT_AD | {"num_steps": 0}},
    "CoftAD": {"class_path": "CoftAD", "init_args": COFT_AD | {"num_steps": 2}},
}
BLOBS = torch.cat([torch.zeros(6, 5), torch.full((6, 5), 9.0)]) + torch.linspace(0, 1, 60).view(12, 5).sin()


def source(root: Path) -> dict[str, Any]:
    return {"class_path": "MVTecFolder", "init_args": {"root": str(root), "category": "bolt"}}


def data_of(page: str) -> dict[str, Any]:
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.DOTALL)
    assert found is not None
    return json.loads(found[1])


def test_picture_page_and_numbers(mvtec_root: Path, tmp_path: Path) -> None:
    small = {"k_shot": 2, "num_images": 6, "projection": "pca", "accelerator": "cpu"}
    table = compare_features(METHODS, source(mvtec_root), tmp_path, **small)
    assert table.index.tolist() == list(METHODS)
    pd.testing.assert_frame_equal(pd.read_csv(tmp_path / "features.csv", index_col="method"), table)
    with Image.open(tmp_path / "features.png") as picture:
        assert len(np.unique(np.asarray(picture.convert("L")))) > 50  # something is drawn
    page = (tmp_path / "features.html").read_text(encoding="utf-8")
    data = data_of(page)
    assert [panel["name"] for panel in data["panels"]] == list(METHODS)
    kinds = [picture["kind"] for picture in data["pictures"]]
    assert kinds[:2] == ["support"] * 2
    assert kinds.count("good") == kinds.count("defect") == 2  # of 4 each every second, at most 3
    assert all(picture["thumbnail"].startswith("data:image/jpeg;base64,") for picture in data["pictures"])
    assert not re.findall(r"https?://(?!www\.w3\.org/2000/svg)", page)


def test_small_picture_of_a_model() -> None:
    """It shows the vectors, and the same ones give the same bytes."""
    kinds = ["support"] * 2 + ["good"] * 4 + ["defect"] * 6
    bytes_ = [draw_one(Embedded(vectors, kinds, [""] * 12)) for vectors in (BLOBS, BLOBS, BLOBS.flip(0))]
    assert bytes_[0] == bytes_[1] != bytes_[2]
    with Image.open(io.BytesIO(bytes_[0])) as picture:
        assert (picture.format, picture.size) == ("JPEG", (360, 400))


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


def test_separation_by_a_slow_reference() -> None:
    generator = torch.Generator().manual_seed(0)
    vectors = torch.randn(9, 4, generator=generator)
    kinds = ["support"] * 2 + ["good"] * 3 + ["defect"] * 4
    center = [sum(float(vectors[i, d]) for i in range(2)) / 2 for d in range(4)]
    distance = [sum((float(vectors[i, d]) - center[d]) ** 2 for d in range(4)) ** 0.5 for i in range(9)]
    spread = (sum(d**2 for d in distance[2:5]) / 3) ** 0.5
    wins = [(good < bad) + 0.5 * (good == bad) for good in distance[2:5] for bad in distance[5:]]
    expected = {
        "spread": spread,
        "defects": (sum(d**2 for d in distance[5:]) / 4) ** 0.5 / spread,
        "AUROC": sum(wins) / len(wins),
    }
    assert separation(Embedded(vectors, kinds, [""] * 9)) == pytest.approx(expected)


def test_separation_does_not_depend_on_the_scale() -> None:
    vectors, kinds = torch.rand(9, 4), ["support"] * 2 + ["good"] * 3 + ["defect"] * 4
    one, two = (separation(Embedded(factor * vectors, kinds, [""] * 9)) for factor in (1, 1000))
    assert two == pytest.approx(one | {"spread": 1000 * one["spread"]}, rel=1e-4)


def test_separation_needs_images_of_each_kind() -> None:
    with pytest.raises(ValueError, match=r"got none of \['defect'\]"):
        separation(Embedded(torch.rand(2, 3), ["support", "good"], ["", ""]))


@pytest.mark.parametrize("projection", ["tsne", "pca"])
def test_projection_is_repeated_and_keeps_groups_apart(projection: str) -> None:
    points = project(BLOBS, projection)
    assert points.shape == (12, 2)
    np.testing.assert_array_equal(points, project(BLOBS, projection))
    own = np.linalg.norm(points[:, None] - points[None], axis=-1) + 1e9 * np.eye(12)
    assert {index // 6 for index in own[:6].argmin(1)} == {0}
    assert {index // 6 for index in own[6:].argmin(1)} == {1}


def test_pca_keeps_distances_of_points_on_a_plane() -> None:
    plane = torch.rand(8, 2, dtype=torch.double) @ torch.linalg.qr(torch.rand(5, 5, dtype=torch.double))[0][:2]
    points = project(plane, "pca")
    distances = np.linalg.norm(points[:, None] - points[None], axis=-1)
    np.testing.assert_allclose(distances, torch.cdist(plane, plane).numpy(), atol=1e-6)


@pytest.mark.parametrize("projection", ["tsne", "pca"])
def test_vectors_of_length_one(projection: str) -> None:
    assert project(torch.arange(6.0)[:, None], projection).shape == (6, 2)


def test_wrong_projection() -> None:
    with pytest.raises(ValueError, match="`projection` must be one of .*, got 'umap'"):
        project(BLOBS, "umap")
    with pytest.raises(ValueError, match="`vectors` must be four or more, got 3"):
        project(BLOBS[:3])


def test_names_cannot_end_the_script(tmp_path: Path) -> None:
    path = tmp_path / "a&b.png"
    Image.new("RGB", (8, 8)).save(path)
    embedded = {"</script><b>": Embedded(BLOBS[:4], ["support", "good", "defect", "good"], [str(path)] * 4)}
    table = pd.DataFrame({"</script><b>": {"AUROC": 1.0}}).T
    write_page(embedded, table, tmp_path / "page.html", "pca")
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert page.count("</script>") == 2
    assert "<b>" not in page
    assert data_of(page)["panels"][0]["name"] == "</script><b>"
