# Copyright (C) 2026 anomalib-fewshot contributors
# SPDX-License-Identifier: Apache-2.0

"""Thresholds from the support of anomalib's own models."""

import logging
from pathlib import Path

import pytest
import torch
from anomalib.data import MVTecAD
from anomalib.engine import Engine
from anomalib.models import AnomalibModule, MHPatchcore, Padim, Patchcore, Stfpm
from lightning.pytorch import seed_everything

from anomalib_fewshot import FewShot, ImageStatistic, SupportPostProcessor, UniAD

LAYERS = {"backbone": "tf_efficientnet_lite0_packaged", "layers": ["blocks.1", "blocks.2"], "visualizer": False}


def patchcore(**arguments) -> Patchcore:
    model = Patchcore(**LAYERS, coreset_sampling_ratio=1.0, num_neighbors=1, **arguments)  # nothing is drawn
    model.pre_processor.transform.transforms[0].size = [64, 64]
    return model


def fit(model: AnomalibModule, results: Path, data: FewShot) -> Engine:
    engine = Engine(default_root_dir=results, enable_progress_bar=False, accelerator="cpu", max_epochs=1)
    engine.fit(model, datamodule=data)
    return engine


def bolt(root: Path, **arguments) -> FewShot:
    return FewShot(MVTecAD(root, "bolt", num_workers=0), **{"k_shot": 3} | arguments)


@pytest.mark.parametrize("own", [False, True])
def test_threshold_equals_a_leave_one_out_loop(own: bool, mvtec_root: Path, tmp_path: Path) -> None:
    model = patchcore(post_processor=SupportPostProcessor() if own else True)
    data = bolt(mvtec_root)
    engine = fit(model, tmp_path, data)
    names, held_out = sorted(data.manifest.images), []
    support = model.pre_processor.transform(next(iter(data.support_dataloader())).image)
    for index in range(3):
        other = patchcore()
        fit(other, tmp_path, bolt(mvtec_root, support=names[:index] + names[index + 1 :], validation="source"))
        with torch.no_grad():
            held_out.append(other.eval().model(support[index, None]))
    scores = torch.cat([batch.pred_score for batch in held_out])
    torch.testing.assert_close(model.post_processor.image_threshold, scores.max(), rtol=1e-4, atol=1e-4)
    highest = max(batch.anomaly_map.max() for batch in held_out)
    torch.testing.assert_close(model.post_processor.pixel_threshold, highest, rtol=1e-4, atol=1e-4)
    assert len(model.model.memory_bank) == 3 * 256  # the model itself is of all images
    arguments = {"post_processor": SupportPostProcessor()} if own else {}
    loaded = Patchcore.load_from_checkpoint(engine.best_model_path, **arguments)
    torch.testing.assert_close(loaded.post_processor.image_threshold, model.post_processor.image_threshold)
    (result,) = engine.test(model, datamodule=data, verbose=False)
    assert result["image_F1Score"] > 0.8


def test_threshold_with_appended_images_equals_a_leave_one_out_loop(mvtec_root: Path, tmp_path: Path) -> None:
    """Each fit contains all unlabeled images, and only the support images are scored."""
    model = patchcore()
    data = bolt(mvtec_root, k_shot=2, unlabeled=4, append_unlabeled=True)
    fit(model, tmp_path, data)
    assert not hasattr(data, "val_data")
    names = sorted(data.manifest.images)
    support = model.pre_processor.transform(next(iter(data.support_dataloader())).image)
    scores = []
    for index in range(2):
        other = patchcore()
        others = [names[1 - index], *data.manifest.unlabeled]
        fit(other, tmp_path, bolt(mvtec_root, support=others, validation="source"))
        with torch.no_grad():
            scores.append(other.eval().model(support[index, None]).pred_score)
    torch.testing.assert_close(model.post_processor.image_threshold, torch.cat(scores).max(), rtol=1e-4, atol=1e-4)
    assert len(model.model.memory_bank) == 6 * 256


