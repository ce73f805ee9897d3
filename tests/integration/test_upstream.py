# Copyright (C) 2026 anomalib-fewshot contributors
# SPDX-License-Identifier: Apache-2.0

"""What anomalib's own tests ask of every model: each stage of the engine on plain data, and its bare mode."""

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from anomalib.data import MVTecAD
from anomalib.deploy import ExportType
from anomalib.engine import Engine
from anomalib.models import get_model
from lightning.pytorch import seed_everything
from test_contract import MODELS, SMALL

EXPORTS = [kind for kind in ExportType if kind != ExportType.OPENVINO or find_spec("openvino")]


def every_stage(name: str, root: Path, results: Path, **arguments: Any) -> None:  # noqa: ANN401
    """Do what anomalib's ``tests/integration/model/test_models.py`` does: a new model and engine for each stage."""

    def engine() -> Engine:
        return Engine(logger=False, default_root_dir=results, max_epochs=1, devices=1, accelerator="cpu")

    def model() -> Any:  # noqa: ANN401
        return get_model(name, **arguments)

    data = MVTecAD(root, "bolt", train_batch_size=2, num_workers=0)
    engine().fit(model(), datamodule=data)
    (path,) = results.rglob("model.ckpt")
    engine().test(model(), datamodule=data, ckpt_path=path)
    engine().train(model(), datamodule=data, ckpt_path=path)
    engine().validate(model(), datamodule=data, ckpt_path=path)
    batches = engine().predict(model(), datamodule=data, ckpt_path=path)
    assert torch.cat([batch.pred_score for batch in batches]).isfinite().all()
    for kind in EXPORTS:
        assert engine().export(model(), export_type=kind, ckpt_path=path, export_root=results / kind.value).is_file()


@pytest.mark.parametrize("name", MODELS)
def test_every_stage_on_plain_data(name: str, mvtec_root: Path, tmp_path: Path) -> None:
    every_stage(name, mvtec_root, tmp_path, **SMALL[name])


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_every_stage_with_default_arguments(name: str, mvtec_root: Path, tmp_path: Path) -> None:
    every_stage(name, mvtec_root, tmp_path)


@pytest.mark.parametrize("name", MODELS)
def test_bare_mode_has_the_same_metrics(name: str, mvtec_root: Path, tmp_path: Path) -> None:
    figures = []
    for barebones in (False, True):
        seed_everything(0, workers=True)  # anomalib's own data are shuffled by it
        engine = Engine(default_root_dir=tmp_path / str(barebones), barebones=barebones, accelerator="cpu")
        model, data = get_model(name, **SMALL[name]), MVTecAD(mvtec_root, "bolt", num_workers=0)
        engine.fit(model, datamodule=data)
        figures += engine.test(model, datamodule=data)
    assert figures[0] == pytest.approx(figures[1])
    assert "image_AUROC" in figures[0]
    assert list((tmp_path / "False").rglob("*.ckpt"))
    assert not list((tmp_path / "True").rglob("*.ckpt"))
