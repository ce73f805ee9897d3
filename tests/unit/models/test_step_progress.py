# Copyright (C) 2026 anomalib-fewshot contributors
# SPDX-License-Identifier: Apache-2.0

"""The progress bar that counts steps."""

from pathlib import Path

import pytest
from anomalib.data import MVTecAD
from anomalib.engine import Engine
from anomalib.models import Stfpm
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import RichProgressBar

from anomalib_fewshot import CoftAD, FewShot
from anomalib_fewshot.models.components import StepProgress, StepReport, step_progress


class Recorder(Callback):
    """Keeps what the bar shows after every batch."""

    def __init__(self) -> None:
        self.shown: list[tuple[str, float, float | None]] = []

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args) -> None:  # noqa: D102
        del pl_module, args
        task = trainer.progress_bar_callback.train_progress_bar
        self.shown.append((task.description.split("]")[-1].strip(), task.completed, task.total))


@pytest.mark.parametrize("train_batch_size", [2, 1])
def test_bar_counts_steps_over_all_epochs(mvtec_root: Path, tmp_path: Path, train_batch_size: int) -> None:
    recorder = Recorder()
    engine = Engine(default_root_dir=tmp_path, callbacks=[RichProgressBar(leave=True), recorder])
    source = MVTecAD(mvtec_root, "bolt", train_batch_size=train_batch_size, num_workers=0)
    settings = {"pre_trained": False, "image_size": 64, "num_steps": 3, "visualizer": False}
    model = CoftAD("resnet10t", published=True, **settings)
    engine.fit(model, datamodule=FewShot(source, k_shot=2))
    assert recorder.shown == [("Step", step, 3) for step in (1, 2, 3)]


def test_training_by_epochs_keeps_its_bar(mvtec_root: Path, tmp_path: Path) -> None:
    engine = Engine(default_root_dir=tmp_path, callbacks=[StepProgress()], max_epochs=1)
    model = Stfpm(backbone="tf_efficientnet_lite0_packaged", layers=["blocks.2"], visualizer=False)
    engine.fit(model, datamodule=FewShot(MVTecAD(mvtec_root, "bolt", num_workers=0), k_shot=2))
    assert type(engine.trainer.progress_bar_callback) is RichProgressBar


def test_steps_of_a_fit_are_shown_with_their_loss(capsys: pytest.CaptureFixture[str]) -> None:
    with step_progress(2, "Adapting", RichProgressBar()) as on_step:
        on_step(3.0)
        on_step(2.5)
    shown = capsys.readouterr().out
    assert "Adapting" in shown
    assert "2/2" in shown
    assert "loss: 2.500" in shown
    with step_progress(0, "Adapting", None):
        pass
    assert not capsys.readouterr().out


def test_steps_of_a_fit_are_reported_to_another_bar(capsys: pytest.CaptureFixture[str]) -> None:
    reported = []
    with step_progress(2, "Adapting", StepReport(lambda *steps: reported.append(steps))) as on_step:
        on_step(3.0)
        on_step(2.5)
    assert reported == [(1, 2), (2, 2)]
    assert not capsys.readouterr().out