def test_one_support_image_is_scored_by_a_fit_to_the_appended_images(mvtec_root: Path, tmp_path: Path) -> None:
    model = patchcore()
    fit(model, tmp_path, bolt(mvtec_root, k_shot=1, unlabeled=2, append_unlabeled=True))
    assert model.post_processor.image_threshold.isfinite()
    assert len(model.model.memory_bank) == 3 * 256


@pytest.mark.parametrize(
    ("cls", "arguments"),
    [(Padim, {"n_features": 8}), pytest.param(MHPatchcore, {}, marks=pytest.mark.slow)],
)
def test_model_is_not_changed(
    cls: type[AnomalibModule],
    arguments: dict[str, int],
    mvtec_root: Path,
    tmp_path: Path,
) -> None:
    """Also of one that passes over the images three times."""
    states, thresholds = [], []
    for validation in ("support", "source"):
        seed_everything(0)
        model = cls(**LAYERS, **arguments)
        model.pre_processor.transform.transforms[0].size = [64, 64]
        fit(model, tmp_path, bolt(mvtec_root, validation=validation))
        states.append({name: value for name, value in model.state_dict().items() if "post_processor" not in name})
        thresholds.append(model.post_processor.image_threshold)
    torch.testing.assert_close(*states, rtol=0, atol=0)
    assert thresholds[0].isfinite()
    assert thresholds[0] != thresholds[1]


def test_two_images_are_too_few(mvtec_root: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A Gaussian of one picture is none: the threshold comes from a validation, as before."""
    model = Padim(**LAYERS, n_features=8)
    fit(model, tmp_path, bolt(mvtec_root, k_shot=2))
    assert model.post_processor.image_threshold.isfinite()
    assert "The thresholds of Padim cannot be calibrated on 2 support images" in caplog.text


def test_missing_threshold_is_a_warning(mvtec_root: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    source = MVTecAD(mvtec_root, "bolt", num_workers=0, val_split_mode="none")
    fit(Padim(**LAYERS, n_features=8), tmp_path, FewShot(source, k_shot=2))
    assert "Padim has no threshold, so predicted labels are not meaningful" in caplog.text
    assert "fitted to the validation images" not in caplog.text


def test_model_calibrated_on_training_images_has_one_warning(
    mvtec_root: Path,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    source = MVTecAD(mvtec_root, "bolt", num_workers=0, val_split_mode="none")
    model = UniAD("resnet10t", pre_trained=False, image_size=64, num_steps=1, dim=16, num_heads=2, neighbor_size=3)
    fit(model, tmp_path, FewShot(source, k_shot=2))
    assert "calibrated on 2 good images that were used in training" in caplog.text
    assert "cannot be calibrated on" not in caplog.text


def test_trained_model_uses_validation_images(
    mvtec_root: Path,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    data, model = bolt(mvtec_root), Stfpm(**LAYERS)
    engine = fit(model, tmp_path, data)
    assert len(data.val_data) == 8  # MVTecAD's are the test images
    engine.test(model, datamodule=data, verbose=False)
    assert caplog.text.count("The thresholds of Stfpm cannot be calibrated on 3 support images") == 1
    engine.test(model, datamodule=bolt(mvtec_root), verbose=False)  # WinCLIP, for one, is never fitted
    assert caplog.text.count("The thresholds of Stfpm cannot be calibrated on 3 support images") == 2


@pytest.mark.parametrize("validation", ["support", "source"])
def test_models_of_this_package_use_the_support_set_by_default(
    validation: str,
    mvtec_root: Path,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO, "anomalib_fewshot")
    model, data = ImageStatistic(visualizer=False), bolt(mvtec_root, validation=validation)
    fit(model, tmp_path, data)
    assert hasattr(data, "val_data") is (validation == "source")
    assert (model.post_processor.scheme is None) is (validation == "source")
    assert ("Threshold calibrated on" in caplog.text) is (validation == "support")


def test_wrong_validation(mvtec_root: Path) -> None:
    with pytest.raises(ValueError, match=r"`validation` must be one of \('support', 'source'\), got 'test'"):
        bolt(mvtec_root, validation="test")
