# Copyright (C) 2026 anomalib-fewshot contributors
# SPDX-License-Identifier: Apache-2.0

# ruff: noqa: ANN401, D101, D102  the name of each small model says which rule it breaks

"""The conformance checks: a correct model, a wrong model for each check, and the models of this package."""

import socket
from contextlib import suppress
from itertools import count
from typing import Any

import pytest
import torch
from anomalib.data import Batch, InferenceBatch
from anomalib.models import Padim
from anomalib.models.components import AnomalibModule
from anomalib.pre_processing import PreProcessor
from lightning.pytorch.utilities.types import STEP_OUTPUT
from torch import nn
from torch.nn import functional as F  # noqa: N812
from torchvision.transforms.v2 import Resize

from anomalib_fewshot import CoftAD, RegAD, UniAD
from anomalib_fewshot.models.components import FittedMixin
from anomalib_fewshot.post_processing import CalibrationScheme, CalibrationScores
from anomalib_fewshot.pre_processing import ExportablePreProcessor
from anomalib_fewshot.testing import CHECKS, EXPORTS, Trial, check_fewshot_model, checks, fewshot_checks

SMALL = {"image_size": 64, "backbone": "resnet10t", "pre_trained": False}
OURS = {
    CoftAD: {"num_steps": 2},
    RegAD: {"max_epochs": 2},
    UniAD: {"num_steps": 2, "batch_size": 2, "dim": 32, "num_layers": 1, "neighbor_size": 3},
}


