# Copyright (C) 2026 anomalib-fewshot contributors
# SPDX-License-Identifier: Apache-2.0

"""The evaluator of data of several categories."""

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from anomalib.data import ImageBatch
from anomalib.engine import Engine
from anomalib.metrics import AUROC, Evaluator
from anomalib.models import Padim

from anomalib_fewshot import CategoryEvaluator, MultiCategory, MVTecFolder
from anomalib_fewshot.data.support import SupportDataModule

CATEGORIES = {"a/0": "a", "b/0": "b"}


class Several(SupportDataModule):
    """Images of two categories."""

    category_by_path = CATEGORIES
    train_categories = ["a", "b"]  # noqa: RUF012

    def _unused(self, *_: object) -> None: ...

    support_dataloader = normal_images = train_on = _setup = __init__ = _unused


def names(evaluator: Evaluator) -> list[str]:
    return [metric.name for metric in evaluator.test_metrics]


def trainer(datamodule: object) -> SimpleNamespace:
    return SimpleNamespace(datamodule=datamodule, num_devices=1)


def test_default_metrics_equal_anomalib() -> None:
    assert names(CategoryEvaluator()) == names(Padim.configure_evaluator())


def test_metrics_are_split_from_setup_to_teardown() -> None:
    evaluator = CategoryEvaluator(test_metrics=AUROC(fields=["pred_score", "gt_label"], prefix="image_"))
    for _ in range(2):  # an interrupted run has no teardown
        evaluator.setup(trainer(Several()), None, "test")
        assert names(evaluator) == ["image_AUROC", "a/image_AUROC", "b/image_AUROC"]
    evaluator.teardown(trainer(None), None, "test")
    assert names(evaluator) == ["image_AUROC"]


def test_one_reason_is_one_warning_for_all_categories(caplog: pytest.LogCaptureFixture) -> None:
    evaluator = CategoryEvaluator(test_metrics=AUROC(fields=["pred_score", "gt_label"], prefix="image_"))
    several = trainer(Several())
    several.strategy = SimpleNamespace(root_device="cpu", reduce=lambda counts, **_: counts)
    several.barebones = several.sanity_checking = False
    logged = []
    evaluator.log = lambda name, _: logged.append(name)
    for labels in ([False, False], [False, True], [False]):  # of both categories: undefined, defined, undefined again
        evaluator.setup(several, None, "test")
        for path in CATEGORIES:
            scores, images = torch.arange(len(labels)).float(), torch.zeros(len(labels), 3, 2, 2)
            paths = [path] * len(labels)
            batch = ImageBatch(image=images, image_path=paths, pred_score=scores, gt_label=torch.tensor(labels))
            evaluator.on_test_batch_end(several, None, None, batch, 0)
        evaluator.on_test_epoch_end(several, None)
        evaluator.teardown(several, None, "test")
    assert logged == ["image_AUROC", "a/image_AUROC", "b/image_AUROC"]
    names = "Not measured: a/image_AUROC, b/image_AUROC. Reason: "
    assert caplog.messages == [f"{names}all 4 images are normal.", f"{names}all 2 images are normal."]


@pytest.mark.parametrize("datamodule", [None, SimpleNamespace(), SimpleNamespace(category_by_path=CATEGORIES)])
def test_one_category_equals_anomalib(datamodule: object) -> None:
    evaluator = CategoryEvaluator()
    evaluator.setup(trainer(datamodule), None, "test")
    assert names(evaluator) == names(CategoryEvaluator())


def test_pooling_evaluator_is_an_error_before_training(mvtec_root: Path, tmp_path: Path) -> None:
    model = Padim("resnet18", layers=["layer1"], pre_trained=False, n_features=8, visualizer=False)
    engine = Engine(accelerator="cpu", default_root_dir=tmp_path, enable_progress_bar=False)
    datamodule = MultiCategory(MVTecFolder(mvtec_root, num_workers=0), k_shot=2)
    with pytest.raises(ValueError, match="`evaluator` must compute the metrics of each category"):
        engine.fit(model, datamodule=datamodule)
    model.evaluator = CategoryEvaluator()
    engine.fit(model, datamodule=datamodule)
    (figures,) = engine.test(model, datamodule=datamodule, verbose=False)
    mean = (figures["bolt/image_AUROC"] + figures["cloth/image_AUROC"]) / 2
    assert figures["image_AUROC"] == pytest.approx(mean)
