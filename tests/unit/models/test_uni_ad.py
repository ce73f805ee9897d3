# Copyright (C) 2026 anomalib-fewshot contributors
# SPDX-License-Identifier: Apache-2.0

"""UniAD's models, on small untrained backbones."""

import pickle  # noqa: S403
from copy import deepcopy
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from anomalib.data import AnomalibDataModule, MVTecAD
from anomalib.engine import Engine
from anomalib.pre_processing import PreProcessor
from lightning.pytorch import Callback, LightningModule, Trainer, seed_everything
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import nn
from torch.nn import functional as F  # noqa: N812
from torchvision.transforms.v2 import Normalize

from anomalib_fewshot import FewShot, MultiCategory, UniAD
from anomalib_fewshot.errors import ArgumentError, NotFittedError
from anomalib_fewshot.models.components import NUM_FIXED_VIEWS, fixed_views
from anomalib_fewshot.models.uni_ad import lightning_model
from anomalib_fewshot.models.uni_ad import tokens as tokens_module
from anomalib_fewshot.models.uni_ad.category_scale import CategoryScale
from anomalib_fewshot.models.uni_ad.tokens import TokenCache
from anomalib_fewshot.models.uni_ad.torch_model import UniADModel, adversarial_pair
from anomalib_fewshot.models.uni_ad.transformer import Reconstruction, ReconstructionTransformer

TINY = {"dim": 16, "num_heads": 2, "num_layers": 2, "feedforward_dim": 32, "neighbor_size": 3}


def small(**arguments) -> UniAD:
    settings = {"backbone": "resnet10t", "pre_trained": False, "image_size": 64, "num_steps": 3, "batch_size": 4}
    return UniAD(**settings | TINY | arguments, visualizer=False)


def torch_model(name: str = "resnet10t", image_size: tuple[int, int] = (64, 96), **arguments) -> UniADModel:
    settings = {"layers": None, "pre_trained": False, "weights": None, "norm_power": 0.0, "dropout": 0.1}
    settings |= {"pool_size": 16}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return UniADModel(name, image_size=image_size, **settings | TINY | arguments).eval()


