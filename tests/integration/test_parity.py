# Copyright (C) 2026 anomalib-fewshot contributors
# SPDX-License-Identifier: Apache-2.0

"""`anomalib fewshot_parity`: what is compared, and what stands for a runtime that is not there."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from anomalib.models import AnomalibModule

from anomalib_fewshot import FewShot, ImageStatistic, MVTecFolder
from anomalib_fewshot.pipelines import parity
from anomalib_fewshot.pipelines.cli import FewShotParity
from anomalib_fewshot.pipelines.parity import REFERENCE, FittedModel, Infer, Outputs, measure_parity
from anomalib_fewshot.pipelines.plan.spec import check_spec, read_spec

CONFIG = Path(__file__).parents[2] / "configs" / "benchmark" / "parity.yaml"
PLAIN = {"class_path": "ImageStatistic", "init_args": {"image_size": 64}}


@pytest.fixture
def data(mvtec_root: Path) -> dict[str, Any]:
    return {"class_path": "MVTecFolder", "init_args": {"root": str(mvtec_root), "category": "bolt"}}


def shifted(fitted: FittedModel) -> tuple[Infer, Path]:
    """A runtime whose maps are 0.25 higher, and which takes each good image for a defect and the other way round."""
    infer, path = parity.RUNTIMES[REFERENCE](fitted)

    def other(image: torch.Tensor) -> Outputs:
        found = infer(image)
        found["pred_score"], found["pred_label"] = 1 - found["pred_score"], 1 - found["pred_label"]
        return found | ({"anomaly_map": found["anomaly_map"] + 0.25} if "anomaly_map" in found else {})

    return other, path


def absent(_fitted: FittedModel) -> tuple[Infer, Path]:
    raise ModuleNotFoundError(name="runtime_of_tomorrow")


def failing(_fitted: FittedModel) -> tuple[Infer, Path]:
    msg = "No kernel.\nA long trace."
    raise RuntimeError(msg)


def test_differences_of_known_size(data: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    runtimes = {REFERENCE: parity.RUNTIMES[REFERENCE], "shifted": shifted, "absent": absent, "failing": failing}
    monkeypatch.setattr(parity, "RUNTIMES", runtimes)
    small = {"backbone": "resnet10t", "pre_trained": False, "image_size": 64, "num_steps": 0}
    methods = {"plain": PLAIN, "CoftAD": {"class_path": "CoftAD", "init_args": small}}
    table = measure_parity(methods, data, k_shot=3, rounds=2, threads=1, accelerator="cpu")
    assert table.index.tolist() == [(method, runtime) for method in methods for runtime in runtimes]
    for method, rows in table.groupby(level="method"):
        own, other = rows.loc[method, REFERENCE], rows.loc[method, "shifted"]
        assert own[["score_difference", "verdict_flips", "auroc_difference"]].tolist() == [0, 0, 0]
        assert (own.images, other.images, other.verdict_flips) == (8, 8, 8)
        assert other.score_difference > 0
        assert -1 <= other.auroc_difference < 0
        assert (rows.latency_p50_ms.dropna() > 0).all()
        assert rows.note.tolist() == ["", "", "runtime_of_tomorrow is not installed", "No kernel."]
        assert rows.score_difference.isna().tolist() == [False, False, True, True]
    assert table.loc[("CoftAD", "shifted"), "map_difference"] == pytest.approx(0.25)
    assert table.loc[("CoftAD", REFERENCE), "size_mib"] > table.loc[("plain", REFERENCE), "size_mib"] > 0


@pytest.mark.parametrize("runtime", ["ONNX Runtime fp32", "OpenVINO fp32", "OpenVINO int8 weights"])
def test_runtimes_agree(data: dict[str, Any], monkeypatch: pytest.MonkeyPatch, runtime: str) -> None:
    monkeypatch.setattr(parity, "RUNTIMES", {name: parity.RUNTIMES[name] for name in (REFERENCE, runtime)})
    table = measure_parity({"plain": PLAIN}, data, k_shot=3, rounds=1, accelerator="cpu")
    row = table.loc["plain", runtime]
    if row.note:
        assert row.note in {"openvino is not installed", "nncf is not installed"}
        return
    assert row.score_difference < 1e-4
    assert row.verdict_flips == 0


def test_int8_is_calibrated_on_the_support(mvtec_root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nncf = pytest.importorskip("nncf")
    seen: list[tuple[int, ...]] = []
    monkeypatch.setattr(nncf, "quantize", lambda _, data, **__: seen.extend(value.shape for value in data.get_data()))
    model = ImageStatistic(image_size=32)
    datamodule = FewShot(MVTecFolder(mvtec_root, "bolt", num_workers=0), k_shot=3)
    model._post_training_quantization_ov(None, datamodule)  # noqa: SLF001
    assert seen == [(1, 3, 64, 64)] * 3  # in their own size


def test_int8_needs_data() -> None:
    pytest.importorskip("nncf")
    with pytest.raises(ValueError, match="`datamodule` must be set for `int8_ptq`, got None"):
        ImageStatistic()._post_training_quantization_ov(None)  # noqa: SLF001


def test_file() -> None:
    """The file parses, with its methods; what it measures takes minutes."""
    parsed = FewShotParity.get_parser().parse_args(["--config", str(CONFIG)])
    assert (list(parsed.methods), parsed.k_shot) == (["CoftAD", "RegAD, no training", "UniAD"], 4)
    for spec in yaml.safe_load(CONFIG.read_text(encoding="utf-8"))["methods"].values():
        check_spec(read_spec(spec), AnomalibModule)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"rounds": 0}, "`rounds` must be at least 1, got 0"),
        ({"methods": {"A": {"class_path": "Patchcor"}}}, "Similar names: .'Patchcore'"),
        ({"data": {"class_path": "Patchcore"}}, "must name an AnomalibDataModule"),
    ],
)
def test_wrong_arguments(data: dict[str, Any], arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        measure_parity(**{"methods": {"A": PLAIN}, "data": data} | arguments)


def test_table_is_printed(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    values = [1e-5, np.nan, 0, 8, -0.0125, 20.14, 13.0, ""]
    rows = {("CoftAD", "torch fp32"): values, ("CoftAD", "OpenVINO"): [np.nan] * 7 + ["openvino is not installed"]}
    table = pd.DataFrame.from_dict(rows, orient="index", columns=parity.COLUMNS)
    table.index = pd.MultiIndex.from_tuples(table.index, names=["method", "runtime"])
    FewShotParity().show(table)
    shown = capsys.readouterr().out
    for text in ("CoftAD", "verdict flips", "1e-05", "-0.0125", "20.1", "openvino is not installed"):
        assert text in shown
    assert "nan" not in shown
