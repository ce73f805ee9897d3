# Copyright (C) 2026 anomalib-fewshot contributors
# SPDX-License-Identifier: Apache-2.0

"""RegAD's models, on small untrained backbones."""

import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from anomalib.data import AnomalibDataModule, MVTecAD
from anomalib.engine import Engine
from anomalib.models.components import GaussianBlur2d
from anomalib.pre_processing import PreProcessor
from lightning.pytorch import seed_everything
from torch.nn import functional as F  # noqa: N812
from torchvision.transforms.v2 import Resize

from anomalib_fewshot import FewShot, ImageStatistic, MultiCategory, RegAD
from anomalib_fewshot.errors import ArgumentError, CheckpointMismatchError, NotFittedError, SupportError
from anomalib_fewshot.models.components import NUM_FIXED_VIEWS
from anomalib_fewshot.models.reg_ad.density import PositionGaussian
from anomalib_fewshot.models.reg_ad.sources import deepest_features, similarities
from anomalib_fewshot.models.reg_ad.stn import warp
from anomalib_fewshot.models.reg_ad.support_maps import SupportMaps
from anomalib_fewshot.models.reg_ad.torch_model import RegADModel, support_features


def small(**arguments) -> RegAD:
    settings = {"backbone": "resnet10t", "pre_trained": False, "image_size": 64, "augment_support": False}
    settings |= {"max_epochs": None if "network" in arguments else 2}
    return RegAD(**settings | arguments, visualizer=False)


def torch_model(name: str = "resnet10t", image_size: tuple[int, int] = (64, 96), **arguments) -> RegADModel:
    settings = {"layers": None, "pre_trained": False, "weights": None, "stn_mode": "rotation_scale"}
    settings |= {"regularization": 0.01, "freeze_batch_norm": False}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return RegADModel(name, image_size=image_size, **settings | arguments).eval()


def turn(model: RegADModel, size: float = 0.1) -> None:
    """Let the spatial transformers do something."""
    for number, transformer in enumerate(model.trunk.transformers):
        torch.nn.init.constant_(transformer.localization[-1].bias, size * (number + 1))


