# Copyright (C) 2026 anomalib-fewshot contributors
# SPDX-License-Identifier: Apache-2.0

"""Only a fit changes a model, and nothing outside the arguments decides its result."""

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from anomalib.callbacks import ModelCheckpoint
from anomalib.data import MVTecAD, PredictDataset
from anomalib.engine import Engine
from anomalib.models import AnomalibModule, Patchcore
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from lightning.pytorch import seed_everything
from lightning.pytorch.callbacks import LambdaCallback

from anomalib_fewshot import CoftAD, FewShot, ImageStatistic, RegAD, UniAD
from anomalib_fewshot.errors import CheckpointMismatchError, NotFittedError

SMALL: dict[str, Any] = {"backbone": "resnet10t", "pre_trained": False, "image_size": 64, "visualizer": False}


def statistic() -> ImageStatistic:
    return ImageStatistic(image_size=64, visualizer=False)


def coft_ad() -> CoftAD:
    return CoftAD(**SMALL, num_steps=2)


def reg_ad() -> RegAD:
    return RegAD(**SMALL, max_epochs=0, augment_support=False)


def uni_ad() -> UniAD:
    return UniAD(**SMALL, num_steps=1, dim=16, num_heads=2, feedforward_dim=16, neighbor_size=3, augment_support=False)


def patchcore(**arguments: Any) -> Patchcore:  # noqa: ANN401
    return Patchcore(backbone="resnet10t", layers=["layer2"], pre_trained=False, visualizer=False, **arguments)


def bolt(root: Path, **arguments: Any) -> FewShot:  # noqa: ANN401
    return FewShot(MVTecAD(root, "bolt", num_workers=0), **{"k_shot": 3} | arguments)


def engine(results: Path, **arguments: Any) -> Engine:  # noqa: ANN401
    return Engine(
        default_root_dir=results,
        logger=False,
        enable_progress_bar=False,
        accelerator="cpu",
        devices=1,
        **arguments,
    )


def state(model: AnomalibModule) -> dict[str, torch.Tensor]:
    tensors = (pair for pair in model.state_dict().items() if isinstance(pair[1], torch.Tensor))
    return {name: value.clone() for name, value in tensors}


def assert_equal_states(one: dict[str, torch.Tensor], two: dict[str, torch.Tensor]) -> None:
    assert one.keys() == two.keys()
    for name, value in one.items():
        torch.testing.assert_close(two[name], value, rtol=0, atol=0, equal_nan=True, msg=name)


