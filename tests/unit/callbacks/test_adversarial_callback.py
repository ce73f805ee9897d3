# Copyright (C) 2026 anomalib-fewshot contributors
# SPDX-License-Identifier: Apache-2.0

"""The adversarial loss in anomalib's own models."""

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from anomalib.data import MVTecAD
from anomalib.engine import Engine
from anomalib.models import AnomalibModule, Padim, ReverseDistillation, Stfpm
from anomalib.pre_processing import PreProcessor
from torch import nn
from torchvision.transforms.v2 import Resize

from anomalib_fewshot import AdversarialCallback, CoftAD, FewShot, UniAD

LITE0 = {"backbone": "tf_efficientnet_lite0_packaged", "layers": ["blocks.1", "blocks.2"]}


def stfpm() -> Stfpm:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Stfpm(**LITE0, pre_processor=PreProcessor(Resize((64, 64))), visualizer=False)


def reverse_distillation() -> ReverseDistillation:
    pre_processor = PreProcessor(Resize((64, 64)))
    return ReverseDistillation("resnet18", pre_trained=False, pre_processor=pre_processor, visualizer=False)


def fit(
    model: AnomalibModule,
    root: Path,
    results: Path,
    callback: AdversarialCallback | None = None,
    ckpt_path: Path | None = None,
    max_epochs: int = 2,
) -> Engine:
    engine = Engine(
        callbacks=[callback] if callback else None,
        default_root_dir=results,
        max_epochs=max_epochs,
        accelerator="cpu",
        enable_progress_bar=False,
    )
    engine.fit(model, datamodule=FewShot(MVTecAD(root, "bolt", num_workers=0), k_shot=2), ckpt_path=ckpt_path)
    return engine


def equal(one: nn.Module, two: nn.Module) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one.state_dict().values(), two.state_dict().values(), strict=True))


@pytest.mark.parametrize("make", [stfpm, reverse_distillation])
def test_loss_is_added_at_every_level(make, mvtec_root: Path, tmp_path: Path) -> None:  # noqa: ANN001
    callback, model = AdversarialCallback(weight=0.5), make()
    engine = fit(model, mvtec_root, tmp_path, callback)
    levels = 2 if make is stfpm else 3
    assert len(callback.levels) == levels
    names = {f"{name}_{level}" for name in ("discriminator_loss", "discriminator_accuracy") for level in range(levels)}
    assert names <= set(engine.trainer.callback_metrics)
    assert not model.loss._forward_hooks  # noqa: SLF001  it is taken away at the end


def test_added_loss_is_the_mean_over_levels() -> None:
    callback, model, trainer = AdversarialCallback(weight=0.5, ramp_steps=4), stfpm(), SimpleNamespace(global_step=1)
    twin = AdversarialCallback(weight=0.5, ramp_steps=4)
    callback.setup(trainer, model, "fit")
    model.log_dict = lambda _: None
    teacher, student = ({name: torch.rand(2, 3, 4, 4) for name in "ab"} for _ in range(2))
    found = model.loss(teacher, student)
    plain = model.loss.forward(teacher, student)
    losses = []
    for name in "ab":
        step = twin._make_step(3)  # noqa: SLF001
        losses.append(step(teacher[name].movedim(1, -1), student[name].movedim(1, -1), 1)[0])
    torch.testing.assert_close(found, plain + sum(losses) / 2)
    with torch.no_grad():
        torch.testing.assert_close(model.loss(teacher, student), plain)
    with pytest.raises(TypeError, match="must call `loss` once per step, got a second call by Stfpm"):
        model.loss(teacher, student)


def test_arguments_reach_every_level(mvtec_root: Path, tmp_path: Path) -> None:
    callback = AdversarialCallback(weight=0.5, learning_rate=2e-3, ramp_steps=7, clip_norm=0.3, seed=5)
    fit(stfpm(), mvtec_root, tmp_path, callback)
    for level in callback.levels:
        found = (level.weight, level.ramp_steps, level.clip_norm, level.optimizer.param_groups[0]["lr"])
        assert found == (0.5, 7, 0.3, 2e-3)


