# Copyright (C) 2026 anomalib-fewshot contributors
# SPDX-License-Identifier: Apache-2.0

"""A checkpoint speaks for itself: with other arguments it scores as trained, or is refused by the argument's name."""

import inspect
from pathlib import Path
from pickle import UnpicklingError  # noqa: S403  the error of what is refused
from typing import Any

import pytest
import timm
import torch
from anomalib.data import MVTecAD
from anomalib.engine import Engine
from anomalib.models import AnomalibModule, get_model
from small_models import SMALL
from torchvision.transforms.v2 import Compose, Normalize, Resize

from anomalib_fewshot import CoftAD, FewShot, ImageStatistic
from anomalib_fewshot.errors import CheckpointMismatchError
from anomalib_fewshot.models.components import backbone
from anomalib_fewshot.pre_processing import ExportablePreProcessor

COMPONENTS = {
    "post_processor": False,
    "pre_processor": ExportablePreProcessor(Compose([Resize((64, 64)), Normalize([0.2] * 3, [0.7] * 3)])),
    "visualizer": True,
}
OTHER_BACKBONE = {"backbone": "resnet18", "layers": [1], "weights": "weights.pt", "image_size": 96, "seed": 1}
OTHER = {
    "CoftAD": OTHER_BACKBONE
    | {"published": True, "num_steps": 1, "learning_rate": 0.1, "positive_weight": 0.5, "negative_weight": 0.5}
    | {"rotations": "none"},
    "ImageStatistic": {"statistic": "std", "image_size": 96},
    "RegAD": OTHER_BACKBONE
    | {"stn_mode": "affine", "num_supports": 1, "max_epochs": 0, "learning_rate": 0.1, "momentum": 0.0}
    | {"weight_decay": 0.5, "freeze_batch_norm": False, "adversarial_weight": 0.5, "adversarial_learning_rate": 0.1}
    | {"augment_support": True, "regularization": 0.5, "allow_seen": True, "min_similarity": None},
    "UniAD": OTHER_BACKBONE
    | {
        "neighbor_size": 1,
        "norm_power": 0.0,
        "jitter_scale": 1.0,
        "dim": 16,
        "num_heads": 2,
        "num_layers": 2,
        "feedforward_dim": 16,
    }
    | {"dropout": 0.5, "standardize": False, "pool_size": 16, "category_scale": False, "num_steps": 1}
    | {"warmup_steps": 0, "batch_size": 3, "learning_rate": 0.1, "weight_decay": 0.5, "gradient_clip_val": 1.0}
    | {"adversarial_weight": 0.5, "adversarial_pair": "layers", "adversarial_learning_rate": 0.1}
    | {"augment_support": True, "cache_tokens": False, "cache_limit": 0.0},
}
# Where weights come from: no other ones can be had here, and RegAD's own test. Of an evaluator that a checkpoint lacks,
# anomalib 2.7 cannot log the metrics.
ELSEWHERE = {"pre_trained", "network", "evaluator"}
DECIDING = {"backbone", "layers", "image_size", "published", "stn_mode", "neighbor_size", "num_heads"} | {
    "norm_power",
    "statistic",
}
CASES = [
    pytest.param(name, argument, marks=[] if argument in DECIDING else pytest.mark.slow)
    for name in SMALL
    for argument in OTHER[name] | COMPONENTS
]


def make(name: str, **arguments: Any) -> AnomalibModule:  # noqa: ANN401
    return get_model(name, **SMALL[name] | {"visualizer": False} | arguments)


