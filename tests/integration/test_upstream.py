# Copyright (C) 2026 anomalib-fewshot contributors
# SPDX-License-Identifier: Apache-2.0

"""What anomalib's own tests ask of every model: each stage of the engine on plain data, and its bare mode."""

from pathlib import Path

import pytest
from anomalib.data import MVTecAD
from anomalib.engine import Engine
from anomalib.models import get_model
from lightning.pytorch import seed_everything
from small_models import MODELS, SMALL
from stages import every_stage


def slow_but(*quick: str) -> list[object]:
    """Return the models. All but some are tested every night, and every week with anomalib's main branch."""
    return [pytest.param(name, marks=() if name in quick else pytest.mark.slow) for name in MODELS]


@pytest.mark.parametrize("name", slow_but("ImageStatistic"))
def test_every_stage_on_plain_data(name: str, mvtec_root: Path, tmp_path: Path) -> None:
    every_stage(name, mvtec_root, tmp_path, **SMALL[name])


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_every_stage_with_default_arguments(name: str, mvtec_root: Path, tmp_path: Path) -> None:
    every_stage(name, mvtec_root, tmp_path)


@pytest.mark.parametrize("name", slow_but("ImageStatistic"))  # the hooks are those of all models
def test_bare_mode_has_the_same_metrics(name: str, mvtec_root: Path, tmp_path: Path) -> None:
    figures = []
    for barebones in (False, True):
        seed_everything(0, workers=True)  # shuffles anomalib's own data
        engine = Engine(default_root_dir=tmp_path / str(barebones), barebones=barebones, accelerator="cpu")
        model, data = get_model(name, **SMALL[name]), MVTecAD(mvtec_root, "bolt", num_workers=0)
        engine.fit(model, datamodule=data)
        figures += engine.test(model, datamodule=data)
    assert figures[0] == pytest.approx(figures[1])
    assert "image_AUROC" in figures[0]
    assert list((tmp_path / "False").rglob("*.ckpt"))
    assert not list((tmp_path / "True").rglob("*.ckpt"))