def images(count: int = 3, size: tuple[int, int] = (64, 96), seed: int = 0) -> torch.Tensor:
    return torch.rand(count, 3, *size, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def fit(model: RegADModel, *batches: torch.Tensor) -> None:
    """Fit the density to images as they are."""
    with torch.no_grad():
        model.density.fit(map(model.embed, batches), sum(map(len, batches)))


def few_shot(root: Path, category: str = "bolt", k_shot: int = 2, **arguments) -> FewShot:
    return FewShot(MVTecAD(root, category, num_workers=0, **arguments), k_shot=k_shot)


def others_of(root: Path, target: str, k_shot: int = 2) -> MultiCategory:
    source = MVTecAD(root, target, train_batch_size=5, num_workers=0)
    return MultiCategory(source, ["bolt", "cloth"], target=target, k_shot=k_shot)


def engine(results: Path) -> Engine:
    return Engine(default_root_dir=results, enable_progress_bar=False, accelerator="cpu")


def train(model: RegAD, datamodule: AnomalibDataModule, results: Path) -> str:
    runner = engine(results)
    runner.fit(model, datamodule=datamodule)
    return str(runner.trainer.checkpoint_callback.best_model_path)


def scores(model: RegAD, size: int = 64) -> torch.Tensor:
    with torch.no_grad():
        return model.eval().model(images(4, (size, size))).pred_score


@pytest.mark.parametrize("name", ["resnet10t", "tf_efficientnet_lite0", "mobilenetv3_small_100"])
def test_shapes_and_scores(name: str) -> None:
    model = torch_model(name)
    turn(model)
    with torch.no_grad():
        fit(model, *images().split(2))
        features, result = model.embed(images()), model(images())
    assert features.shape == (3, sum(model.trunk.channels), 16, 24)
    assert result.anomaly_map.shape == (3, 1, 64, 96)
    torch.testing.assert_close(result.pred_score, result.anomaly_map.flatten(1).max(1).values)
    distance = F.interpolate(model.density(features)[:, None], (64, 96), mode="bilinear")
    blur = GaussianBlur2d(kernel_size=(33, 33), sigma=(4.0, 4.0), channels=1)
    torch.testing.assert_close(result.anomaly_map, blur(distance))


def test_identity_transforms_give_the_backbone_s_own_maps() -> None:
    model = torch_model()
    maps, expected = images(), []
    with torch.no_grad():
        for stage in model.trunk.stages:
            maps = stage(maps)
            expected.append(maps)
        features = model.embed(images())
    expected = torch.cat([F.interpolate(m, (16, 24), mode="nearest") for m in expected], dim=1)
    torch.testing.assert_close(features, expected, rtol=1e-3, atol=1e-3)


def test_maps_are_warped_back_by_their_own_and_all_earlier_transforms() -> None:
    """Against matrices of 3 x 3, stage by stage."""
    model = torch_model()
    turn(model)
    with torch.no_grad():
        maps, inverse_transforms = model.trunk(images())
        features, own = images(), []
        for stage, transformer in zip(model.trunk.stages, model.trunk.transformers, strict=True):
            features, inverse = transformer(stage(features))
            own.append(torch.cat([inverse, inverse.new_tensor([0, 0, 1]).expand(3, 1, 3)], dim=1))
        back = [own[0], own[1] @ own[0], own[2] @ own[1] @ own[0]]
        for warped, found, expected in zip(maps, inverse_transforms, back, strict=True):
            torch.testing.assert_close(found, expected[:, :2])
            torch.testing.assert_close(warp(warped, found), warp(warped, expected[:, :2]))


@pytest.mark.parametrize(("batch", "num_supports"), [(5, 2), (5, 1), (2, 2), (3, 8)])
def test_supports_are_those_of_a_slow_loop(batch: int, num_supports: int) -> None:
    features = images(batch)
    expected = []
    for query in range(batch):
        others = [features[(query + step) % batch] for step in range(1, min(num_supports, batch - 1) + 1)]
        expected.append(torch.stack(others).mean(0))
    torch.testing.assert_close(support_features(features, num_supports), torch.stack(expected))


def test_each_branch_goes_through_encoder_and_predictor() -> None:
    model = torch_model()
    with torch.no_grad():
        result = model.register(images(4), 2)
        features = model.trunk(images(4))[0][-1]
        torch.testing.assert_close(result.query, model.encoder(features))
        torch.testing.assert_close(result.support, model.encoder(support_features(features, 2)))
        torch.testing.assert_close(result.support_prediction, model.predictor(result.support))
    assert result.query_prediction.shape == (4, 256, 4, 6)


def test_every_parameter_has_a_gradient() -> None:
    model = torch_model().train()
    turn(model, 0.05)
    for transformer in model.trunk.transformers:  # its weights are 0 at first, which gives nothing to what is before
        torch.nn.init.normal_(transformer.localization[-1].weight, std=0.01)
    for module in model.trunk.stages.modules():  # timm starts a residual block with 0
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.ones_(module.weight)
    result = model.register(images(4), 2)
    (result.query_prediction.square().sum() + result.support_prediction.sum()).backward()
    without = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    assert without == []


@pytest.mark.parametrize("alone", [True, False])
@pytest.mark.parametrize("freeze", [True, False])
def test_batch_statistics(
    mvtec_root: Path,
    tmp_path: Path,
    freeze: bool,
    alone: bool,
) -> None:
    """The backbone keeps its own or takes others, as it is told; those of the transformers are always taken."""
    model = small(freeze_batch_norm=freeze)
    before = {key: value.clone() for key, value in model.model.trunk.state_dict().items() if "running_mean" in key}
    train(model, few_shot(mvtec_root) if alone else others_of(mvtec_root, "bolt"), tmp_path)
    after = model.model.trunk.state_dict()
    equal = {key: torch.equal(after[key], value) for key, value in before.items()}
    assert {value for key, value in equal.items() if key.startswith("stages")} == {freeze}
    assert not any(value for key, value in equal.items() if key.startswith("transformers"))


def test_loss_of_a_fixed_batch_falls() -> None:
    model = small()
    optimizer = torch.optim.SGD(model.model.parameters(), lr=0.01, momentum=0.9)
    losses = []
    for _ in range(10):
        result = model.model.register(images(4, (64, 64)), 2)
        predictions = result.query_prediction, result.support_prediction
        loss = model.loss(predictions, (result.query, result.support))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] - 0.05


def test_anomaly_is_where_the_map_is_high() -> None:
    stripes = torch.sin(torch.arange(96) / 3).expand(4, 3, 96, 96) + 0.05 * images(4, (96, 96))
    model = torch_model(image_size=(96, 96))
    fit(model, stripes)
    defect = stripes[:1].clone()
    defect[..., 32:64, 40:72] = -1
    with torch.no_grad():
        result, normal = model(defect), model(stripes[:1])
    top, left = divmod(int(result.anomaly_map.argmax()), 96)
    assert 24 <= top < 72
    assert 32 <= left < 80
    assert result.pred_score > 2 * normal.pred_score


