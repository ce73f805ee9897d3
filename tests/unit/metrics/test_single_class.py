# Copyright (C) 2026 anomalib-fewshot contributors
# SPDX-License-Identifier: Apache-2.0

"""Metrics are missing where the scored images do not define them: one class, no image, NaN scores."""

import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from anomalib.data import AnomalibDataModule, ImageBatch, MVTecAD
from anomalib.engine import Engine
from anomalib.metrics import AUPR, AUROC, AnomalibMetric, Evaluator, F1Max, F1Score, MinMax
from anomalib.models import AnomalibModule, Padim
from lightning.pytorch import Callback

from anomalib_fewshot import FewShot, ImageStatistic, MultiCategory, MVTecFolder
from anomalib_fewshot.metrics import ScoredImages

IMAGES, PIXELS = ["pred_score", "gt_label"], ["anomaly_map", "gt_mask"]
BOTH = ScoredImages(normal=2, anomalous=2)
NAN = math.nan


@pytest.mark.parametrize("metric", [AUROC, AUPR, F1Max, F1Score])
def test_metrics_that_require_both_classes(metric: type[AnomalibMetric]) -> None:
    image, pixel = metric(fields=IMAGES), metric(fields=PIXELS)
    normal, anomalous = ScoredImages(normal=2), ScoredImages(anomalous=2)
    assert not BOTH.undefined_reason(image)
    assert not BOTH.undefined_reason(pixel)
    assert normal.undefined_reason(image) == normal.undefined_reason(pixel) == "all {number} images are normal"
    assert anomalous.undefined_reason(image) == "all {number} images are anomalous"
    assert not anomalous.undefined_reason(pixel)
    assert not ScoredImages(unlabelled=2).undefined_reason(image)
    assert ScoredImages().undefined_reason(image) == "no image was scored"


def test_other_metrics_require_images_without_nan() -> None:
    metric = MinMax(fields=["pred_score"])
    assert not ScoredImages(normal=1).undefined_reason(metric)
    assert ScoredImages(normal=1, nan_scores=1).undefined_reason(metric)
    assert ScoredImages().undefined_reason(metric)


def test_nan_only_affects_metrics_of_its_level() -> None:
    scores, maps = ScoredImages(1, 1, nan_scores=1), ScoredImages(1, 1, nan_maps=1)
    assert scores.undefined_reason(F1Score(fields=["pred_label", "gt_label"]))  # the label of NaN is "normal"
    assert not scores.undefined_reason(AUROC(fields=PIXELS))
    assert maps.undefined_reason(AUROC(fields=PIXELS))
    assert not maps.undefined_reason(AUROC(fields=IMAGES))


def test_images_are_counted() -> None:
    scored = ScoredImages()
    maps = torch.zeros(3, 1, 2, 2)
    maps[1:, 0, 0, 0] = NAN
    images = torch.zeros(3, 3, 2, 2)
    scores, labels = torch.tensor([0.1, NAN, 0.3]), torch.tensor([True, False, True])
    scored.update(ImageBatch(image=images, pred_score=scores, gt_label=labels, anomaly_map=maps))
    scored.update(ImageBatch(image=images))
    assert scored == ScoredImages(normal=1, anomalous=2, unlabelled=3, nan_scores=1, nan_maps=2)
    assert scored.number == 6


def test_reasons_of_undefined_metrics() -> None:
    """anomalib's AUROC of anomalous images only is 0 for any scores."""
    auroc = AUROC(fields=IMAGES)
    auroc.update(ImageBatch(image=torch.zeros(2, 3, 1, 1), pred_score=torch.rand(2), gt_label=torch.ones(2).bool()))
    assert auroc.compute() == 0


def padim(**arguments) -> Padim:
    torch.manual_seed(0)
    return Padim("resnet18", layers=["layer1"], pre_trained=False, n_features=8, visualizer=False, **arguments)


def statistic() -> ImageStatistic:
    return ImageStatistic(image_size=32, visualizer=False)