@pytest.fixture(scope="module")
def fitted(mvtec_root: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[CoftAD, FewShot, Path]:
    results, model, data = tmp_path_factory.mktemp("fitted"), coft_ad(), bolt(mvtec_root)
    own = engine(results)
    own.fit(model, datamodule=data)
    return model, data, Path(own.best_model_path)


@settings(max_examples=4, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(stages=st.lists(st.sampled_from(["validate", "test", "predict", "export", "load"]), min_size=1, max_size=4))
def test_no_stage_but_a_fit_changes_a_model(
    stages: list[str],
    fitted: tuple[CoftAD, FewShot, Path],
    mvtec_root: Path,
    tmp_path: Path,
) -> None:
    model, data, checkpoint = fitted
    before, scheme, metadata = state(model), model.post_processor.scheme, model.post_processor.metadata()
    for stage in stages:
        own = engine(tmp_path)
        if stage == "predict":
            own.predict(model, dataset=PredictDataset(mvtec_root / "bolt" / "test" / "hole"))
        elif stage == "export":
            own.export(model, export_type="torch", export_root=tmp_path)
        elif stage == "load":
            model.load_state_dict(torch.load(checkpoint, weights_only=True)["state_dict"])
        else:
            getattr(own, stage)(model, datamodule=data)
        assert_equal_states(before, state(model))
        assert model.post_processor.scheme is scheme
        assert model.post_processor.metadata() == metadata


@pytest.mark.parametrize("make", [statistic, reg_ad, uni_ad])
def test_a_validation_changes_no_model(make: Any, mvtec_root: Path, tmp_path: Path) -> None:  # noqa: ANN401
    model, data = make(), bolt(mvtec_root)
    engine(tmp_path).fit(model, datamodule=data)
    before = state(model)
    engine(tmp_path).validate(model, datamodule=data)
    engine(tmp_path).test(model, datamodule=data)
    assert_equal_states(before, state(model))


def test_a_validation_keeps_the_thresholds_of_a_memory_bank(mvtec_root: Path, tmp_path: Path) -> None:
    model, data = patchcore(), bolt(mvtec_root)
    engine(tmp_path).fit(model, datamodule=data)
    before = state(model)
    engine(tmp_path).validate(model, datamodule=data)
    assert_equal_states(before, state(model))


@pytest.mark.parametrize("make", [statistic, patchcore])
def test_a_second_fit_by_one_trainer_is_refused(make: Any, mvtec_root: Path, tmp_path: Path) -> None:  # noqa: ANN401
    own, first = engine(tmp_path), bolt(mvtec_root)
    own.fit(make(), datamodule=first)
    with pytest.raises(NotFittedError, match="Engine"):
        own.fit(make(), datamodule=bolt(mvtec_root, seed=1))
    (manifest,) = tmp_path.rglob("support.json")
    assert json.loads(manifest.read_text())["images"] == first.manifest.images  # of the checkpoint beside it


def test_a_second_fit_of_one_model_is_of_the_second_support(mvtec_root: Path, tmp_path: Path) -> None:
    model, other = statistic(), statistic()
    engine(tmp_path).fit(model, datamodule=bolt(mvtec_root))
    engine(tmp_path).fit(model, datamodule=bolt(mvtec_root, seed=1))
    engine(tmp_path).fit(other, datamodule=bolt(mvtec_root, seed=1))
    assert_equal_states(state(other), state(model))


def test_a_checkpoint_of_another_support_is_not_resumed(
    fitted: tuple[CoftAD, FewShot, Path],
    mvtec_root: Path,
    tmp_path: Path,
) -> None:
    model, _, checkpoint = fitted
    with pytest.raises(CheckpointMismatchError, match="ckpt_path"):
        engine(tmp_path).fit(coft_ad(), datamodule=bolt(mvtec_root, seed=1), ckpt_path=checkpoint)
    assert not [*tmp_path.rglob("support.json")]
    same = coft_ad()
    engine(tmp_path).fit(same, datamodule=bolt(mvtec_root), ckpt_path=checkpoint)
    assert_equal_states(state(model), state(same))


@pytest.mark.parametrize("arguments", [{"max_steps": 0}, {"limit_train_batches": 0}])
@pytest.mark.parametrize("make", [statistic, patchcore])
def test_a_training_without_a_step_is_refused(
    make: Any,  # noqa: ANN401
    arguments: dict[str, int],
    mvtec_root: Path,
    tmp_path: Path,
) -> None:
    with pytest.raises(NotFittedError, match="max_steps"):
        engine(tmp_path, **arguments).train(make(), datamodule=bolt(mvtec_root))
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_an_interrupted_fit_leaves_no_checkpoint(
    monkeypatch: pytest.MonkeyPatch,
    mvtec_root: Path,
    tmp_path: Path,
) -> None:
    def interrupt(_: ImageStatistic) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(ImageStatistic, "fit", interrupt)
    with pytest.raises((SystemExit, KeyboardInterrupt)):
        engine(tmp_path).fit(statistic(), datamodule=bolt(mvtec_root))
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


@pytest.mark.parametrize("make", [statistic, reg_ad, uni_ad, patchcore])
def test_every_checkpoint_that_lies_at_its_place_is_fitted(make: Any, mvtec_root: Path, tmp_path: Path) -> None:  # noqa: ANN401
    own = engine(tmp_path)
    own.fit(make(), datamodule=bolt(mvtec_root))
    (path,) = tmp_path.rglob("*.ckpt")
    assert Path(own.best_model_path) == path
    engine(tmp_path).test(make(), datamodule=bolt(mvtec_root), ckpt_path=path)


@pytest.mark.parametrize(
    "arguments",
    [{}, {"monitor": "image_AUROC", "mode": "max"}, {"every_n_train_steps": 1, "save_top_k": -1}, {"save_last": True}],
)
def test_own_checkpoint_callbacks_get_a_fitted_model(
    arguments: dict[str, Any],
    mvtec_root: Path,
    tmp_path: Path,
) -> None:
    callback = ModelCheckpoint(tmp_path / "own", "mine", **arguments)
    own = engine(tmp_path, callbacks=[callback])
    own.fit(statistic(), datamodule=bolt(mvtec_root))
    loaded = ImageStatistic.load_from_checkpoint(own.best_model_path)
    assert loaded.is_fitted


def global_states() -> tuple[Any, ...]:
    return torch.get_rng_state(), np.random.get_state()[1], random.getstate()  # noqa: NPY002


def assert_global_states(before: tuple[Any, ...]) -> None:
    torch_state, numpy_state, python_state = global_states()
    assert torch.equal(torch_state, before[0])
    assert (numpy_state == before[1]).all()
    assert python_state == before[2]


@pytest.mark.parametrize("make", [statistic, coft_ad, reg_ad, uni_ad])
def test_no_hook_advances_the_global_random_state(make: Any, mvtec_root: Path, tmp_path: Path) -> None:  # noqa: ANN401
    before = global_states()
    data = bolt(mvtec_root)
    model = make()
    assert_global_states(before)
    check = LambdaCallback(
        on_fit_start=lambda *_: assert_global_states(before),
        on_train_batch_end=lambda *_: assert_global_states(before),
        on_train_end=lambda *_: assert_global_states(before),
        on_test_start=lambda *_: assert_global_states(before),
    )
    engine(tmp_path, callbacks=[check]).train(model, datamodule=data)
    assert_global_states(before)


def test_thresholds_from_the_support_do_not_change_a_memory_bank(mvtec_root: Path, tmp_path: Path) -> None:
    """The coreset draws from the global generator: it must find the same numbers with and without the thresholds."""
    banks, thresholds = [], []
    for validation in ("support", "source", "support"):
        seed_everything(3, verbose=False)
        model = patchcore(coreset_sampling_ratio=0.1)
        seed_everything(5 if len(banks) == 2 else 4, verbose=False)
        data = bolt(mvtec_root, validation=validation)
        engine(tmp_path, num_sanity_val_steps=0).fit(model, datamodule=data)
        banks.append(model.model.memory_bank)
        thresholds.append(model.post_processor.image_threshold)
    torch.testing.assert_close(banks[0], banks[1], rtol=0, atol=0)
    assert not torch.equal(banks[0], banks[2])  # the seed counts
    torch.testing.assert_close(thresholds[0], thresholds[2], rtol=0, atol=0)  # but not for the thresholds
