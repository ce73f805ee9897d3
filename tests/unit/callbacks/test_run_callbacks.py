# Copyright (C) 2026 anomalib-fewshot contributors
# SPDX-License-Identifier: Apache-2.0

"""A run has this package's callbacks if it uses one of its models or data modules, or if the user lists them."""

import re
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path

import pytest
from anomalib.data import AnomalibDataModule, MVTecAD
from anomalib.engine import Engine
from anomalib.models import AnomalibModule, Padim
from lightning.pytorch import Callback

import anomalib_fewshot
from anomalib_fewshot import FewShot, ImageStatistic, MultiCategory, MVTecFolder
from anomalib_fewshot.callbacks import EvaluationCheck, FewShotRun, PredictCheck, SupportThreshold, run_callbacks
from anomalib_fewshot.data.support import CALLBACK_GROUP, make_callbacks

OWN = [SupportThreshold, FewShotRun, EvaluationCheck, PredictCheck]


def padim() -> Padim:
    return Padim("resnet18", layers=["layer1"], pre_trained=False, n_features=8, visualizer=False)


def statistic() -> ImageStatistic:
    return ImageStatistic(image_size=32, visualizer=False)


def callbacks_of(
    model: AnomalibModule,
    datamodule: AnomalibDataModule,
    folder: Path,
    callbacks: list[Callback] | None = None,
) -> list[Callback]:
    """Return the callbacks of this package in a run that fits and tests."""
    engine = Engine(accelerator="cpu", default_root_dir=folder, enable_progress_bar=False, callbacks=callbacks)
    engine.train(model, datamodule=datamodule)
    return [callback for callback in engine.trainer.callbacks if isinstance(callback, tuple(OWN))]


@pytest.mark.parametrize("data", ["few_shot", "multi_category", "folder", "plain"])
@pytest.mark.parametrize("make", [padim, statistic])
def test_runs_with_models_or_data_modules_of_this_package_have_callbacks(
    make: type,
    data: str,
    mvtec_root: Path,
    tmp_path: Path,
) -> None:
    model, plain = make(), MVTecAD(mvtec_root, "bolt", num_workers=0)
    if data == "multi_category" and make is padim:
        model.evaluator = anomalib_fewshot.CategoryEvaluator()
    datamodules = {
        "few_shot": FewShot(plain, k_shot=3),
        "multi_category": MultiCategory(MVTecAD(mvtec_root, num_workers=0), categories=["bolt", "cloth"], k_shot=3),
        "folder": MVTecFolder(mvtec_root, "bolt", num_workers=0),
        "plain": plain,
    }
    kinds = [type(callback) for callback in callbacks_of(model, datamodules[data], tmp_path)]
    assert kinds == ([] if make is padim and data == "plain" else OWN)


def test_listed_callback_is_kept(mvtec_root: Path, tmp_path: Path) -> None:
    listed = PredictCheck()
    datamodule = FewShot(MVTecAD(mvtec_root, "bolt", num_workers=0), k_shot=3)
    callbacks = callbacks_of(padim(), datamodule, tmp_path, [listed])
    assert sorted(map(type, callbacks), key=OWN.index) == OWN
    assert listed in callbacks


def test_callbacks_are_an_entry_point_and_none_of_lightning_s() -> None:
    assert [type(callback) for callback in make_callbacks()] == OWN
    project = (Path(anomalib_fewshot.__file__).parents[1] / "pyproject.toml").read_text(encoding="utf-8")
    (value,) = re.findall(rf'entry-points\."{re.escape(CALLBACK_GROUP)}"\]\nrun = "(.*)"', project)
    assert EntryPoint("run", value, CALLBACK_GROUP).load() is run_callbacks
    factories = entry_points(group="lightning.pytorch.callbacks_factory")
    assert not [each for each in factories if each.value.startswith("anomalib_fewshot")]
