# Copyright (C) 2026 anomalib-fewshot contributors
# SPDX-License-Identifier: Apache-2.0

"""Projections, plots and pages of embeddings."""

import io
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from anomalib_fewshot.visualization import ImageEmbeddings, draw_one, project, separation, write_page

BLOBS = torch.cat([torch.zeros(6, 5), torch.full((6, 5), 9.0)]) + torch.linspace(0, 1, 60).view(12, 5).sin()


def data_of(page: str) -> dict[str, Any]:
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.DOTALL)
    assert found is not None
    return json.loads(found[1])


def test_small_plot_of_one_model() -> None:
    """The plot depends on the vectors, and equal vectors give equal bytes."""
    kinds = ["support"] * 2 + ["good"] * 4 + ["defect"] * 6
    bytes_ = [draw_one(ImageEmbeddings(vectors, kinds, [""] * 12)) for vectors in (BLOBS, BLOBS, BLOBS.flip(0))]
    assert bytes_[0] == bytes_[1] != bytes_[2]
    with Image.open(io.BytesIO(bytes_[0])) as image:
        assert (image.format, image.size) == ("JPEG", (360, 400))


def test_separation_agrees_with_a_loop() -> None:
    generator = torch.Generator().manual_seed(0)
    vectors = torch.randn(9, 4, generator=generator)
    kinds = ["support"] * 2 + ["good"] * 3 + ["defect"] * 4
    center = [sum(float(vectors[i, d]) for i in range(2)) / 2 for d in range(4)]
    distance = [sum((float(vectors[i, d]) - center[d]) ** 2 for d in range(4)) ** 0.5 for i in range(9)]
    std = (sum(d**2 for d in distance[2:5]) / 3) ** 0.5
    wins = [(good < bad) + 0.5 * (good == bad) for good in distance[2:5] for bad in distance[5:]]
    expected = {
        "std": std,
        "defects": (sum(d**2 for d in distance[5:]) / 4) ** 0.5 / std,
        "AUROC": sum(wins) / len(wins),
    }
    assert separation(ImageEmbeddings(vectors, kinds, [""] * 9)) == pytest.approx(expected)


def test_separation_does_not_depend_on_the_scale() -> None:
    vectors, kinds = torch.rand(9, 4), ["support"] * 2 + ["good"] * 3 + ["defect"] * 4
    one, two = (separation(ImageEmbeddings(factor * vectors, kinds, [""] * 9)) for factor in (1, 1000))
    assert two == pytest.approx(one | {"std": 1000 * one["std"]}, rel=1e-4)


def test_separation_requires_each_kind() -> None:
    with pytest.raises(ValueError, match=r"got none of \['defect'\]"):
        separation(ImageEmbeddings(torch.rand(2, 3), ["support", "good"], ["", ""]))


@pytest.mark.parametrize("projection", ["tsne", "pca"])
def test_projection_is_reproducible_and_separates_groups(projection: str) -> None:
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
    with pytest.raises(ValueError, match="`vectors` must .*, got 3"):
        project(BLOBS[:3])


def test_names_cannot_close_the_script(tmp_path: Path) -> None:
    path = tmp_path / "a&b.png"
    Image.new("RGB", (8, 8)).save(path)
    embedded = {"</script><b>": ImageEmbeddings(BLOBS[:4], ["support", "good", "defect", "good"], [str(path)] * 4)}
    table = pd.DataFrame({"</script><b>": {"AUROC": 1.0}}).T
    write_page(embedded, table, tmp_path / "page.html", "pca")
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert page.count("</script>") == 2
    assert "<b>" not in page
    assert data_of(page)["panels"][0]["name"] == "</script><b>"