def scores(model: AnomalibModule) -> torch.Tensor:
    images = torch.rand(6, 3, 80, 80, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        return model.eval()(images).pred_score


@pytest.mark.parametrize("name", SMALL)
def test_every_argument_is_tried(name: str) -> None:
    assert set(inspect.signature(get_model(name, **SMALL[name]).__init__).parameters) == {
        *OTHER[name],
        *COMPONENTS,
        *(ELSEWHERE & set(inspect.signature(type(make(name))).parameters)),
    }


@pytest.mark.parametrize(("name", "argument"), CASES)
def test_checkpoint_of_another_argument(
    name: str,
    argument: str,
    mvtec_root: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save(timm.create_model("resnet10t").state_dict(), "weights.pt")
    trained = make(name, **{argument: (OTHER[name] | COMPONENTS)[argument]})
    datamodule = FewShot(MVTecAD(mvtec_root, "bolt", num_workers=0), k_shot=2)
    Engine(default_root_dir=tmp_path, enable_progress_bar=False).fit(trained, datamodule=datamodule)
    (path,) = tmp_path.rglob("*.ckpt")
    model = make(name)
    engine = Engine(default_root_dir=tmp_path, enable_progress_bar=False)
    if argument in type(model).score_arguments:
        with pytest.raises(ValueError, match=rf"{name} must have the arguments of its checkpoint, .*{argument}="):
            engine.test(model, datamodule=datamodule, ckpt_path=path, verbose=False)
        model = type(model).load_from_checkpoint(path)
    else:
        engine.test(model, datamodule=datamodule, ckpt_path=path, verbose=False)
    torch.testing.assert_close(scores(model), scores(trained), rtol=0, atol=0)


@pytest.mark.parametrize("is_folded", [True, False])
def test_checkpoint_decides_whether_batch_normalization_is_folded(
    is_folded: bool,
    mvtec_root: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    limits = [1e-3, -1.0] if is_folded else [-1.0, 1e-3]
    monkeypatch.setattr(backbone, "MAX_FOLD_ERROR", limits[0])
    trained = make("CoftAD")
    datamodule = FewShot(MVTecAD(mvtec_root, "bolt", num_workers=0), k_shot=2)
    engine = Engine(default_root_dir=tmp_path, enable_progress_bar=False, logger=False)
    engine.fit(trained, datamodule=datamodule)
    assert bool(trained.model.backbone.is_folded) is is_folded
    monkeypatch.setattr(backbone, "MAX_FOLD_ERROR", limits[1])
    model = make("CoftAD")
    assert bool(model.model.backbone.is_folded) is not is_folded
    engine.test(model, datamodule=datamodule, ckpt_path=engine.best_model_path, verbose=False)
    for loaded in (model, CoftAD.load_from_checkpoint(engine.best_model_path)):
        torch.testing.assert_close(scores(loaded), scores(trained), rtol=0, atol=0)


def test_same_size_in_other_words_is_taken(mvtec_root: Path, tmp_path: Path) -> None:
    datamodule = FewShot(MVTecAD(mvtec_root, "bolt", num_workers=0), k_shot=2)
    trained = ImageStatistic(image_size=(64, 64), visualizer=False)
    Engine(default_root_dir=tmp_path).fit(trained, datamodule=datamodule)
    (path,) = tmp_path.rglob("*.ckpt")
    Engine(default_root_dir=tmp_path).test(make("ImageStatistic"), datamodule=datamodule, ckpt_path=path)


def test_checkpoint_of_another_model_is_refused(mvtec_root: Path, tmp_path: Path) -> None:
    datamodule = FewShot(MVTecAD(mvtec_root, "bolt", num_workers=0), k_shot=2)
    Engine(default_root_dir=tmp_path).fit(make("ImageStatistic"), datamodule=datamodule)
    (path,) = tmp_path.rglob("*.ckpt")
    for model in (CoftAD,):
        with pytest.raises(CheckpointMismatchError, match=f"{model.__name__}, got ImageStatistic"):
            Engine(default_root_dir=tmp_path).test(make(model.__name__), datamodule=datamodule, ckpt_path=path)


class _Attack:
    """Runs code when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.marker,)


@pytest.mark.parametrize("where", ["hyper_parameters", "state_dict", "elsewhere"])
def test_poisoned_checkpoint_runs_no_code(where: str, mvtec_root: Path, tmp_path: Path) -> None:
    model = make("ImageStatistic")
    engine = Engine(default_root_dir=tmp_path, logger=False, enable_progress_bar=False)
    engine.fit(model, datamodule=FewShot(MVTecAD(mvtec_root, "bolt", num_workers=0), k_shot=2))
    checkpoint = torch.load(engine.best_model_path, weights_only=True)
    marker, poisoned = tmp_path / "code_has_run", tmp_path / "poisoned.ckpt"
    checkpoint.setdefault(where, {})["attack"] = _Attack(marker)
    torch.save(checkpoint, poisoned)
    with pytest.raises(UnpicklingError, match="Weights only load failed"):
        ImageStatistic.load_from_checkpoint(poisoned)
    for start in (engine.predict, engine.test, engine.fit):
        with pytest.raises(UnpicklingError, match="Weights only load failed"):
            start(make("ImageStatistic"), datamodule=MVTecAD(mvtec_root, "bolt", num_workers=0), ckpt_path=poisoned)
    with pytest.raises(UnpicklingError, match="Weights only load failed"):
        engine.export(make("ImageStatistic"), "onnx", export_root=tmp_path, ckpt_path=poisoned)
    assert not marker.exists()
    torch.load(poisoned, weights_only=False)
    assert marker.exists()  # it would have