@pytest.fixture
def figures(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> Callable[..., tuple[dict[str, float], list[str]]]:
    """Return a function that fits and tests a model, and returns its metrics and the warnings about missing ones."""

    def run(model: AnomalibModule, datamodule: AnomalibDataModule, **trainer) -> tuple[dict[str, float], list[str]]:
        engine = Engine(accelerator="cpu", default_root_dir=tmp_path, enable_progress_bar=False, **trainer)
        engine.fit(model, datamodule=datamodule)
        (metrics,) = engine.test(model, datamodule=datamodule, verbose=False) or ({},)
        assert all(math.isfinite(value) for value in metrics.values())
        return metrics, [text for text in caplog.messages if text.startswith("Not measured")]

    return run


@pytest.mark.parametrize("make", [statistic, padim])
def test_scored_images_decide_which_metrics_are_defined(make: Callable, mvtec_root: Path, figures: Callable) -> None:
    """A part of the test images may be of one class though all are of both."""
    source = MVTecFolder(mvtec_root, "bolt", num_workers=0, eval_batch_size=2, val_split_mode="none")
    model, datamodule = make(), FewShot(source, k_shot=3)
    metrics, (warning,) = figures(model, datamodule, limit_test_batches=2)
    assert not any(name.startswith("image_") for name in metrics)
    assert "image_AUROC, image_F1Score" in warning
    assert "all 4 images are normal" in warning
    metrics, _ = figures(model, datamodule)  # the metrics are restored and reset
    assert {"image_AUROC", "image_F1Score"} <= set(metrics)
    again, _ = figures(make(), datamodule)
    assert again == metrics


@pytest.mark.parametrize("evaluator", [True, Evaluator(AUROC(fields=IMAGES), AUROC(fields=IMAGES, prefix="image_"))])
def test_nan_scores_have_no_auroc(evaluator: Evaluator | bool, mvtec_root: Path, figures: Callable) -> None:
    """Padim has no covariance of one image."""
    source = MVTecFolder(mvtec_root, "bolt", num_workers=0)
    metrics, (warning, *_) = figures(padim(evaluator=evaluator), FewShot(source, k_shot=1))
    assert not any(name.startswith("image_") for name in metrics)
    for part in ("image_AUROC", "8 of 8 images are NaN", "Padim", "--data.k_shot 2"):
        assert part in warning


def test_padim_with_two_images(mvtec_root: Path, figures: Callable) -> None:
    metrics, warnings = figures(padim(), FewShot(MVTecFolder(mvtec_root, "bolt", num_workers=0), k_shot=2))
    assert "image_AUROC" in metrics
    assert warnings == []


def test_test_without_images_is_a_warning(mvtec_root: Path, figures: Callable) -> None:
    datamodule = FewShot(MVTecFolder(mvtec_root, "bolt", num_workers=0), k_shot=2)
    metrics, (warning,) = figures(statistic(), datamodule, limit_test_batches=0)
    assert metrics == {}
    assert "limit_test_batches" in warning


def test_mean_excludes_categories_without_scores(mvtec_root: Path, figures: Callable) -> None:
    source = MVTecFolder(mvtec_root, num_workers=0, eval_batch_size=8)
    metrics, (warning,) = figures(statistic(), MultiCategory(source, k_shot=2), limit_test_batches=1)
    assert set(metrics) == {"image_AUROC", "image_F1Score", "bolt/image_AUROC", "bolt/image_F1Score"}
    assert metrics["image_AUROC"] == metrics["bolt/image_AUROC"]
    assert "cloth/image_AUROC" in warning
    assert "no image was scored" in warning


def test_runs_without_this_package_are_not_changed(mvtec_root: Path, figures: Callable) -> None:
    source = MVTecAD(mvtec_root, "bolt", num_workers=0, eval_batch_size=2)
    metrics, warnings = figures(padim(), source, limit_test_batches=2)
    assert metrics["image_AUROC"] == 0
    assert warnings == []


def test_metrics_are_restored_after_an_error(mvtec_root: Path, tmp_path: Path) -> None:
    model, datamodule = padim(), FewShot(MVTecFolder(mvtec_root, "bolt", num_workers=0), k_shot=1)
    before = [metric.name for metric in model.evaluator.test_metrics]

    class Interrupt(Callback):
        def on_test_epoch_end(self, *_: object) -> None:
            raise RuntimeError

    engine = Engine(accelerator="cpu", default_root_dir=tmp_path, enable_progress_bar=False)
    engine.fit(model, datamodule=datamodule)
    engine.trainer.callbacks.append(Interrupt())
    with pytest.raises(RuntimeError):
        engine.test(model, datamodule=datamodule, verbose=False)
    assert [metric.name for metric in model.evaluator.test_metrics] == before