def images(count: int = 3, size: tuple[int, int] = (64, 96), seed: int = 0) -> torch.Tensor:
    return torch.rand(count, 3, *size, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def few_shot(root: Path, category: str = "bolt", k_shot: int | None = 2, **arguments) -> FewShot:
    return FewShot(MVTecAD(root, category, num_workers=0, **arguments), k_shot=k_shot)


def engine(results: Path, **arguments) -> Engine:
    settings = {"enable_progress_bar": False, "accelerator": "cpu", "logger": False}
    return Engine(default_root_dir=results, **settings | arguments)


def train(model: UniAD, datamodule: AnomalibDataModule, results: Path, **arguments) -> str:
    runner = engine(results, **arguments)
    runner.fit(model, datamodule=datamodule)
    return str(runner.trainer.checkpoint_callback.best_model_path)


@torch.no_grad()
def tokens_of(model: UniAD, datamodule: AnomalibDataModule) -> torch.Tensor:
    return model.model.embed(torch.stack([model.pre_processor.transform(i.image) for i in datamodule.train_data]))


def scores(model: UniAD, size: int = 64) -> torch.Tensor:
    with torch.no_grad():
        return model.eval().model(images(4, (size, size))).pred_score


def test_features_of_each_depth_are_divided_by_their_length_to_a_power() -> None:
    model, plain = torch_model(norm_power=0.5), torch_model()
    with torch.no_grad():
        depths = [maps.shape[1] for maps in plain._maps(images())]  # noqa: SLF001
        tokens, halved = plain.embed(images()), model.embed(images())
    expected = [part / part.square().sum(-1, keepdim=True) ** 0.25 for part in tokens.split(depths, dim=-1)]
    torch.testing.assert_close(halved, torch.cat(expected, dim=-1))


@pytest.mark.parametrize("name", ["resnet10t", "tf_efficientnet_lite0", "mobilenetv2_100"])
def test_tokens_are_the_maps_of_all_strides_on_the_last_grid(name: str) -> None:
    model = torch_model(name)
    with torch.no_grad():
        tokens, maps = model.embed(images()), model._maps(images())  # noqa: SLF001
    assert [images().shape[-1] // m.shape[-1] for m in maps] == [2, 4, 8, 16]
    assert tokens.shape == (3, 4 * 6, sum(m.shape[1] for m in maps))
    assert (model.grid, model.channels) == ((4, 6), tokens.shape[-1])
    torch.testing.assert_close(tokens[:, :, -maps[-1].shape[1] :], maps[-1].flatten(2).transpose(1, 2))
    for corner, position in (((0, 0), 0), ((0, -1), 5), ((-1, 0), 18), ((-1, -1), 23)):  # corners lie on corners
        expected = torch.cat([m[:, :, corner[0], corner[1]] for m in maps], dim=1)
        torch.testing.assert_close(tokens[:, position], expected, rtol=1e-4, atol=1e-5)


def test_scores_are_those_of_a_slow_reference() -> None:
    model = torch_model()
    model.token_mean.fill_(0.3)
    model.token_std.fill_(2.0)
    with torch.no_grad():
        tokens, result = (model.embed(images()) - 0.3) / 2, model(images())
        distance = (tokens - model.transformer(tokens).tokens).square().sum(-1).sqrt()
    expected = F.interpolate(distance.view(3, 1, 4, 6), (64, 96), mode="bilinear", align_corners=True)
    torch.testing.assert_close(result.anomaly_map, expected)
    windows = expected[:, 0].unfold(1, 16, 1).unfold(2, 16, 1)
    torch.testing.assert_close(result.pred_score, windows.mean((-2, -1)).flatten(1).amax(1))


def test_pool_that_is_larger_than_the_image_is_the_image() -> None:
    model = torch_model(pool_size=80)
    with torch.no_grad():
        result = model(images())
    expected = result.anomaly_map[:, 0].mean(1).unfold(1, 80, 1).mean(-1).amax(1)
    torch.testing.assert_close(result.pred_score, expected)


def test_backbone_is_frozen() -> None:
    model = small().train()
    assert not any(module.training for module in model.model.stages.modules())
    assert not any(parameter.requires_grad for parameter in model.model.stages.parameters())
    assert model.model.transformer.training
    tokens = model.model.embed(images(2, (64, 64)))
    model.model.transformer(tokens).tokens.square().sum().backward()
    assert all(parameter.grad is None for parameter in model.model.stages.parameters())
    assert all(parameter.grad.abs().sum() > 0 for parameter in model.model.transformer.parameters())


def test_adversarial_pairs() -> None:
    tokens = torch.zeros(2, 4, 5)
    result = Reconstruction(torch.ones(2, 4, 5), [torch.full((2, 4, 3), float(number)) for number in range(4)])
    first, second = adversarial_pair("decoder", tokens, result)
    assert (first.unique().tolist(), second.unique().tolist()) == ([0], [3])
    first, second = adversarial_pair("layers", tokens, result)
    assert first[0, 0].tolist() == [0] * 3 + [1] * 3 + [2] * 3
    assert second[0, 0].tolist() == [1] * 3 + [2] * 3 + [3] * 3
    assert adversarial_pair("reconstruction", tokens, result) == (tokens, result.tokens)


@pytest.mark.parametrize("pair", ["decoder", "layers", "reconstruction"])
def test_training_of_the_adversarial_loss(pair: str, mvtec_root: Path, tmp_path: Path) -> None:
    model, runner = small(adversarial_weight=0.5, adversarial_pair=pair, gradient_clip_val=0.05), engine(tmp_path)
    before = [p.clone() for p in model.adversarial.parameters()]
    runner.fit(model, datamodule=few_shot(mvtec_root))
    assert {"discriminator_loss", "discriminator_accuracy", "train_loss"} <= set(runner.trainer.callback_metrics)
    assert not any(torch.equal(one, two) for one, two in zip(model.adversarial.parameters(), before, strict=True))
    optimised = {id(p) for group in runner.trainer.optimizers[0].param_groups for p in group["params"]}
    assert not optimised & {id(p) for p in model.adversarial.parameters()}
    assert (runner.trainer.gradient_clip_val, model.adversarial.clip_norm) == (0.05, 0.05)


def test_weight_zero_is_the_plain_method(mvtec_root: Path, tmp_path: Path) -> None:
    """Bit for bit that of a model whose adversarial loss is taken away."""
    states = []
    for weight, plain in ((0.0, False), (0.0, True), (0.5, False)):
        model = small(adversarial_weight=weight)
        if plain:
            model.adversarial.forward = lambda first, *_: (first.new_zeros(()), None)
        train(model, few_shot(mvtec_root), tmp_path)
        states.append([*model.model.state_dict().values()])
    assert all(torch.equal(one, two) for one, two in zip(states[0], states[1], strict=True))
    assert not all(torch.equal(one, two) for one, two in zip(states[0], states[2], strict=True))


class Draws:
    """What each step of a training draws and compares."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.steps: list[dict[str, Any]] = []
        self.cached: list[torch.Tensor] = []
        get, jitter, loss = TokenCache.get, lightning_model.feature_jitter, nn.MSELoss.forward
        transform = ReconstructionTransformer.forward

        def record_samples(cache: TokenCache, paths: list[str], views: list[int]) -> torch.Tensor:
            self.cached = [cache.tokens]
            tokens = get(cache, paths, views)
            self.steps.append({"paths": paths, "pairs": [*zip(paths, views, strict=True)], "sampled": tokens})
            return tokens

        def jittered(tokens: torch.Tensor, scale: float, rng: torch.Generator) -> torch.Tensor:
            noisy = jitter(tokens, scale, rng)
            self.steps[-1] |= {"clean": tokens, "noisy": noisy}
            return noisy

        def transformed(model: ReconstructionTransformer, tokens: torch.Tensor) -> Reconstruction:
            if model.training:
                self.steps[-1] |= {"input": tokens}
            return transform(model, tokens)

        def compared(module: nn.MSELoss, found: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
            self.steps[-1] |= {"found": found, "target": target}
            return loss(module, found, target)

        monkeypatch.setattr(TokenCache, "get", record_samples)
        monkeypatch.setattr(lightning_model, "feature_jitter", jittered)
        monkeypatch.setattr(ReconstructionTransformer, "forward", transformed)
        monkeypatch.setattr(nn.MSELoss, "forward", compared)


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
@pytest.mark.parametrize("augment_support", [True, False])
def test_cache_changes_nothing(
    augment_support: bool,
    precision: str,
    mvtec_root: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """In memory, in a file, or without: each step has the same tokens, and the trained model is the same."""
    results, steps, folders = [], [], []
    temporary, jitter = tokens_module.TemporaryDirectory, lightning_model.feature_jitter
    monkeypatch.setattr(
        tokens_module,
        "TemporaryDirectory",
        lambda **arguments: folders.append(1) or temporary(**arguments),
    )
    monkeypatch.setattr(
        lightning_model,
        "feature_jitter",
        lambda tokens, *arguments: steps.append(tokens) or jitter(tokens, *arguments),
    )
    for settings in ({}, {"cache_limit": 0.0}, {"cache_tokens": False}):
        model = small(augment_support=augment_support, warmup_steps=0, **settings)
        train(model, few_shot(mvtec_root, k_shot=3, train_batch_size=2), tmp_path, precision=precision)
        results.append(scores(model))
    assert len(folders) == 1
    assert torch.equal(results[0], results[1])
    torch.testing.assert_close(results[2], results[0], rtol=1e-4, atol=1e-4)
    for cached, computed in zip(steps[:3], steps[6:], strict=True):
        assert (computed - cached).norm() < 1e-5 * cached.norm()


@pytest.mark.parametrize("augment_support", [True, False])
def test_tokens_are_those_of_every_view_of_every_image(
    augment_support: bool,
    mvtec_root: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    draws = Draws(monkeypatch)
    model, datamodule = small(augment_support=augment_support), few_shot(mvtec_root, k_shot=3, train_batch_size=2)
    train(model, datamodule, tmp_path)
    (cached,) = draws.cached
    batch = torch.stack([model.pre_processor.transform(item.image) for item in datamodule.train_data])
    paths = [item.image_path for item in datamodule.train_data]
    views = list(fixed_views(batch, [0.485, 0.456, 0.406], [0.229, 0.224, 0.225])) if augment_support else [batch]
    assert cached.shape[:2] == (3, NUM_FIXED_VIEWS if augment_support else 1)
    for number, view in enumerate(views):
        torch.testing.assert_close(cached[:, number], model.model.embed(view), rtol=1e-4, atol=1e-5)
    for step in draws.steps:
        expected = torch.stack([cached[paths.index(path), view] for path, view in step["pairs"]])
        assert torch.equal(step["sampled"], expected)


def test_cache_is_released_at_the_end_and_after_an_exception(mvtec_root: Path, tmp_path: Path) -> None:
    class Break(Callback):
        def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: object) -> None:
            assert pl_module.token_cache.tokens is not None
            if trainer.max_steps > 3:
                raise ZeroDivisionError

    model, longer = small(), small(num_steps=4)
    train(model, few_shot(mvtec_root), tmp_path, callbacks=[Break()])
    with pytest.raises(ZeroDivisionError):
        train(longer, few_shot(mvtec_root), tmp_path, callbacks=[Break()])
    assert model.token_cache.tokens is longer.token_cache.tokens is None
    model.check_fitted()
    with pytest.raises(NotFittedError, match="UniAD"):
        longer.check_fitted()


def test_copies_leave_the_cache_out(mvtec_root: Path, tmp_path: Path) -> None:
    copies = []

    class Copy(Callback):
        def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: object) -> None:
            del trainer
            copies.append(deepcopy(pl_module).token_cache)
            copies.append(pickle.loads(pickle.dumps(pl_module.token_cache)))  # noqa: S301  of this line
            assert pl_module.token_cache.tokens is not None

    model = small(num_steps=1)
    train(model, few_shot(mvtec_root), tmp_path, callbacks=[Copy()])
    assert len(copies) == 2
    for cache in copies:
        assert cache.tokens is None
        assert cache.limit == model.token_cache.limit


def test_cache_of_a_few_numbers() -> None:
    cache = TokenCache(limit=1.0)
    tokens = torch.arange(3 * 2 * 4 * 5.0).view(3, 2, 4, 5)  # (K, V, N, C)
    cache.precompute([(["b", "a"], tokens[:2].unbind(1)), (["c"], tokens[2:].unbind(1))], num_images=3, num_views=2)
    assert torch.equal(cache.get(["c", "b", "c"], [0, 1, 1]), torch.stack([tokens[2, 0], tokens[0, 1], tokens[2, 1]]))
    cache.release()
    with pytest.raises(RuntimeError, match="TokenCache is empty. Call `precompute` first"):
        cache.get(["a"], [0])


def test_clean_tokens_are_reconstructed_from_noisy_ones(
    mvtec_root: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """And from others in each step."""
    draws = Draws(monkeypatch)
    train(small(num_steps=4, standardize=False, jitter_scale=7.0), few_shot(mvtec_root), tmp_path)
    assert len(draws.steps) == 4
    assert len({tuple(step["pairs"]) for step in draws.steps}) == 4
    for step in draws.steps:
        assert step["input"] is step["noisy"]
        assert step["target"] is step["clean"]
        assert torch.equal(step["clean"], step["sampled"])
        noise = step["noisy"] - step["clean"]
        lengths = torch.linalg.vector_norm(step["clean"], dim=-1, keepdim=True)
        torch.testing.assert_close((noise / lengths).std().item() * noise.shape[-1], 7.0, rtol=0.05, atol=0)


@pytest.mark.parametrize("train_batch_size", [1, 3, 32])
def test_step_costs_the_same_for_each_batch_size_of_the_loader(
    train_batch_size: int,
    mvtec_root: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It is of views of the batch's images, which alone are read."""
    draws, batches, step = Draws(monkeypatch), [], UniAD.training_step
    monkeypatch.setattr(
        UniAD,
        "training_step",
        lambda self, batch, index: batches.append(batch.image_path) or step(self, batch, index),
    )
    datamodule = few_shot(mvtec_root, k_shot=8, train_batch_size=train_batch_size)
    train(small(num_steps=5, batch_size=6), datamodule, tmp_path)
    assert [len(step["input"]) for step in draws.steps] == [6] * 5
    assert [min(train_batch_size, 8) >= len(paths) for paths in batches] == [True] * 5
    assert all(set(step["paths"]) <= set(paths) for step, paths in zip(draws.steps, batches, strict=True))


def test_all_images_and_views_are_sampled(mvtec_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    draws = Draws(monkeypatch)
    train(small(num_steps=40, batch_size=16), few_shot(mvtec_root, k_shot=2, train_batch_size=1), tmp_path)
    assert len({pair for step in draws.steps for pair in step["pairs"]}) == 2 * NUM_FIXED_VIEWS


def test_order_of_a_batch_has_no_influence(mvtec_root: Path, tmp_path: Path) -> None:
    """Neither has the global seed, by which anomalib's own datamodules shuffle."""
    found = []
    for seed in (1, 2, 3):
        seed_everything(seed)
        model = small(augment_support=False)
        train(model, MVTecAD(mvtec_root, "bolt", num_workers=0), tmp_path)  # one batch of all images
        found.append(scores(model))
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])


def test_resumed_training_is_that_without_a_break(mvtec_root: Path, tmp_path: Path) -> None:
    settings = {"num_steps": 4, "dropout": 0.1, "adversarial_weight": 0.5}
    whole, resumed = small(**settings), small(**settings)
    saved = ModelCheckpoint(tmp_path / "saved", "{step}", every_n_train_steps=2, save_top_k=-1)
    train(whole, few_shot(mvtec_root), tmp_path, callbacks=[saved])
    runner = engine(tmp_path / "resumed")
    runner.fit(resumed, datamodule=few_shot(mvtec_root), ckpt_path=tmp_path / "saved" / "step=2.ckpt")
    assert runner.trainer.global_step == 4
    torch.testing.assert_close(scores(resumed), scores(whole), rtol=0, atol=0)


def test_resumed_at_the_end_is_left_as_it_is(mvtec_root: Path, tmp_path: Path) -> None:
    model, again = small(), small()
    path = train(model, few_shot(mvtec_root), tmp_path)
    engine(tmp_path).fit(again, datamodule=few_shot(mvtec_root), ckpt_path=path)
    torch.testing.assert_close(scores(again), scores(model), rtol=0, atol=0)


def test_adversarial_loss_comes_in_over_the_first_tenth(mvtec_root: Path, tmp_path: Path) -> None:
    steps, model = [], small(num_steps=20, adversarial_weight=0.5)
    forward = model.adversarial.forward
    model.adversarial.forward = lambda *arguments: steps.append(arguments[-1]) or forward(*arguments)
    train(model, few_shot(mvtec_root), tmp_path)
    assert (steps, model.adversarial.ramp_steps) == ([*range(20)], 2)


def test_length_does_not_depend_on_the_trainer(mvtec_root: Path, tmp_path: Path) -> None:
    runner, model = engine(tmp_path, max_steps=1, accumulate_grad_batches=2, val_check_interval=1), small()
    runner.fit(model, datamodule=few_shot(mvtec_root))
    assert runner.trainer.global_step == 3
    model.check_fitted()


def test_seed_alone_decides(mvtec_root: Path, tmp_path: Path) -> None:
    found = []
    for global_seed, seed in ((1, 0), (2, 0), (1, 1)):
        seed_everything(global_seed)
        model = small(seed=seed, dropout=0.1)
        train(model, few_shot(mvtec_root), tmp_path)
        found.append(scores(model))
    assert torch.equal(found[0], found[1])
    assert not torch.equal(found[0], found[2])


def test_global_generator_is_left_as_it_was() -> None:
    before = torch.get_rng_state()
    small()
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("train_batch_size", [1, 32])
def test_length_schedule_and_validation(
    train_batch_size: int,
    mvtec_root: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model, runner, rates, validated = small(num_steps=10, learning_rate=1e-3, warmup_steps=4), engine(tmp_path), [], []
    step = UniAD.training_step
    monkeypatch.setattr(
        UniAD,
        "training_step",
        lambda self, *a: rates.append(self.optimizers().param_groups[0]["lr"]) or step(self, *a),
    )
    monkeypatch.setattr(UniAD, "on_validation_start", lambda self: validated.append(self.global_step))
    runner.fit(model, datamodule=few_shot(mvtec_root, k_shot=3, train_batch_size=train_batch_size))
    assert runner.trainer.global_step == 10
    assert rates == pytest.approx([0.25e-3, 0.5e-3, 0.75e-3] + [1e-3] * 5 + [1e-4] * 2)
    assert validated == [10]


@pytest.mark.parametrize("standardize", [True, False])
@pytest.mark.parametrize("k_shot", [2, None])  # without a validation and with one
def test_normal_tokens_are_standardized(
    standardize: bool,
    k_shot: int | None,
    mvtec_root: Path,
    tmp_path: Path,
) -> None:
    model, datamodule = small(standardize=standardize, augment_support=False), few_shot(mvtec_root, k_shot=k_shot)
    train(model, datamodule, tmp_path)
    rows = model.model.standardize(tokens_of(model, datamodule)).flatten(0, 1)
    assert len(rows) == len(datamodule.train_data) * 16
    assert bool(rows.mean(0).abs().max() < 1e-4) is standardize
    assert bool((rows.std(0, correction=0) - 1).abs().median() < 1e-3) is standardize


def test_no_training_changes_no_parameter_and_scores(mvtec_root: Path, tmp_path: Path) -> None:
    model, untrained = small(num_steps=0), small()
    train(model, few_shot(mvtec_root), tmp_path)
    pairs = zip(model.model.transformer.parameters(), untrained.model.transformer.parameters(), strict=True)
    assert all(torch.equal(one, two) for one, two in pairs)
    assert scores(model).isfinite().all()


def test_training_explains_normal_tokens(mvtec_root: Path, tmp_path: Path) -> None:
    errors, datamodule = [], few_shot(mvtec_root)
    for num_steps in (0, 120):
        model = small(num_steps=num_steps, learning_rate=1e-2, warmup_steps=5)
        train(model, datamodule, tmp_path)
        standardized = model.eval().model.standardize(tokens_of(model, datamodule))
        with torch.no_grad():
            errors.append(F.mse_loss(model.model.transformer(standardized).tokens, standardized).item())
    assert errors[1] < 0.7 * errors[0]


@pytest.mark.parametrize("k_shot", [1, None])
def test_several_categories_and_one_image_of_each_or_all(k_shot: int | None, mvtec_root: Path, tmp_path: Path) -> None:
    model, runner = small(), engine(tmp_path)
    datamodule = MultiCategory(MVTecAD(mvtec_root, num_workers=0), ["bolt", "cloth"], k_shot=k_shot)
    runner.fit(model, datamodule=datamodule)
    assert len(datamodule.train_data) == (2 if k_shot else 20)
    (figures,) = runner.test(model, datamodule=datamodule)
    mean = (figures["bolt/image_AUROC"] + figures["cloth/image_AUROC"]) / 2
    assert figures["image_AUROC"] == pytest.approx(mean)
    assert scores(model).isfinite().all()


def test_category_scale_is_the_mean_score_of_the_nearest_category() -> None:
    scale = CategoryScale()
    embeddings = torch.tensor([[3.0, 0.1], [0.1, 2.0], [0.9, 1.0]])
    torch.testing.assert_close(scale(embeddings), torch.ones(3))  # before a fit
    scale.fit(torch.eye(2)[[0, 1, 0]], torch.tensor([10.0, 4.0, 20.0]), ["nut", "bolt", "nut"])
    torch.testing.assert_close(scale(embeddings), torch.tensor([15.0, 4.0, 4.0]))


def test_scores_of_several_categories_are_on_one_scale(mvtec_root: Path, tmp_path: Path) -> None:
    model = small()
    datamodule = MultiCategory(MVTecAD(mvtec_root, num_workers=0), ["bolt", "cloth"], k_shot=2)
    loaded = UniAD.load_from_checkpoint(train(model, datamodule, tmp_path))
    batch = torch.stack([model.pre_processor.transform(item.image) for item in datamodule.support_data])
    names = [datamodule.category_by_path[item.image_path] for item in datamodule.support_data]
    with torch.no_grad():
        scaled = loaded.eval().model(batch)
        loaded.model.category_scale = CategoryScale()
        plain = loaded.model(batch)
    for name in datamodule.parts:
        own = torch.tensor([other == name for other in names])
        mean_score = plain.pred_score[own].mean()
        torch.testing.assert_close(scaled.pred_score[own], plain.pred_score[own] / mean_score)
        torch.testing.assert_close(scaled.anomaly_map[own], plain.anomaly_map[own] / mean_score)


@pytest.mark.parametrize("several", [True, False])
def test_scale_is_of_several_categories_alone_and_can_be_left_out(
    several: bool,
    mvtec_root: Path,
    tmp_path: Path,
) -> None:
    model = small(category_scale=not several)
    source = MVTecAD(mvtec_root, "bolt", num_workers=0)
    datamodule = MultiCategory(source, ["bolt", "cloth"], k_shot=2) if several else FewShot(source, k_shot=2)
    train(model, datamodule, tmp_path)
    assert len(model.model.category_scale.category_mean_scores) == 0


def test_anomalib_s_own_datamodule_and_an_image_that_is_not_square(mvtec_root: Path, tmp_path: Path) -> None:
    model, runner = small(image_size=(64, 96)), engine(tmp_path)
    datamodule = MVTecAD(mvtec_root, "bolt", num_workers=0)
    runner.fit(model, datamodule=datamodule)
    (figures,) = runner.test(model, datamodule=datamodule)
    assert np.isfinite([*figures.values()]).all()
    with torch.no_grad():
        assert model.eval().model(images(2)).anomaly_map.shape == (2, 1, 64, 96)


@pytest.mark.parametrize("weight", [0.0, 0.5])
def test_checkpoint_is_loaded_with_any_adversarial_weight(weight: float, mvtec_root: Path, tmp_path: Path) -> None:
    model = small(adversarial_weight=weight, adversarial_pair="layers")
    path = train(model, few_shot(mvtec_root), tmp_path)
    loaded = UniAD.load_from_checkpoint(path)
    assert loaded.hparams["pre_trained"] is False
    torch.testing.assert_close(scores(loaded), scores(model), rtol=0, atol=0)
    for other in (0.0, 0.5):
        again = small(adversarial_weight=other)
        engine(tmp_path).test(again, datamodule=few_shot(mvtec_root), ckpt_path=path)
        torch.testing.assert_close(scores(again), scores(model), rtol=0, atol=0)


def test_barebones(mvtec_root: Path, tmp_path: Path) -> None:
    """It refuses a trainer argument that asks for a log."""
    model = small()
    settings = {"default_root_dir": tmp_path, "accelerator": "cpu", "barebones": True}
    Engine(**settings).fit(model, datamodule=few_shot(mvtec_root))
    model.check_fitted()


@pytest.mark.parametrize("k_shot", [1, 4])
def test_threshold_without_validation_is_the_highest_score_of_the_training_images(
    k_shot: int,
    mvtec_root: Path,
    tmp_path: Path,
) -> None:
    model, datamodule = small(dropout=0.1), few_shot(mvtec_root, k_shot=k_shot, val_split_mode="none")
    loaded = UniAD.load_from_checkpoint(train(model, datamodule, tmp_path))
    batch = torch.stack([model.pre_processor.transform(item.image) for item in datamodule.train_data])
    with torch.no_grad():
        expected = model.eval().model(batch)
    torch.testing.assert_close(loaded.post_processor.image_threshold, expected.pred_score.max(), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(loaded.post_processor.pixel_threshold, expected.anomaly_map.max(), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("several", [True, pytest.param(False, marks=pytest.mark.slow)])  # the contract has this one
def test_exported_graph_is_equal_and_holds_the_inference_alone(
    several: bool,
    mvtec_root: Path,
    tmp_path: Path,
) -> None:
    model = small(image_size=(64, 96), adversarial_weight=0.1, post_processor=False)
    source = MVTecAD(mvtec_root, "bolt", num_workers=0)
    datamodule = MultiCategory(source, ["bolt", "cloth"], k_shot=2) if several else FewShot(source, k_shot=2)
    train(model, datamodule, tmp_path)
    path = model.eval().to_onnx(tmp_path)
    session = onnxruntime.InferenceSession(path)
    batch = (images() + 1) / 2
    with torch.no_grad():
        expected = model(batch)
    for index in range(3):
        found = session.run(["pred_score", "anomaly_map"], {"input": batch[index, None].numpy()})
        np.testing.assert_allclose(found[0], expected.pred_score[index, None], rtol=1e-4, atol=1e-4)
        np.testing.assert_allclose(found[1], expected.anomaly_map[index, None], rtol=1e-4, atol=1e-4)
    weights = [tensor.name for tensor in onnx.load(path).graph.initializer]
    assert any(name.startswith("model.transformer") for name in weights)
    assert not [name for name in weights if name.startswith("adversarial")]


def test_scoring_before_training(mvtec_root: Path, tmp_path: Path) -> None:
    with pytest.raises(NotFittedError, match="UniAD"):
        engine(tmp_path).test(small(), datamodule=few_shot(mvtec_root))


def test_training_without_a_datamodule(mvtec_root: Path, tmp_path: Path) -> None:
    datamodule = few_shot(mvtec_root)
    datamodule.setup()
    with pytest.raises(TypeError, match="must be an anomalib data module, got NoneType"):
        engine(tmp_path).fit(small(), train_dataloaders=datamodule.train_dataloader())


def test_training_that_does_not_stay_finite(mvtec_root: Path, tmp_path: Path) -> None:
    with pytest.raises(ArgumentError, match=r"diverged with `learning_rate` 1e\+30 and `jitter_scale`"):
        train(small(learning_rate=1e30, num_steps=20), few_shot(mvtec_root), tmp_path)


def test_pictures_of_another_size(mvtec_root: Path, tmp_path: Path) -> None:
    with pytest.raises(ArgumentError, match="image_size"):
        small(pre_processor=UniAD.configure_pre_processor((64, 96)))
    own = PreProcessor(Normalize([0.5] * 3, [0.5] * 3))  # does not resize
    with pytest.raises(ValueError, match="`image_size` must be the size of the pre-processed images"):
        train(small(pre_processor=own, image_size=96), few_shot(mvtec_root), tmp_path)


def test_no_room_for_the_tokens(mvtec_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokens_module, "disk_usage", lambda _: SimpleNamespace(free=1000))
    with pytest.raises(OSError, match=r"token cache needs .* GiB, but only 0.0 GiB are free. Set TMPDIR"):
        train(small(cache_limit=0.0), few_shot(mvtec_root), tmp_path)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_steps": -1}, "`num_steps` must be at least 0, got -1"),
        ({"warmup_steps": -1}, "`warmup_steps` must be at least 0, got -1"),
        ({"batch_size": 0}, "`batch_size` must be at least 1, got 0"),
        ({"pool_size": 0}, "`pool_size` must be at least 1, got 0"),
        ({"neighbor_size": 5}, "`neighbor_size` must be odd and less than .* grid of 4 x 4 features, got 5"),
        ({"num_layers": 0}, "`num_layers` must be at least 1, got 0"),
        ({"num_heads": 0}, "`num_heads` must be at least 1, got 0"),
        ({"norm_power": -0.1}, "`norm_power` must be between 0 and 1, got -0.1"),
        ({"norm_power": 1.1}, "`norm_power` must be between 0 and 1, got 1.1"),
        ({"jitter_scale": -1.0}, "`jitter_scale` must be at least 0, got -1"),
        ({"gradient_clip_val": -1.0}, "`gradient_clip_val` must be at least 0, got -1"),
        ({"dim": 18}, "`dim` must be a multiple of twice `num_heads`, 4, got 18"),
        ({"backbone": "resnet"}, "`backbone` must be the name of a timm model, got 'resnet'"),
        ({"backbone": "vit_tiny_patch16_224"}, "`backbone` must be a sequential"),
        ({"adversarial_weight": -1}, "`weight` must be at least 0, got -1"),
        ({"adversarial_pair": "encoder"}, r"`adversarial_pair` must be one of \('decoder', .*, got 'encoder'"),
        ({"layers": [9]}, "`layers` must be indices of the 5 feature maps of resnet10t, got"),
    ],
)
def test_wrong_arguments(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        small(**arguments)