def test_failed_training_removes_the_hook(mvtec_root: Path, tmp_path: Path) -> None:
    callback, model = AdversarialCallback(weight=0.5), stfpm()
    model.on_train_batch_end = lambda *_: 1 / 0
    with pytest.raises(ZeroDivisionError):
        fit(model, mvtec_root, tmp_path, callback)
    assert not model.loss._forward_hooks  # noqa: SLF001
    del model.on_train_batch_end
    fit(model, mvtec_root, tmp_path, callback)


def test_each_training_creates_discriminators(mvtec_root: Path, tmp_path: Path) -> None:
    callback = AdversarialCallback(weight=0.5)
    fit(reverse_distillation(), mvtec_root, tmp_path, callback)
    found = []
    for _ in range(2):
        torch.manual_seed(0)
        fit(stfpm(), mvtec_root, tmp_path, callback)
        found.append(callback.levels)
    assert all(torch.equal(one, two) for one, two in zip(*(levels.parameters() for levels in found), strict=True))


def test_only_a_positive_weight_changes_the_training(mvtec_root: Path, tmp_path: Path) -> None:
    models = []
    for callback in (None, AdversarialCallback(weight=0.0), AdversarialCallback(weight=0.5)):
        model = stfpm()
        torch.manual_seed(0)
        fit(model, mvtec_root, tmp_path, callback)
        models.append(model.model)
    assert equal(models[0], models[1])
    assert not equal(models[0], models[2])


def test_checkpoint_works_without_the_callback_and_resumes_with_it(mvtec_root: Path, tmp_path: Path) -> None:
    callback, again = AdversarialCallback(weight=0.5), AdversarialCallback(weight=0.5, seed=1)
    path = fit(stfpm(), mvtec_root, tmp_path, callback).trainer.checkpoint_callback.best_model_path
    state = torch.load(path, weights_only=False)["state_dict"]
    assert set(state) == set(stfpm().state_dict())
    before = [level.get_extra_state()["state"][0]["step"] for level in callback.levels]
    fit(stfpm(), mvtec_root, tmp_path / "again", again, path, max_epochs=3)
    assert [int(level.get_extra_state()["state"][0]["step"]) for level in again.levels] == [int(s) + 1 for s in before]
    for one, two in zip(callback.levels.parameters(), again.levels.parameters(), strict=True):
        torch.testing.assert_close(one, two, rtol=0, atol=3e-4)  # a step of Adam, and not another seed's


def test_unsupported_models(mvtec_root: Path, tmp_path: Path) -> None:
    padim = Padim("resnet18", pre_trained=False, visualizer=False)
    with pytest.raises(TypeError, match="must have a module `loss`, got Padim"):
        fit(padim, mvtec_root, tmp_path, AdversarialCallback())
    small = {"backbone": "resnet10t", "pre_trained": False, "image_size": 64, "num_steps": 1}
    with pytest.raises(TypeError, match="must have a module `loss`, got CoftAD"):
        fit(CoftAD(**small, visualizer=False), mvtec_root, tmp_path, AdversarialCallback())
    untrained = UniAD(**small | {"num_steps": 0}, neighbor_size=3, visualizer=False)
    with pytest.raises(TypeError, match="must call `loss` once per step, got no call by UniAD"):
        fit(untrained, mvtec_root, tmp_path, AdversarialCallback())
    with pytest.raises(TypeError, match=r"two sets of features of equal shapes, .* from CoftAD"):
        fit(CoftAD(**small, published=True, visualizer=False), mvtec_root, tmp_path, AdversarialCallback())


def test_wrong_weight() -> None:
    with pytest.raises(ValueError, match="`weight` must be at least 0, got -1"):
        AdversarialCallback(weight=-1)
