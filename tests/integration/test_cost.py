# Copyright (C) 2026 anomalib-fewshot contributors
# SPDX-License-Identifier: Apache-2.0

"""`anomalib fewshot_cost`: measurements, and errors for wrong arguments."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from anomalib.cli import AnomalibCLI
from small_models import SMALL

from anomalib_fewshot.pipelines import cost
from anomalib_fewshot.pipelines.cli import FewShotCost
from anomalib_fewshot.pipelines.cost import BACKBONE_ONLY, measure_cost
from anomalib_fewshot.pipelines.plan.spec import read_spec

CONFIGS = Path(__file__).parents[2] / "configs"
PLAIN = {"class_path": "ImageStatistic", "init_args": {"image_size": 64}}


@pytest.fixture
def data(mvtec_root: Path) -> dict[str, Any]:
    return {"class_path": "MVTecFolder", "init_args": {"root": str(mvtec_root), "category": "bolt"}}


@pytest.mark.usefixtures("quick_processes")
def test_a_row_for_each_method_and_the_backbone(data: dict[str, Any]) -> None:
    methods = {"CoftAD": {"class_path": "CoftAD", "init_args": SMALL["CoftAD"]}, "plain": PLAIN}
    table = measure_cost(methods, data, k_shot=2, backbone="resnet10t", repeats=1, rounds=5, threads=1)
    assert table.index.tolist() == ["CoftAD", "plain", BACKBONE_ONLY]
    assert (table.loc[["CoftAD", "plain"], ["fit_seconds", "latency_p50_ms", "times_backbone"]] > 0).all(axis=None)
    assert (table.latency_p95_ms >= table.latency_p50_ms).all()
    assert table.loc[BACKBONE_ONLY, "times_backbone"] == 1
    assert table.loc["plain", "times_backbone"] < table.loc["CoftAD", "times_backbone"]


def test_several_k_in_torch_and_onnx(data: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Within this process: the test above has others."""
    monkeypatch.setattr(cost, "_in_subprocess", lambda function, *arguments: function(*arguments))
    table = measure_cost(
        {"plain": PLAIN},
        data,
        [1, 3],
        backbone="resnet10t",
        repeats=1,
        rounds=2,
        threads=1,
        onnx=True,
    )
    assert table.index.tolist() == ["plain, k = 1", "plain, k = 3", BACKBONE_ONLY]
    assert (table.filter(like="latency") > 0).all(axis=None)
    assert table.loc[BACKBONE_ONLY, ["times_backbone", "onnx_times_backbone"]].tolist() == [1, 1]
    assert (table.onnx_times_backbone[:2] < 1).all()


def test_size_of_the_backbones_image(data: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    shapes = []

    def run(models: dict[str, tuple[torch.nn.Module, torch.Tensor]], rounds: int) -> dict[str, np.ndarray]:
        shapes.append(models[BACKBONE_ONLY][1].shape)
        return dict.fromkeys(models, np.ones(rounds))

    monkeypatch.setattr(cost, "latencies", run)
    case = {"plain": (*map(read_spec, (PLAIN, data)), 1, 0, 1, "cpu")}
    for size in (None, 96):
        cost._latencies(case, "resnet10t", size, 1, 1, onnx=False)  # noqa: SLF001
    assert shapes == [(1, 3, 176, 176), (1, 3, 96, 96)]


def test_file_of_shots() -> None:
    parsed = FewShotCost.get_parser().parse_args(["--config", str(CONFIGS / "benchmark" / "cost_of_shots.yaml")])
    assert (list(parsed.methods), parsed.k_shot, parsed.onnx) == (["CoftAD"], [1, 4, 8, 32], True)
    assert parsed.backbone_size == 320


def test_file() -> None:
    """The file parses, with its methods; what it measures takes minutes."""
    content = yaml.safe_load((CONFIGS / "benchmark" / "cost.yaml").read_text(encoding="utf-8"))
    assert list(content["methods"]) == ["Patchcore", "Padim", "CoftAD", "RegAD, no training", "UniAD"]
    with pytest.raises(SystemExit, match="`rounds` must be at least 1, got 0"):
        AnomalibCLI(["fewshot_cost", "--config", str(CONFIGS / "benchmark" / "cost.yaml"), "--rounds", "0"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"k_shot": [4, 0]}, "`k_shot` must be at least 1, got 0"),
        ({"repeats": 0}, "`repeats` must be at least 1, got 0"),
        ({"backbone_size": 0}, "`backbone_size` must be at least 1, got 0"),
        ({"methods": {"A": {"class_path": "Patchcor"}}}, "Similar names: .'Patchcore'"),
        ({"data": {"class_path": "Patchcore"}}, "must name an AnomalibDataModule"),
    ],
)
def test_wrong_arguments(data: dict[str, Any], arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        measure_cost(**{"methods": {"A": PLAIN}, "data": data} | arguments)