@pytest.mark.parametrize("augment_support", [False, pytest.param(True, marks=pytest.mark.slow)])
@pytest.mark.parametrize("k_shot", [1, 2, 4, 8])
def test_finite_and_deterministic(mvtec_root: Path, tmp_path: Path, k_shot: int, augment_support: bool) -> None:
    results = []
    for seed in (1, 2):
        seed_everything(seed)
        model = small(adversarial_weight=0.1, augment_support=augment_support)
        train(model, few_shot(mvtec_root, k_shot=k_shot), tmp_path)
        results.append(scores(model))
        assert model.model.density.basis.shape[1] == k_shot * (NUM_FIXED_VIEWS if augment_support else 1)
    assert results[0].isfinite().all()
    torch.testing.assert_close(results[0], results[1], rtol=0, atol=0)


def test_another_seed_gives_another_network() -> None:
    first, second, third = (small(seed=seed).model.encoder[0].weight for seed in (0, 0, 1))
    assert torch.equal(first, second)
    assert not torch.equal(first, third)


def test_weight_zero_is_the_plain_method(mvtec_root: Path, tmp_path: Path) -> None:
    """Bit for bit that of a model whose adversarial loss is taken away, and nothing is drawn on the way."""
    states = []
    for plain in (False, True):
        torch.manual_seed(0)
        model = small(adversarial_weight=0.0)
        if plain:
            model.adversarial.forward = lambda first, *_: (first.new_zeros(()), None)
        train(model, few_shot(mvtec_root), tmp_path)
        states.append([*model.model.state_dict().values()])
    assert all(torch.equal(one, two) for one, two in zip(*states, strict=True))
    assert not [name for name, _ in model.named_parameters() if name.startswith("adversarial")]
    model = small(adversarial_weight=0.5)
    train(model, few_shot(mvtec_root), tmp_path)
    assert not all(torch.equal(one, two) for one, two in zip(model.model.state_dict().values(), states[0], strict=True))


def test_training_of_the_adversarial_loss(mvtec_root: Path, tmp_path: Path) -> None:
    model, runner = small(adversarial_weight=0.5), engine(tmp_path)
    before = [p.clone() for p in model.adversarial.parameters()]
    runner.fit(model, datamodule=few_shot(mvtec_root, k_shot=4))
    assert {"discriminator_loss", "discriminator_accuracy", "train_loss", "feature_std"} <= set(
        runner.trainer.callback_metrics,
    )
    assert not any(torch.equal(one, two) for one, two in zip(model.adversarial.parameters(), before, strict=True))
    optimised = {id(p) for group in runner.trainer.optimizers[0].param_groups for p in group["params"]}
    assert not optimised & {id(p) for p in model.adversarial.parameters()}
    loaded = RegAD.load_from_checkpoint(runner.trainer.checkpoint_callback.best_model_path)
    assert loaded.adversarial.get_extra_state()["state"][0]["step"] == 2


def test_checkpoint_of_an_adversarial_training_is_tested_as_a_plain_model(mvtec_root: Path, tmp_path: Path) -> None:
    model, plain = small(adversarial_weight=0.5), small()
    path = train(model, few_shot(mvtec_root), tmp_path)
    engine(tmp_path).test(plain, datamodule=few_shot(mvtec_root), ckpt_path=path)
    torch.testing.assert_close(scores(plain), scores(model), rtol=0, atol=0)