class Distance(nn.Module):
    """Distance of each pixel from the mean color of the support."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(3, 1, 1))
        self.mean: torch.Tensor

    def forward(self, images: torch.Tensor) -> InferenceBatch:
        maps = (images - self.mean).abs().mean(1, keepdim=True)
        return InferenceBatch(pred_score=maps.mean((1, 2, 3)), anomaly_map=maps)


class Correct(FittedMixin, AnomalibModule):
    """Model that passes all checks."""

    def __init__(self, image_size: tuple[int, int] = (48, 64), visualizer: bool = True) -> None:
        super().__init__(pre_processor=self.configure_pre_processor(image_size), visualizer=visualizer)
        self.model = Distance()

    @staticmethod
    def configure_pre_processor(image_size: tuple[int, int] | None = None) -> PreProcessor:
        return ExportablePreProcessor(Resize(image_size or (48, 64), antialias=True))

    def training_step(self, batch: Batch, batch_idx: int) -> STEP_OUTPUT:
        del batch, batch_idx
        return self.zero_loss()

    def fit(self) -> CalibrationScores:
        images = torch.cat(list(self.support()))
        self.model.mean.copy_(images.mean((0, 2, 3))[:, None, None] + self.noise())
        return CalibrationScores(CalibrationScheme.LEAVE_ONE_OUT, [self.model(images)])

    def noise(self) -> float:
        """Return an offset. Wrong models override it."""
        return 0.0

    @property
    def trainer_arguments(self) -> dict[str, Any]:
        return {"max_epochs": 1, "num_sanity_val_steps": 0, "devices": 1}


class WithoutNumbers(Correct):
    def predict_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> STEP_OUTPUT:
        batch = super().predict_step(batch, batch_idx, dataloader_idx)
        batch.pred_score[0] = float("nan")
        return batch


class SmallMap(Correct):
    def predict_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> STEP_OUTPUT:
        batch = super().predict_step(batch, batch_idx, dataloader_idx)
        return batch.update(anomaly_map=F.avg_pool2d(batch.anomaly_map.float(), 2))


class Unseeded(Correct):
    numbers = count()

    def noise(self) -> float:
        return next(self.numbers) / 10


class GloballySeeded(Correct):
    def noise(self) -> float:
        return float(torch.rand(()))


class OrderOfImages(Correct):
    """Weight the score by the position in the batch."""

    def predict_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> STEP_OUTPUT:
        weights = 1 + torch.arange(len(batch.image)) / 10
        batch = super().predict_step(batch, batch_idx, dataloader_idx)
        return batch.update(pred_score=batch.pred_score * weights)


class OrderOfSupport(Correct):
    def noise(self) -> float:
        names = self.trainer.datamodule.support
        return 0.0 if names is None else int(names[0].removesuffix(".png")) / 10


class FittedInTest(Correct):
    def on_test_start(self) -> None:
        self.model.mean += 0.1


class FittedInPredict(Correct):
    def on_predict_start(self) -> None:
        self.register_buffer("count", torch.ones(1))


class Forgetful(Correct):
    """Store the fitted mean outside of the buffers."""

    def __init__(self, image_size: tuple[int, int] = (48, 64), visualizer: bool = True) -> None:
        super().__init__(image_size, visualizer)
        mean = self.model.mean
        del self.model.mean
        self.model.mean = mean


class BatchMean(Correct):
    def predict_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> STEP_OUTPUT:
        batch = super().predict_step(batch, batch_idx, dataloader_idx)
        return batch.update(pred_score=batch.pred_score - batch.pred_score.mean())


class ScoredOutsideForward(Correct):
    def predict_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> STEP_OUTPUT:
        batch = super().predict_step(batch, batch_idx, dataloader_idx)
        return batch.update(pred_score=batch.pred_score**2)


class OtherwiseExported(Correct):
    """Return other scores in an export."""

    def forward(self, batch: torch.Tensor, *args: Any, **kwargs: Any) -> InferenceBatch:
        result = super().forward(batch, *args, **kwargs)
        exported = torch.onnx.is_in_onnx_export() or torch.compiler.is_exporting()
        return result._replace(pred_score=result.pred_score + 0.1) if exported else result


class Online(Correct):
    def noise(self) -> float:
        with suppress(OSError):
            socket.create_connection(("weights.invalid", 443), timeout=1)
        return 0.0


WRONG = [
    (checks.check_scores_are_finite, WithoutNumbers, "finite score, got 1 "),
    (
        checks.check_anomaly_map_has_the_size_of_the_image,
        SmallMap,
        r"anomaly maps .*\(48, 64\), got \(24, 32\)",
    ),
    (checks.check_same_seed_gives_the_same_scores, Unseeded, "same scores in two trainings"),
    (checks.check_global_seed_has_no_influence, GloballySeeded, "`seed_everything`.* argument `seed`"),
    (checks.check_order_of_files_has_no_influence, OrderOfImages, "order of the predicted images"),
    (checks.check_order_of_files_has_no_influence, OrderOfSupport, "order of the support set"),
    (checks.check_test_and_predict_change_no_weights, FittedInTest, "in `test`, got a changed 'model.mean'"),
    (checks.check_test_and_predict_change_no_weights, FittedInPredict, "in `predict`, got a changed 'count'"),
    (checks.check_checkpoint_gives_equal_scores, Forgetful, "after its checkpoint is loaded, .* buffers"),
    (checks.check_batch_size_has_no_influence, BatchMean, "with batch size 1, "),
    (checks.check_torch_export_agrees_with_predict, ScoredOutsideForward, "after `export_type=torch`, .* `forward`"),
    (checks.check_onnx_export_agrees_with_predict, OtherwiseExported, "after `export_type=onnx`, .* difference of 0.1"),
    (checks.check_needs_no_network, Online, r"offline, got a connection to .*weights.invalid"),
]


def slow_if_onnx(check: Any, *others: Any) -> Any:
    """Mark checks of the ONNX export, which takes seconds."""
    return pytest.param(check, *others, marks=pytest.mark.slow if "onnx" in check.__name__ else ())


@pytest.mark.parametrize("check", map(slow_if_onnx, fewshot_checks(Correct, k_shots=[1, 2])))
def test_correct_model_passes(check: checks.FewShotCheck) -> None:
    check()


@pytest.mark.parametrize(("check", "model", "message"), [slow_if_onnx(*case) for case in WRONG])
def test_wrong_model_is_caught(check: Any, model: type[AnomalibModule], message: str) -> None:
    with pytest.raises(AssertionError, match=message) as caught:
        check(Trial(model))
    assert str(caught.value).startswith(f"{model.__name__} must ")
    assert "\n" not in str(caught.value)


def test_there_is_a_wrong_model_for_each_check() -> None:
    assert {check for check, *_ in WRONG} == {*CHECKS, *EXPORTS}


def test_message_lists_all_failures() -> None:
    with pytest.raises(AssertionError) as caught:
        check_fewshot_model(
            GloballySeeded,
            k_shots=[1, 2],
            expected_failures={"check_onnx_export_agrees_with_predict": "It takes seconds."},
        )
    assert str(caught.value).count("seed_everything") == 2
    assert len(str(caught.value).splitlines()) == 2


def test_expected_failure_is_skipped() -> None:
    reasons = dict.fromkeys(("check_global_seed_has_no_influence", "check_onnx_export_agrees_with_predict"), "Known.")
    check_fewshot_model(GloballySeeded, k_shots=[2], expected_failures=reasons)


def test_expected_failure_must_be_a_check() -> None:
    with pytest.raises(ValueError, match=r"`expected_failures` must name checks, got \['check_nothing'\]"):
        check_fewshot_model(Correct, expected_failures={"check_nothing": ""})


def test_model_that_cannot_be_made_is_named_with_its_error() -> None:
    with pytest.raises(AssertionError, match="scores_are_finite-k2: TypeError: .*no_such_argument"):
        check_fewshot_model(Correct, k_shots=[2], no_such_argument=1)


def test_exports_are_checked_for_the_last_k_only() -> None:
    names = [check.__name__ for check in fewshot_checks(Correct, k_shots=[1, 4])]
    assert [name for name in names if "export" in name] == [
        "torch_export_agrees_with_predict-k4",
        "onnx_export_agrees_with_predict-k4",
    ]
    assert len(names) == 2 * len(CHECKS) + 2


def test_other_errors_within_the_check_of_the_network_are_not_hidden() -> None:
    with pytest.raises(TypeError, match="no_such_argument"):
        checks.check_needs_no_network(Trial(Correct, no_such_argument=1))


@pytest.mark.slow
@pytest.mark.parametrize("model", OURS)
def test_models_of_this_package_pass(model: type[AnomalibModule]) -> None:
    check_fewshot_model(model, **SMALL | OURS[model])


@pytest.mark.slow
def test_padim_draws_from_the_global_seed() -> None:
    """It samples channels, and its backbone here is initialized from the global seed."""
    arguments = {"backbone": "resnet10t", "layers": ["layer1"], "pre_trained": False, "n_features": 20}
    with pytest.raises(AssertionError) as caught:
        check_fewshot_model(Padim, k_shots=[4], **arguments)
    assert "seed_everything" in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1