def test_a_fit_without_validation_gets_the_scores_of_held_out_images(
    mvtec_root: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As values: nothing is computed where they are used, and nothing at all where validation images are used."""
    once, found, fits = RegAD.fit, [], []
    monkeypatch.setattr(RegAD, "fit", lambda self: (found.append(once(self)), found[-1])[1])
    density_fit = PositionGaussian.fit
    monkeypatch.setattr(PositionGaussian, "fit", lambda self, *args: (fits.append(self), density_fit(self, *args))[1])
    train(small(max_epochs=0, augment_support=False), few_shot(mvtec_root, k_shot=3), tmp_path)
    assert len(fits) == 4  # of all, and without each image
    assert [len(batch.pred_score) for batch in found[0].batches] == [1, 1, 1]
    assert [len(batch.pred_score) for batch in found[0].batches] == [1, 1, 1]
    data = FewShot(MVTecAD(mvtec_root, "bolt", num_workers=0), k_shot=3, validation="source")
    train(small(max_epochs=0, augment_support=False), data, tmp_path)
    assert found[1].batches == []
    assert len(fits) == 5


@pytest.mark.parametrize("validation", ["support", "source"])
@pytest.mark.parametrize("found", [0.49, 0.51])
def test_a_training_ends_with_one_validation_and_leaves_the_limits_of_the_trainer(
    found: float,
    validation: str,
    mvtec_root: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("anomalib_fewshot.models.reg_ad.lightning_model.similarities", lambda *_: {"cloth": found})
    model = RegAD(image_size=64, max_epochs=3, augment_support=False, visualizer=False)
    source = MVTecAD(mvtec_root, "bolt", train_batch_size=5, num_workers=0)
    data = MultiCategory(source, ["bolt", "cloth"], target="bolt", k_shot=2, validation=validation)
    runner, epochs = engine(tmp_path), []
    model.on_validation_start = lambda: (epochs.append(model.current_epoch), RegAD.on_validation_start(model))
    runner.fit(model, datamodule=data)
    assert runner.trainer.max_epochs == 3
    assert runner.trainer.check_val_every_n_epoch is None
    assert runner.trainer.current_epoch == (3 if found > 0.5 else 1)
    assert epochs == ([runner.trainer.current_epoch - 1] if validation == "source" else [])
    assert model.is_fitted
    assert Path(runner.best_model_path).is_file()


def test_length_rate_and_validation(mvtec_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, runner, fits = small(max_epochs=4, learning_rate=1e-3), engine(tmp_path), []
    once = RegAD.fit
    monkeypatch.setattr(RegAD, "fit", lambda self: (fits.append(self.current_epoch), once(self))[1])
    runner.fit(model, datamodule=others_of(mvtec_root, "bolt"))
    assert runner.trainer.global_step == 8  # ten images in batches of five
    assert fits == [3]  # once, when the training is over
    (group,) = runner.trainer.optimizers[0].param_groups
    assert (group["initial_lr"], group["momentum"], group["weight_decay"]) == (1e-3, 0.9, 0)
    assert group["lr"] == pytest.approx(0)


def test_no_training_leaves_the_network_as_it_is(mvtec_root: Path, tmp_path: Path) -> None:
    model = small(max_epochs=0)
    before = {key: value.clone() for key, value in model.model.trunk.state_dict().items()}
    train(model, others_of(mvtec_root, "bolt"), tmp_path)
    assert all(torch.equal(value, before[key]) for key, value in model.model.trunk.state_dict().items())
    assert scores(model).isfinite().all()
    assert model.seen_categories == []


def test_support_without_views(mvtec_root: Path, tmp_path: Path) -> None:
    model, datamodule = small(max_epochs=0, augment_support=False), few_shot(mvtec_root, k_shot=3)
    train(model, datamodule, tmp_path)
    other = small(max_epochs=0).eval()
    support = torch.cat([batch.image for batch in datamodule.support_dataloader()])
    fit(other.model, model.pre_processor.transform(support))
    torch.testing.assert_close(scores(model), scores(other))
    assert model.model.density.basis.shape[1] == 3


def test_checkpoint_gives_equal_scores(mvtec_root: Path, tmp_path: Path) -> None:
    model = RegAD(image_size=64, max_epochs=1, visualizer=False)
    loaded = RegAD.load_from_checkpoint(train(model, few_shot(mvtec_root), tmp_path))
    assert loaded.hparams["pre_trained"] is False
    assert loaded.fitted_support == model.fitted_support
    torch.testing.assert_close(scores(loaded), scores(model), rtol=0, atol=0)


def test_network_takes_a_support_without_training(mvtec_root: Path, tmp_path: Path) -> None:
    """Density and threshold are those of a direct fit, and its checkpoint stands alone."""
    trained = small(augment_support=True)
    path = train(trained, others_of(mvtec_root, "bolt", k_shot=2), tmp_path)
    model, direct = small(network=path, seed=7, augment_support=True), small(augment_support=True)
    loaded = RegAD.load_from_checkpoint(train(model, few_shot(mvtec_root, k_shot=3), tmp_path))
    Path(path).unlink()
    train(direct, others_of(mvtec_root, "bolt", k_shot=3), tmp_path)
    for name, value in direct.model.state_dict().items():
        torch.testing.assert_close(model.model.state_dict()[name], value, rtol=0, atol=0)
    for name in ("image_threshold", "pixel_threshold", "image_min", "image_max", "pixel_min", "pixel_max"):
        torch.testing.assert_close(getattr(model.post_processor, name), getattr(direct.post_processor, name))
    torch.testing.assert_close(scores(loaded), scores(direct), rtol=0, atol=0)
    assert model.model.density.basis.shape[1] == NUM_FIXED_VIEWS * 3
    assert (loaded.hparams["network"], loaded.max_epochs, loaded.seen_categories) == (None, 0, ["cloth"])
    before = loaded.model.encoder[0].weight.clone()
    train(loaded, few_shot(mvtec_root, k_shot=2), tmp_path)
    assert torch.equal(loaded.model.encoder[0].weight, before)


def test_network_can_be_trained_on(mvtec_root: Path, tmp_path: Path) -> None:
    first = small()
    path = train(first, others_of(mvtec_root, "bolt"), tmp_path)
    model = small(network=path, max_epochs=2)
    torch.testing.assert_close(model.model.encoder[0].weight, first.model.encoder[0].weight, rtol=0, atol=0)
    train(model, few_shot(mvtec_root), tmp_path)
    assert not torch.equal(model.model.encoder[0].weight, first.model.encoder[0].weight)
    assert model.seen_categories == ["cloth"]


@pytest.mark.parametrize("resized_alone", [True, False])
def test_network_brings_its_pre_processing(mvtec_root: Path, tmp_path: Path, resized_alone: bool) -> None:
    pre_processor = PreProcessor(Resize((64, 64), antialias=True)) if resized_alone else False
    path = train(small(pre_processor=pre_processor, max_epochs=0), few_shot(mvtec_root), tmp_path)
    found = small(network=path).pre_processor
    own = PreProcessor(Resize((64, 64)))
    assert small(network=path, pre_processor=own).pre_processor is own
    if resized_alone:
        assert isinstance(found.transform, Resize)
    else:
        assert found is None


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"backbone": "resnet18"}, "`backbone` must be that of `network`, 'resnet10t', got 'resnet18'"),
        ({"layers": [1, 2]}, r"`layers` must be that of `network`, None, got \[1, 2\]"),
        ({"stn_mode": "affine"}, "`stn_mode` must be that of `network`, 'rotation_scale', got 'affine'"),
        ({"image_size": (64, 96)}, r"`image_size` must be .*64.*, got \(64, 96\)"),
    ],
)
def test_network_of_other_arguments(
    mvtec_root: Path,
    tmp_path: Path,
    arguments: dict[str, Any],
    message: str,
) -> None:
    path = train(small(max_epochs=0), few_shot(mvtec_root), tmp_path)
    with pytest.raises(ValueError, match=message):
        small(network=path, **arguments)
    assert small(network=path, image_size=(64, 64)).max_epochs == 0


def test_network_that_is_none(mvtec_root: Path, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="`network` must be a checkpoint of a trained RegAD, got 'no.ckpt'"):
        small(network="no.ckpt")
    path = tmp_path / "model.ckpt"
    path.write_text("no checkpoint", encoding="utf-8")
    with pytest.raises(ValueError, match=r"must be a checkpoint .*model\.ckpt, which cannot be read"):
        small(network=path)
    torch.save({"conv1.weight": torch.ones(1)}, path)
    with pytest.raises(ValueError, match="which has no network. A file of a backbone's weights is given as `weights`"):
        small(network=path)
    torch.save({"state_dict": {"model.conv1.weight": torch.ones(1)}}, path)
    with pytest.raises(ValueError, match="which is one of another model"):
        small(network=path)
    other = train(ImageStatistic(image_size=64, visualizer=False), few_shot(mvtec_root), tmp_path)
    with pytest.raises(ValueError, match="which is one of ImageStatistic"):
        small(network=other)


@pytest.mark.parametrize("verb", ["test", "validate", "predict"])
def test_another_support_is_not_fitted_by_a_test(mvtec_root: Path, tmp_path: Path, verb: str) -> None:
    """The error names the way that fits; the model stays as it was, and its own support is taken."""
    model, runner = small(max_epochs=0), engine(tmp_path)
    path = train(model, few_shot(mvtec_root, k_shot=2), tmp_path)
    expected = scores(model)
    model = small()
    with pytest.raises(
        CheckpointMismatchError,
        match=r"A test does not fit.*`RegAD\(network=CKPT\)` and a fit, or `anomalib train",
    ):
        getattr(runner, verb)(model, datamodule=few_shot(mvtec_root, k_shot=5), ckpt_path=path)
    torch.testing.assert_close(scores(model), expected, rtol=0, atol=0)
    assert getattr(runner, verb)(small(), datamodule=few_shot(mvtec_root, k_shot=2), ckpt_path=path)
    assert getattr(runner, verb)(small(), datamodule=MVTecAD(mvtec_root, "cloth", num_workers=0), ckpt_path=path)


def test_checkpoint_of_another_model(mvtec_root: Path, tmp_path: Path) -> None:
    path = train(ImageStatistic(image_size=64, visualizer=False), few_shot(mvtec_root), tmp_path)
    with pytest.raises(ValueError, match="The checkpoint must be one of RegAD, got one of ImageStatistic"):
        engine(tmp_path).test(small(), datamodule=few_shot(mvtec_root), ckpt_path=path)


@pytest.mark.parametrize("datamodule", [few_shot, lambda root, name: MVTecAD(root, name, num_workers=0)])
def test_seen_category_is_refused(
    mvtec_root: Path,
    tmp_path: Path,
    datamodule: Callable[..., AnomalibDataModule],
) -> None:
    """By a fit and by a test, unless the user knows."""
    path = train(small(), others_of(mvtec_root, "bolt"), tmp_path)
    with pytest.raises(SupportError, match=r"must not have been seen in training, got cloth, one of \['cloth'\]"):
        train(small(network=path), datamodule(mvtec_root, "cloth"), tmp_path)
    known = train(small(network=path, allow_seen=True), datamodule(mvtec_root, "cloth"), tmp_path)
    with pytest.raises(SupportError, match=r"must not have been seen in training, got cloth, one of \['cloth'\]"):
        engine(tmp_path).test(small(), datamodule=datamodule(mvtec_root, "cloth"), ckpt_path=known)
    assert engine(tmp_path).test(small(allow_seen=True), datamodule=datamodule(mvtec_root, "cloth"), ckpt_path=known)


def test_own_support_is_not_seen(mvtec_root: Path, tmp_path: Path) -> None:
    path = train(small(), few_shot(mvtec_root), tmp_path)
    model = small(network=path)
    train(model, few_shot(mvtec_root, k_shot=4), tmp_path)
    assert model.seen_categories == []


def test_similarity_is_that_of_the_most_similar_image() -> None:
    """Of (1, 0) and (0, 2) in the support: 1 and 0 with (3, 0), .6 and .8 with (3, 4), the nearer one."""
    support = [torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 2.0]])]
    others = {"one": [torch.tensor([[3.0, 0.0]])], "two": [torch.tensor([[3.0, 4.0], [-3.0, -4.0]])]}
    assert similarities(lambda x: x, support, others) == pytest.approx({"one": 0.5, "two": 0.7})


def test_categories_are_compared_on_the_device_of_the_model(
    mvtec_root: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    device = torch.device("meta")
    embed = deepest_features("resnet10t", pre_trained=False, weights=None, device=device)
    assert embed(torch.zeros(2, 3, 64, 64, device=device)).shape == (2, 512)
    devices = []

    def record(*arguments: Any) -> Callable[[torch.Tensor], torch.Tensor]:  # noqa: ANN401
        devices.append(arguments[-1])
        return deepest_features(*arguments)

    monkeypatch.setattr("anomalib_fewshot.models.reg_ad.lightning_model.deepest_features", record)
    model = RegAD(image_size=64, max_epochs=1, augment_support=False, visualizer=False)
    train(model, others_of(mvtec_root, "bolt"), tmp_path)
    assert devices == [model.device]


@pytest.mark.parametrize("found", [0.49, 0.51])
def test_network_is_trained_on_what_is_like_the_target(
    found: float,
    mvtec_root: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Else it is the control, to the last bit, and has seen nothing."""
    compared = {}

    def similar(embed: Callable, support: Iterator, others: dict) -> dict[str, float]:
        compared.update({name: sum(len(images) for images in batches) for name, batches in others.items()})
        assert embed(torch.cat([*support])).shape == (2, 320)
        return {"cloth": found}

    monkeypatch.setattr("anomalib_fewshot.models.reg_ad.lightning_model.similarities", similar)
    settings = {"image_size": 64, "augment_support": False, "learning_rate": 1e-2, "visualizer": False}
    model, control = RegAD(max_epochs=2, **settings), RegAD(max_epochs=0, **settings)
    train(model, others_of(mvtec_root, "bolt"), tmp_path)
    train(control, few_shot(mvtec_root), tmp_path)
    assert compared == {"cloth": len(list((mvtec_root / "cloth" / "train" / "good").iterdir()))}
    assert model.seen_categories == (["cloth"] if found > 0.5 else [])
    assert torch.equal(scores(model), scores(control)) == (found < 0.5)
    assert model.trainer.current_epoch == (2 if found > 0.5 else 1)


@pytest.mark.parametrize("arguments", [{"min_similarity": None}, {"pre_trained": False}])
def test_all_categories_are_trained_on_where_none_is_compared(
    arguments: dict[str, Any],
    mvtec_root: Path,
    tmp_path: Path,
) -> None:
    model = RegAD(image_size=64, max_epochs=1, augment_support=False, visualizer=False, **arguments)
    train(model, others_of(mvtec_root, "bolt"), tmp_path)
    assert model.seen_categories == ["cloth"]


@pytest.mark.parametrize("k_shot", [1, 4])
def test_checkpoint_is_fitted_where_there_is_no_validation(mvtec_root: Path, tmp_path: Path, k_shot: int) -> None:
    model = small()
    train(model, few_shot(mvtec_root, k_shot=k_shot, val_split_mode="none"), tmp_path)
    (path,) = tmp_path.rglob("*.ckpt")
    loaded = RegAD.load_from_checkpoint(path)
    assert loaded.post_processor.image_threshold.isfinite()
    torch.testing.assert_close(scores(loaded), scores(model), rtol=0, atol=0)


def test_threshold_without_validation_is_the_highest_score_of_a_held_out_image(
    mvtec_root: Path,
    tmp_path: Path,
) -> None:
    model, datamodule = small(augment_support=False), few_shot(mvtec_root, k_shot=3, val_split_mode="none")
    train(model, datamodule, tmp_path)
    model.eval()
    support = model.pre_processor.transform(torch.cat([batch.image for batch in datamodule.support_dataloader()]))
    expected, held_out = scores(model), []
    with torch.no_grad():
        for index in range(3):
            fit(model.model, support[torch.arange(3) != index])
            held_out.append(model.model(support[index, None]).pred_score)
        fit(model.model, support)
    torch.testing.assert_close(model.post_processor.image_threshold, torch.cat(held_out).max(), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(scores(model), expected)


def test_second_fit_forgets_the_first(mvtec_root: Path, tmp_path: Path) -> None:
    model, other = small(max_epochs=0), small(max_epochs=0)
    train(model, few_shot(mvtec_root, "cloth", k_shot=1), tmp_path)
    train(model, few_shot(mvtec_root, "bolt"), tmp_path)
    train(other, few_shot(mvtec_root, "bolt"), tmp_path)
    torch.testing.assert_close(scores(model), scores(other), rtol=0, atol=0)


def test_collapse_is_said_once(
    mvtec_root: Path,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    model = small(max_epochs=3)
    torch.nn.init.zeros_(model.model.encoder[-1].weight)  # all encodings are the bias
    with caplog.at_level(logging.WARNING):
        train(model, few_shot(mvtec_root), tmp_path)
    assert sum("The encodings have collapsed" in record.getMessage() for record in caplog.records) == 1


def test_training_that_does_not_stay_finite(mvtec_root: Path, tmp_path: Path) -> None:
    with pytest.raises(ArgumentError, match="`learning_rate` must be one at which the training stays finite, got 1"):
        train(small(max_epochs=30, learning_rate=1e12), few_shot(mvtec_root), tmp_path)


@pytest.mark.slow  # the contract has an export of a trained model
def test_exported_graph_is_equal_and_holds_the_inference_alone(mvtec_root: Path, tmp_path: Path) -> None:
    """With transforms that do something, and with the scores as they are."""
    model = small(max_epochs=0, adversarial_weight=0.1, post_processor=False)
    turn(model.model)
    train(model, few_shot(mvtec_root), tmp_path)
    path = model.eval().to_onnx(tmp_path)
    session = onnxruntime.InferenceSession(path)
    batch = (images(3, (64, 64)) + 1) / 2
    with torch.no_grad():
        expected = model(batch)
    for index in range(3):
        found = session.run(["pred_score", "anomaly_map"], {"input": batch[index, None].numpy()})
        np.testing.assert_allclose(found[0], expected.pred_score[index, None], rtol=1e-4, atol=1e-4)
        np.testing.assert_allclose(found[1], expected.anomaly_map[index, None], rtol=1e-4, atol=1e-4)
    weights = [tensor.name for tensor in onnx.load(path).graph.initializer]
    assert any(name.startswith("model.trunk") for name in weights)
    assert not [name for name in weights if name.startswith(("model.encoder", "model.predictor", "adversarial"))]


def test_scoring_before_training(mvtec_root: Path, tmp_path: Path) -> None:
    with pytest.raises(NotFittedError, match="RegAD"):
        engine(tmp_path).test(small(), datamodule=few_shot(mvtec_root))


@pytest.mark.parametrize("max_epochs", [0, 1])
def test_of_plain_data_all_normal_images_are_the_support(mvtec_root: Path, tmp_path: Path, max_epochs: int) -> None:
    model, other = (small(max_epochs=epochs, augment_support=False) for epochs in (max_epochs, 0))
    plain = MVTecAD(mvtec_root, "bolt", num_workers=0)
    assert engine(tmp_path).train(model, datamodule=plain)[0]["image_AUROC"] > 0.5
    train(other, FewShot(MVTecAD(mvtec_root, "bolt", num_workers=0), k_shot=None), tmp_path)
    assert model.model.density.basis.shape == other.model.density.basis.shape
    assert model.fitted_support is not None
    if max_epochs == 0:
        torch.testing.assert_close(scores(model), scores(other), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("augment", [False, True])
def test_held_maps_are_those_of_each_fit(monkeypatch: pytest.MonkeyPatch, augment: bool) -> None:
    model, support = torch_model(), torch.rand(4, 3, 64, 96, generator=torch.Generator().manual_seed(0))
    chosen, densities, calls = torch.tensor([True, False, True, True]), [], []

    def embed(images: torch.Tensor) -> torch.Tensor:
        calls.append(len(images))
        with torch.no_grad():
            return model.embed(images)

    for most in (4, 3):
        monkeypatch.setattr("anomalib_fewshot.models.reg_ad.support_maps.MAX_HELD", most)
        maps = SupportMaps(embed, support, augment, [0.5] * 3, [0.2] * 3)
        for _ in range(2):
            densities.append(PositionGaussian(0.01))
            maps.fit(densities[-1], chosen)
    views = NUM_FIXED_VIEWS if augment else 1
    assert calls == [4] * views + [3] * views * 2  # once of all, or at each fit of those that are chosen
    for density in densities[1:]:
        torch.testing.assert_close(density.mean, densities[0].mean, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(density.basis, densities[0].basis, rtol=1e-3, atol=1e-3)


def test_images_in_several_batches(mvtec_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A large support goes through the network in parts."""
    datamodule = few_shot(mvtec_root, k_shot=10, val_split_mode="none")
    model, other = (small(max_epochs=0, augment_support=False) for _ in range(2))
    train(model, datamodule, tmp_path)
    for module in ("lightning_model", "support_maps"):
        monkeypatch.setattr(f"anomalib_fewshot.models.reg_ad.{module}.MAX_BATCH", 4)
    train(other, datamodule, tmp_path)
    torch.testing.assert_close(scores(other), scores(model), rtol=1e-4, atol=1e-4)
    thresholds = [m.post_processor.image_threshold for m in (other, model)]
    torch.testing.assert_close(*thresholds, rtol=1e-4, atol=1e-4)


def test_data_that_cannot_be_fitted_to_is_refused_before_the_training(mvtec_root: Path, tmp_path: Path) -> None:
    several = MultiCategory(MVTecAD(mvtec_root, "bolt", num_workers=0), ["bolt", "cloth"], k_shot=2)
    model = small()
    with pytest.raises(ValueError, match="must have one category to score, got several"):
        train(model, several, tmp_path)
    assert model.global_step == 0
    plain = MVTecAD(mvtec_root, "bolt", num_workers=0)
    plain.setup()
    with pytest.raises(TypeError, match="must be an anomalib data module, got NoneType"):
        engine(tmp_path).fit(model, train_dataloaders=plain.train_dataloader())
    assert model.global_step == 0


@pytest.mark.parametrize("max_epochs", [0, 2])
def test_barebones(mvtec_root: Path, tmp_path: Path, max_epochs: int) -> None:
    """It refuses what a model must not ask for."""
    model = small(max_epochs=max_epochs)
    runner = Engine(default_root_dir=tmp_path, accelerator="cpu", barebones=True)
    runner.fit(model, datamodule=few_shot(mvtec_root))
    assert model.is_fitted


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"max_epochs": -1}, "`max_epochs` must be at least 0, got -1"),
        ({"num_supports": 0}, "`num_supports` must be at least 1, got 0"),
        ({"image_size": 48}, "`image_size` must be at least 64, 4 times the last stride, got"),
        ({"backbone": "resnet"}, "`backbone` must be the name of a timm model, got 'resnet'"),
        ({"backbone": "vit_tiny_patch16_224"}, "`backbone` must be a convolutional model that runs part after part"),
        ({"stn_mode": "free"}, "`stn_mode` must be one of"),
        ({"regularization": 0}, "`regularization` must be above 0, got 0"),
        ({"adversarial_weight": -1}, "`weight` must not be below 0, got -1"),
        ({"layers": [9]}, "`layers` must be indices of the 5 feature maps of resnet10t, got"),
    ],
)
def test_wrong_arguments(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        small(**arguments)


def test_a_single_image_has_no_support() -> None:
    with pytest.raises(ValueError, match="must be of two images or more, got one"):
        support_features(images(1), 2)
