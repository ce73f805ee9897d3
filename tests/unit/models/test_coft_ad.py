# Copyright (C) 2026 anomalib-fewshot contributors
# SPDX-License-Identifier: Apache-2.0

"""CoftAD's models, on small untrained backbones."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from anomalib.data import MVTecAD
from anomalib.engine import Engine
from anomalib.pre_processing import PreProcessor
from lightning.pytorch import seed_everything
from torch import nn
from torch.nn import functional as F  # noqa: N812
from torchvision.transforms.v2 import Compose, Normalize, Resize, Transform

from anomalib_fewshot import CoftAD, FewShot
from anomalib_fewshot.models.coft_ad import held_out as held_out_module
from anomalib_fewshot.models.coft_ad import lightning_model
from anomalib_fewshot.models.coft_ad.adaptation import PATCHES, AdaptationSettings, adapt, drawn_energies
from anomalib_fewshot.models.coft_ad.density import standardize
from anomalib_fewshot.models.coft_ad.held_out import HeldOut, anomalous_cells, describe, hold_out
from anomalib_fewshot.models.coft_ad.loss import AdaptationLoss, mean_log_energy
from anomalib_fewshot.models.coft_ad.neighbors import thinned
from anomalib_fewshot.models.coft_ad.torch_model import CoftADModel
from anomalib_fewshot.models.components import (
    Moments,
    SupportAugmentation,
    seeded,
    seeded_generator,
    symmetry,
    turned_views,
)
from anomalib_fewshot.post_processing import Rule


def small(**arguments) -> CoftAD:
    settings = {"backbone": "test_efficientnet", "pre_trained": False, "image_size": 64, "num_steps": 2, "num_views": 2}
    return CoftAD(**settings | {"num_anomalies": 1} | arguments, visualizer=False)


def torch_model(
    image_score: str = "map",
    image_size: tuple[int, int] = (64, 96),
    name: str = "test_efficientnet",
) -> CoftADModel:
    with seeded(0):
        return CoftADModel(
            name,
            None,
            pre_trained=False,
            weights=None,
            image_size=image_size,
            image_score=image_score,
        ).eval()


@torch.no_grad()
def fit(model: CoftADModel, support: torch.Tensor) -> None:
    """Fit the densities to images, and their scales to the same images."""
    image, patches, raw = model.features(support)
    model.neighbors.fit(raw[:, None, None].expand(-1, -1, 2, -1, -1, -1))  # each a fold, with itself as a view
    model.density.image.fit(Moments.of(image))
    for density, part in zip(model.density.groups, patches, strict=True):
        density.fit(Moments.of(part))
        density.fit_scale(density(part))
    model.stack()


def images(count: int = 3, size: tuple[int, int] = (64, 96)) -> torch.Tensor:
    return torch.rand(count, 3, *size, generator=torch.Generator().manual_seed(0)) * 2 - 1


def train(model: CoftAD, root: Path, results: Path, category: str = "bolt", k_shot: int = 2) -> tuple[Engine, FewShot]:
    engine = Engine(default_root_dir=results, enable_progress_bar=False)
    datamodule = FewShot(MVTecAD(root, category, num_workers=0), k_shot=k_shot)
    engine.fit(model, datamodule=datamodule)
    return engine, datamodule


def scores(model: CoftAD, size: int = 64) -> torch.Tensor:
    return scores_of(model, images(4, (size, size)))


def scores_of(model: CoftAD, batch: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return model.eval().model(batch).pred_score


@pytest.mark.parametrize("image_score", ["embedding", "map"])
def test_shapes_and_scores(image_score: str) -> None:
    model = torch_model(image_score)
    fit(model, images())
    with torch.no_grad():
        result = model(images())
        image, patches, raw = model.features(images())
        distances = [density(part) for density, part in zip(model.density.groups, patches, strict=True)]
    assert result.pred_score.shape == (3,)
    assert result.anomaly_map.shape == (3, 1, 64, 96)
    assert [part.shape[:3] for part in patches] == [(3, 8, 12), (3, 8, 12), (3, 2, 3)]
    torch.testing.assert_close(image.norm(dim=-1), torch.ones(3))
    torch.testing.assert_close(patches[0].norm(dim=-1), torch.full((3, 8, 12), 2**0.5))  # 1 in each of two layers
    first, second, deep = (standardize(part, part.mean(), part.std(correction=0)) for part in distances)
    deep = F.interpolate(deep[:, None], (8, 12), mode="bilinear", align_corners=False)[:, 0]
    expected = first + second + 0.5 * deep + model.neighbors(raw)[:, 0]
    expected = {"embedding": model.density.image(image), "map": expected.flatten(1).max(1).values}  # 0.5 % of 96
    torch.testing.assert_close(result.pred_score, expected[image_score], rtol=1e-3, atol=1e-3)


def test_vit_patches() -> None:
    model = torch_model(image_size=(64, 64), name="vit_tiny_patch16_224")
    fit(model, images(size=(64, 64)))
    with torch.no_grad():
        assert model(images(size=(64, 64))).anomaly_map.shape == (3, 1, 64, 64)


def test_heads_have_a_gradient_and_take_a_single_image() -> None:
    model = torch_model().train()
    projection, prediction = model.project(model.image_embedding(images(1)))
    (projection.sum() + prediction.sum()).backward()
    parts = (model.backbone, model.projection_head, model.prediction_head)
    for part in parts:
        assert all(parameter.grad is not None for parameter in part.parameters())
        assert any(parameter.grad.any() for parameter in part.parameters())
    (projection, _) = model.project(model.image_embedding(images(1)))
    assert projection.std() > 0.1  # a batch of one is normalized by its layer, not to zero


def test_anomaly_is_where_the_map_is_high() -> None:
    """Stripes are normal; a black square is not: with any weights, the highest point of the map lies on it."""
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
    assert result.pred_score > 2 * normal.pred_score.abs()


@pytest.mark.parametrize("k_shot", [1, 4])
@pytest.mark.parametrize("category", ["bolt", "cloth"])
@pytest.mark.parametrize("fine_tuning", ["adaptation", "backbone"])
def test_finite_and_deterministic(
    mvtec_root: Path,
    tmp_path: Path,
    k_shot: int,
    category: str,
    fine_tuning: str,
) -> None:
    results = []
    for seed in (1, 2):
        seed_everything(seed)
        model = small(fine_tuning=fine_tuning)
        train(model, mvtec_root, tmp_path, category, k_shot)
        results.append(scores(model))
    assert results[0].isfinite().all()
    torch.testing.assert_close(results[0], results[1], rtol=0, atol=0)


def test_another_seed_gives_other_scores(mvtec_root: Path, tmp_path: Path) -> None:
    models = [small(seed=seed, num_steps=1) for seed in (0, 1)]
    for model in models:
        train(model, mvtec_root, tmp_path)
    assert not torch.allclose(scores(models[0]), scores(models[1]))


def test_training_takes_the_steps_asked_for_and_changes_the_backbone(mvtec_root: Path, tmp_path: Path) -> None:
    model = small(num_steps=3, fine_tuning="backbone")
    before = model.model.backbone.features.conv_stem.weight.clone()
    engine, _ = train(model, mvtec_root, tmp_path)
    assert engine.trainer.global_step == 3
    assert not torch.equal(model.model.backbone.features.conv_stem.weight, before)
    assert not any(density.metric_delta.any() for density in model.model.density.groups)
    assert 0 < float(engine.trainer.callback_metrics["embedding_std"]) <= 1


def held_out_of(model: CoftADModel, support: torch.Tensor) -> tuple[list[Moments], HeldOut]:
    """Return held-out images with bright squares for anomalies: without an engine, without a file."""

    def synthesize(image: torch.Tensor, rng: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
        anomaly, mask = image[None].clone(), torch.zeros(1, *image.shape[1:], dtype=torch.bool)
        top, left = torch.randint(0, image.shape[-1] - 24, (2,), generator=rng).tolist()
        anomaly[..., top : top + 24, left : left + 24] = 1
        mask[..., top : top + 24, left : left + 24] = True
        return anomaly, mask

    augment = SupportAugmentation("mild", [0.5] * 3, [0.5] * 3)
    with torch.no_grad():
        return hold_out(describe(model.features, [support], augment, num_views=2, seed=0, synthesize=synthesize))


SETTINGS = AdaptationSettings(num_steps=30, learning_rate=1e-2, weight_decay=0.0, seed=0)


def test_adaptation_moves_anomalies_away_from_normal_patches() -> None:
    """Anomalies are further out, relative to normal patches, than without it, and the loss falls."""
    model = torch_model(image_size=(64, 64))
    before = {key: value.clone() for key, value in model.state_dict().items()}
    _, held_out = held_out_of(model, images(4, (64, 64)))
    losses = list(adapt(model.density.groups, held_out, AdaptationLoss(1.0, 1.0, 1.0), SETTINGS))
    assert len(losses) == 30
    assert sum(losses[-5:]) < 0.8 * sum(losses[:5])
    for density, normal, anomalous in zip(model.density.groups, held_out.normal, held_out.anomalous, strict=True):
        plain = anomalous.norm(dim=-1).mean() / normal.norm(dim=-1).mean()
        adapted = density.whitened_distance(anomalous).mean() / density.whitened_distance(normal).mean()
        assert adapted > 1.1 * plain
    changed = {key for key, value in model.state_dict().items() if not torch.equal(value, before[key])}
    assert changed == {f"density.groups.{group}.metric_delta" for group in range(3)}


def test_adaptation_follows_the_seed_and_draws_other_patches_in_each_step() -> None:
    model = torch_model(image_size=(64, 64))
    _, held_out = held_out_of(model, images(4, (64, 64)))
    still = AdaptationLoss(1.0, 1.0, 0.0)
    settings = replace(SETTINGS, learning_rate=0.0, num_steps=3)
    runs = [list(adapt(model.density.groups, held_out, still, replace(settings, seed=seed))) for seed in (0, 0, 1)]
    assert runs[0] == runs[1]
    assert len({*runs[0], *runs[2]}) == 6  # nothing moves: only the draws differ


@pytest.mark.parametrize("count", [1, 40, PATCHES, PATCHES + 40])
def test_energies_are_those_of_rows_that_are_drawn(count: int) -> None:
    """Of few rows each energy is computed once, with the gradient of all draws; of many, those that are drawn."""
    rows = torch.randn(count, 5, generator=seeded_generator(0))
    deltas = [(0.1 * torch.randn(5, 5, generator=seeded_generator(1))).requires_grad_() for _ in range(2)]
    energies = drawn_energies(rows, deltas[0], seeded_generator(2))
    drawn = rows[torch.randint(count, (PATCHES,), generator=seeded_generator(2))]
    expected = torch.stack([mean_log_energy(row @ (torch.eye(5) + deltas[1])) for row in drawn])
    torch.testing.assert_close(energies, expected)
    gradients = [torch.autograd.grad(e.square().sum(), d)[0] for e, d in zip((energies, expected), deltas, strict=True)]
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-3)


def test_adaptation_leaves_a_single_image_and_a_group_without_anomalies_alone() -> None:
    model = torch_model(image_size=(64, 64))
    loss = AdaptationLoss(1.0, 1.0, 20.0)
    _, single = held_out_of(model, images(1, (64, 64)))
    assert single.is_single_image
    assert list(adapt(model.density.groups, single, loss, SETTINGS)) == []
    assert not any(density.metric_delta.any() for density in model.density.groups)
    _, held_out = held_out_of(model, images(3, (64, 64)))
    held_out = held_out._replace(anomalous=[held_out.anomalous[0], held_out.anomalous[1][:0], held_out.anomalous[2]])
    assert len(list(adapt(model.density.groups, held_out, loss, SETTINGS))) == 30
    assert [bool(density.metric_delta.any()) for density in model.density.groups] == [True, False, True]


def test_adaptation_starts_from_the_identity() -> None:
    model = torch_model(image_size=(64, 64))
    _, held_out = held_out_of(model, images(3, (64, 64)))
    loss = AdaptationLoss(1.0, 1.0, 20.0)
    runs = [list(adapt(model.density.groups, held_out, loss, SETTINGS)) for _ in range(2)]
    assert runs[0] == runs[1]
    list(adapt(model.density.groups, held_out, loss, replace(SETTINGS, num_steps=0)))
    assert not any(density.metric_delta.any() for density in model.density.groups)


@pytest.mark.parametrize("count", [2, 3, 8, 11])
def test_held_out_images_are_those_of_a_loop(count: int) -> None:
    """Against a loop that fits Gaussians without each eighth, the images themselves being the only views."""
    model, support = torch_model(image_size=(64, 64)), images(count, (64, 64))
    with torch.no_grad():
        folds = describe(model.features, support.split(4), lambda batch, _: batch, num_views=1, seed=0)
        total, held_out = hold_out(folds)
        embeddings, patches, _ = model.features(support)
        torch.testing.assert_close(total[0].mean.float(), embeddings.mean(0))
        turn = torch.arange(count) % 8
        order = sorted(range(count), key=lambda index: int(turn[index]))
        for row, index in enumerate(order):
            other = torch_model(image_size=(64, 64)).density
            for group, density in enumerate(other.groups):
                density.fit(Moments.of(patches[group][turn != turn[index]]))
                distances = density(patches[group][index])
                whitened = held_out.normal[group][2 * row : 2 * row + 2].norm(dim=-1)  # the image and its view
                torch.testing.assert_close(whitened, distances.expand(2, -1, -1), rtol=1e-3, atol=1e-3)
    assert [len(part) for part in held_out.anomalous] == [0, 0, 0]


def test_a_part_of_a_support_is_held_out_as_if_there_were_no_other_images() -> None:
    """What is computed once serves every fit: that of some images is that of a support of these alone."""
    model, support = torch_model(image_size=(64, 64)), images(4, (64, 64))
    with torch.no_grad():
        some, alone = (
            describe(model.features, [part], lambda batch, _: batch, num_views=1, seed=0)
            for part in (support, support[1:])
        )
    for one, two in zip(hold_out(some[1:])[1].normal, hold_out(alone)[1].normal, strict=True):
        torch.testing.assert_close(one, two, rtol=1e-4, atol=1e-4)


def test_of_many_images_some_are_held_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(held_out_module, "MAX_HELD_OUT", 3)
    monkeypatch.setattr(held_out_module, "MAX_FOLDS", 3)
    model = torch_model(image_size=(64, 64))
    moments, held_out = held_out_of(model, images(10, (64, 64)))
    assert [len(part) for part in held_out.normal] == [6, 6, 6]  # each with a view
    assert moments[0].count == 20  # the Gaussians are of all


@pytest.mark.parametrize("quarter_turns", [True, False])
def test_gaussians_are_of_turned_views(quarter_turns: bool) -> None:
    model, support = torch_model(image_size=(64, 64)), images(2, (64, 64))
    with torch.no_grad():
        folds = describe(
            model.features,
            [support],
            lambda batch, _: batch,
            num_views=6,
            seed=0,
            quarter_turns=quarter_turns,
            num_angles=3,
        )
        for fold, image in zip(folds, support.split(1), strict=True):
            views = torch.cat([symmetry(image, number if quarter_turns else 0) for number in range(6)])
            expected = Moments.of(model.features(views).patches[0].flatten(0, -2))
            torch.testing.assert_close(fold.moments[1].mean, expected.mean)
            torch.testing.assert_close(fold.moments[1].covariance, expected.covariance)
            angles = thinned(model.features(torch.cat([*turned_views(image, 3)])).raw)
            torch.testing.assert_close(fold.turned, angles, rtol=1e-4, atol=1e-4)
            assert fold.patches[0].shape[:2] == (1, 2)  # what is held out is not turned


def drawn_parts(*, turned: bool) -> torch.Tensor:
    """Return four noisy pictures of a ribbed bar with a head, which lies at one angle or at any."""
    rng, size = torch.Generator().manual_seed(0), 160
    y, x = torch.meshgrid(torch.linspace(-1, 1, size), torch.linspace(-1, 1, size), indexing="ij")
    pictures = []
    for _ in range(4):
        angle = 2 * torch.pi * torch.rand((), generator=rng) if turned else torch.tensor(0.3)
        along, across = x * angle.cos() + y * angle.sin(), y * angle.cos() - x * angle.sin()
        bar = (along.abs() < 0.7) & (across.abs() < 0.12)
        head = (along - 0.7).square() + across.square() < 0.06
        picture = (bar | head) + 0.5 * bar * (20 * along).sin()
        pictures.append(picture.clamp(0, 1) * 1.6 - 0.8 + 0.05 * torch.randn(3, size, size, generator=rng))
    return torch.stack(pictures)


@pytest.mark.parametrize("turned", [True, False])
def test_held_out_images_tell_whether_a_part_comes_turned(turned: bool) -> None:
    model = CoftAD(image_size=160, num_steps=0).eval()
    with torch.no_grad():
        folds = describe(
            model.model.features,
            [drawn_parts(turned=turned)],
            model.views(),
            num_views=2,
            seed=0,
            num_angles=12,
        )
        model.model.neighbors.fit([fold.raw for fold in folds], [fold.turned for fold in folds])
    assert model.model.neighbors.is_turned.tolist() == [turned] * 5


def test_no_image_is_refused() -> None:
    with pytest.raises(ValueError, match="must have an image, got none"):
        describe(torch_model().features, [], lambda batch, _: batch, num_views=1, seed=0)


def test_adaptation_follows_from_positives_alone_too(mvtec_root: Path, tmp_path: Path) -> None:
    model = small(negative_weight=0.0, anchor_weight=0.0)
    train(model, mvtec_root, tmp_path)
    assert all(density.metric_delta.any() for density in model.model.density.groups)


@pytest.mark.parametrize("k_shot", [1, 2, 4, 8])
def test_control_without_fine_tuning_is_paired(k_shot: int, mvtec_root: Path, tmp_path: Path) -> None:
    """Method and control differ by the adaptation alone: views, folds and held-out images are the same, bit for bit."""
    models = [small(num_steps=steps) for steps in (0, 2)]
    for model in models:
        train(model, mvtec_root, tmp_path, k_shot=k_shot)
    for control, method in zip(*(model.model.density.groups for model in models), strict=True):
        torch.testing.assert_close(control.mean, method.mean, rtol=0, atol=0)
        identity = torch.eye(len(control.mean))
        torch.testing.assert_close(
            control.metric @ (identity + method.metric_delta),
            method.metric,
            rtol=1e-4,
            atol=1e-4,
        )
        assert not control.metric_delta.any()
        assert bool(method.metric_delta.any()) is (k_shot > 1)
    if k_shot == 1:
        torch.testing.assert_close(scores(models[1]), scores(models[0]), rtol=0, atol=0)


def test_training_leaves_the_batch_statistics_alone(mvtec_root: Path, tmp_path: Path) -> None:
    """Those of one image would ruin a pretrained backbone."""
    model = small(fine_tuning="backbone")
    before = {key: value.clone() for key, value in model.state_dict().items() if "running" in key}
    train(model, mvtec_root, tmp_path, k_shot=1)
    assert before
    assert all(torch.equal(model.state_dict()[key], value) for key, value in before.items())


@pytest.mark.parametrize("fine_tuning", ["adaptation", "backbone"])
def test_without_few_shot_all_images_are_the_support(fine_tuning: str, mvtec_root: Path, tmp_path: Path) -> None:
    model, other = small(fine_tuning=fine_tuning, num_views=1), small(fine_tuning=fine_tuning, num_views=1)
    engine = Engine(default_root_dir=tmp_path, enable_progress_bar=False)
    engine.fit(model, datamodule=MVTecAD(mvtec_root, "bolt", train_batch_size=4, num_workers=0))
    assert engine.trainer.global_step == {"adaptation": 3, "backbone": 2}[fine_tuning]  # an epoch; the steps
    assert scores(model).isfinite().all()
    if fine_tuning == "adaptation":
        train(other, mvtec_root, tmp_path, k_shot=10)
        for one, two in zip(model.model.density.groups, other.model.density.groups, strict=True):
            torch.testing.assert_close(one.mean, two.mean)


def test_no_fine_tuning_leaves_the_backbone_as_it_is(mvtec_root: Path, tmp_path: Path) -> None:
    model = small(num_steps=0)
    before = {key: value.clone() for key, value in model.model.backbone.state_dict().items()}
    train(model, mvtec_root, tmp_path)
    assert all(torch.equal(value, before[key]) for key, value in model.model.backbone.state_dict().items())
    assert scores(model).isfinite().all()


def test_loss_of_a_fixed_batch_falls() -> None:
    model = small(num_steps=1, fine_tuning="backbone")
    optimizer = torch.optim.AdamW(model.model.parameters(), lr=1e-3)
    losses = []
    for _ in range(15):
        embeddings = (
            model.model.image_embedding(images(4, (64, 64))),
            model.model.image_embedding(images(4, (64, 64)).flip(-1)),
        )
        (one, first), (two, second) = (model.model.project(embedding) for embedding in embeddings)
        loss = model.loss((first, second), (one, two))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] - 0.3


def test_checkpoint_gives_equal_scores_and_needs_no_other_weights(mvtec_root: Path, tmp_path: Path) -> None:
    model = CoftAD(image_size=64, num_steps=1, num_views=2, visualizer=False)
    engine, _ = train(model, mvtec_root, tmp_path)
    path = engine.trainer.checkpoint_callback.best_model_path
    loaded = CoftAD.load_from_checkpoint(path)  # weights_only=True is anomalib's default
    assert loaded.hparams["pre_trained"] is False
    torch.testing.assert_close(scores(loaded), scores(model), rtol=0, atol=0)
    torch.testing.assert_close(
        loaded.pre_processor(images(1, (70, 80)).clamp_min(0)),
        model.pre_processor(images(1, (70, 80)).clamp_min(0)),
        rtol=0,
        atol=0,
    )


@pytest.mark.parametrize(("num_steps", "k_shot"), [(0, 2), (2, 2), (2, 1), (1, 10)])
def test_checkpoint_is_fitted_where_there_is_no_validation(
    mvtec_root: Path,
    tmp_path: Path,
    num_steps: int,
    k_shot: int,
) -> None:
    engine = Engine(default_root_dir=tmp_path, enable_progress_bar=False)
    source = MVTecAD(mvtec_root, "bolt", val_split_mode="none", num_workers=0)
    model = small(num_steps=num_steps)
    engine.fit(model, datamodule=FewShot(source, k_shot=k_shot))
    (path,) = Path(engine.trainer.default_root_dir).rglob("*.ckpt")
    loaded = CoftAD.load_from_checkpoint(path)
    assert loaded.is_fitted
    assert loaded.post_processor.image_threshold.isfinite()  # the highest score of a normal view
    torch.testing.assert_close(scores(loaded), scores(model), rtol=0, atol=0)


@pytest.mark.parametrize("num_steps", [0, 3])
def test_an_image_is_compared_with_each_other_by_a_model_of_the_rest(
    num_steps: int,
    mvtec_root: Path,
    tmp_path: Path,
) -> None:
    """Against models that were trained on supports without one image: the rule of jackknife+, in a loop."""
    settings = {"num_steps": num_steps, "num_views": 1, "augmentation": "none", "num_anomalies": 2}
    model = small(**settings)
    _, datamodule = train(model, mvtec_root, tmp_path, k_shot=4)
    plain, beaten = small(**settings).eval().model, torch.zeros(4)
    names = sorted(datamodule.manifest.images)
    support = model.pre_processor.transform(next(iter(datamodule.support_dataloader())).image)
    new = images(4, (64, 64))
    new = torch.stack([support[0] * w + new[0] * (1 - w) for w in (0.99, 0.95, 0.8, 0.0)])  # from normal to noise
    with torch.no_grad():
        by_fold, _ = model.eval().model.score(model.model.features(new))
    for index in range(4):
        other = small(**settings)
        others = FewShot(MVTecAD(mvtec_root, "bolt", num_workers=0), support=names[:index] + names[index + 1 :])
        Engine(default_root_dir=tmp_path, enable_progress_bar=False).fit(other, datamodule=others)
        plain.density.load_state_dict(other.model.density.state_dict())  # without a rank
        plain.neighbors.load_state_dict(other.model.neighbors.state_dict())
        plain.stack()
        with torch.no_grad():
            beaten += plain(new).pred_score > plain(support[index, None]).pred_score
            if num_steps == 0:  # the anomalies of an image follow from its number
                torch.testing.assert_close(by_fold[index + 1], plain(new).pred_score, rtol=1e-3, atol=1e-3)
    ranked = scores_of(model, new)
    if num_steps == 0:  # all, all but one, or fewer
        assert (ranked.floor().clamp_max(2) == (beaten - 2).clamp_min(0)).all()
    assert ranked[3] > 2 >= ranked[0]
    result = model.post_processor.eval()(model.model(new))
    assert result.pred_label.tolist() == (ranked > 2).tolist() == (result.pred_score > 0.5).tolist()


def test_single_image_has_no_rank_and_a_backbone_that_saw_all_images_neither(mvtec_root: Path, tmp_path: Path) -> None:
    for k_shot, fine_tuning, rule in ((1, "adaptation", Rule.VIEWS), (3, "backbone", Rule.ONE_FIT)):
        model = small(fine_tuning=fine_tuning)
        train(model, mvtec_root, tmp_path, k_shot=k_shot)
        assert model.post_processor.rule is rule
        assert len(model.model.held_out) == 0
        with torch.no_grad():
            (scores,), _ = model.eval().model.score(model.model.features(images(2, (64, 64))))
        torch.testing.assert_close(scores_of(model, images(2, (64, 64))), scores)
    model = small(fine_tuning="backbone", num_steps=0)
    train(model, mvtec_root, tmp_path, k_shot=3)
    assert model.post_processor.rule is Rule.HELD_OUT


def test_more_than_32_images_are_held_out_in_as_many_parts(
    mvtec_root: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(held_out_module, "MAX_FOLDS", 3)
    model = small(num_steps=0)
    train(model, mvtec_root, tmp_path, k_shot=7)
    assert len(model.model.held_out) == 3
    assert model.model.ranked_score.fold.tolist() == [0, 0, 0, 1, 1, 2, 2]
    assert model.post_processor.rule is Rule.FOLDS
    assert len(model.post_processor.levels) == 7


@pytest.mark.parametrize("num_steps", [0, 2])
def test_second_fit_forgets_the_first(num_steps: int, mvtec_root: Path, tmp_path: Path) -> None:
    model = small(num_steps=num_steps)
    train(model, mvtec_root, tmp_path, "cloth")
    train(model, mvtec_root, tmp_path, "bolt")
    other = small(num_steps=num_steps)
    train(other, mvtec_root, tmp_path, "bolt")
    torch.testing.assert_close(scores(model), scores(other), rtol=0, atol=0)


def test_scoring_before_training(mvtec_root: Path, tmp_path: Path) -> None:
    engine = Engine(default_root_dir=tmp_path, enable_progress_bar=False)
    with pytest.raises(RuntimeError, match="CoftAD is not fitted"):
        engine.test(small(), datamodule=FewShot(MVTecAD(mvtec_root, "bolt", num_workers=0)))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_steps": -1}, "`num_steps` must be at least 0, got -1"),
        ({"num_views": 0}, "`num_views` must be at least 1, got 0"),
        ({"num_anomalies": 0}, "`num_anomalies` must be at least 1, got 0"),
        ({"anomaly_kinds": ["dent"]}, r"must be some of \('cut_paste', .*'crack'\), got \['dent'\]"),
        ({"anomaly_kinds": []}, r"must be some of .*, got \[\]"),
        ({"fine_tuning": "all"}, "`fine_tuning` must be one of .* got 'all'"),
        ({"anchor_weight": -1.0}, "`anchor_weight` must not be below 0, got -1"),
        ({"image_score": "max"}, "`image_score` must be one of .* got 'max'"),
        ({"image_size": 8}, "`image_size` must be at least 32, got 8"),
        ({"backbone": "resnet"}, "`backbone` must be the name of a timm model, got 'resnet'"),
        ({"augmentation": "weak"}, "`augmentation` must be one of"),
        ({"turns": "half"}, "`turns` must be one of .* got 'half'"),
    ],
)
def test_wrong_arguments(arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        small(**arguments)


@pytest.mark.parametrize("fine_tuning", ["adaptation", "backbone"])
@pytest.mark.parametrize("val_split_mode", ["same_as_test", "none"])
def test_fit_is_once_and_at_the_end_whatever_the_trainer_is_told(
    val_split_mode: str,
    fine_tuning: str,
    mvtec_root: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model, calls = small(num_steps=3, fine_tuning=fine_tuning), []
    for name in ("training_step", "fit"):
        monkeypatch.setattr(model, name, _counted(getattr(model, name), calls, name))
    engine = Engine(default_root_dir=tmp_path, enable_progress_bar=False, accumulate_grad_batches=2, max_steps=1)
    source = MVTecAD(mvtec_root, "bolt", num_workers=0, train_batch_size=1, val_split_mode=val_split_mode)
    engine.fit(model, datamodule=FewShot(source, k_shot=2))
    assert calls == ["training_step"] * (3 if fine_tuning == "backbone" else 2) + ["fit"]
    engine.test(model, datamodule=FewShot(MVTecAD(mvtec_root, "bolt", num_workers=0), k_shot=1))
    assert calls.count("fit") == 1  # a test never fits


@pytest.mark.parametrize(("fine_tuning", "devices"), [("adaptation", 1), ("backbone", 2)])
def test_adaptation_is_of_all_images_on_one_device(fine_tuning: str, devices: int, tmp_path: Path) -> None:
    engine = Engine(default_root_dir=tmp_path, accelerator="cpu", devices=2)
    engine._setup_trainer(small(fine_tuning=fine_tuning))  # noqa: SLF001
    assert engine.trainer.num_devices == devices


def test_weights_reach_the_losses() -> None:
    model = small(positive_weight=0.25, negative_weight=0.5, anchor_weight=0.75)
    assert (model.loss.positive_weight, model.loss.negative_weight) == (0.25, 0.5)
    adaptation = model.adaptation_loss
    assert (adaptation.positive_weight, adaptation.negative_weight, adaptation.anchor_weight) == (0.25, 0.5, 0.75)


def test_anomalies_are_of_the_kinds_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    asked, make = [], lightning_model.synthesize_anomalies
    monkeypatch.setattr(lightning_model, "synthesize_anomalies", lambda *a: asked.append(a[2:]) or make(*a))
    small(anomaly_kinds=["crack"], num_anomalies=3).synthesize(images(1, (64, 64))[0], torch.Generator())
    assert asked == [(3, ["crack"])]


def _counted(function: Callable, calls: list[str], name: str) -> Callable:
    def counted(*args, **kwargs) -> object:
        calls.append(name)
        return function(*args, **kwargs)

    return counted


@pytest.mark.parametrize(
    "transform",
    [None, Resize((64, 64)), Compose([Resize((64, 64)), Normalize([0.3] * 3, [0.2] * 3)])],
)
def test_views_and_anomalies_have_the_colours_of_the_user_s_pre_processor(
    transform: Transform | None,
    mvtec_root: Path,
    tmp_path: Path,
) -> None:
    """An anomaly is made of the image as it was before it was normalised."""
    model = small(pre_processor=PreProcessor(transform))
    train(model, mvtec_root, tmp_path)
    image = torch.rand(3, 64, 64)
    normalize = transform.transforms[1] if isinstance(transform, Compose) else nn.Identity()
    anomalies, masks = model.synthesize(normalize(image), torch.Generator().manual_seed(0))
    outside = ~masks[:, None].expand_as(anomalies)
    assert (anomalies - normalize(image)).abs()[outside].mean() < 1e-3  # all but edges, which are soft


def test_densities_are_of_embeddings_as_the_test_images_have_them(mvtec_root: Path, tmp_path: Path) -> None:
    model = small(num_steps=0, num_views=1)
    engine = Engine(default_root_dir=tmp_path, enable_progress_bar=False, precision="bf16-mixed", accelerator="cpu")
    datamodule = FewShot(MVTecAD(mvtec_root, "bolt", num_workers=0), k_shot=2)
    engine.fit(model, datamodule=datamodule)
    images = model.pre_processor.transform(next(iter(datamodule.support_dataloader())).image)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        mean = model.eval().model.features(images)[1][0].mean((0, 1, 2))
        assert model.model(images).anomaly_map.dtype == torch.float32
    torch.testing.assert_close(model.model.density.groups[0].mean, mean)
    with torch.no_grad():
        exact = model.model.features(images)[1][0].mean((0, 1, 2))
    assert not torch.allclose(exact, mean, rtol=1e-5)


@pytest.mark.parametrize("stride", [2, 4, 8, 16])
def test_cell_that_is_all_anomalous_counts(stride: int) -> None:
    masks = torch.zeros(1, 32, 32)
    masks[:, :16] = 1
    rows = anomalous_cells(masks, (32 // stride, 32 // stride))[0].all(1)
    assert rows.tolist() == [True] * (16 // stride) + [False] * (16 // stride)


def test_single_picture_without_validation_is_warned_of(
    mvtec_root: Path,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    for k_shot in (2, 1):
        assert "views of a single good picture" not in caplog.text
        engine = Engine(default_root_dir=tmp_path, enable_progress_bar=False)
        source = MVTecAD(mvtec_root, "bolt", val_split_mode="none", num_workers=0)
        engine.fit(small(num_steps=0), datamodule=FewShot(source, k_shot=k_shot))
    assert "nothing is called a defect: rank pictures by their scores" in caplog.text
    assert "does not contain any anomalous images" not in caplog.text  # there is no validation set


def test_export(mvtec_root: Path, tmp_path: Path) -> None:
    """A model that cannot score is not exported, and one that was trained without a validation is found."""
    engine = Engine(default_root_dir=tmp_path, enable_progress_bar=False)
    for export_type in ("torch", "onnx"):
        with pytest.raises(RuntimeError, match="CoftAD is not fitted"):
            engine.export(small(), export_type, tmp_path / "none")
    source = MVTecAD(mvtec_root, "bolt", val_split_mode="none", num_workers=0)
    engine.fit(small(num_steps=0), datamodule=FewShot(source, k_shot=2))
    assert Path(engine.best_model_path).is_file()
    assert engine.export(small(), "torch", tmp_path / "there", ckpt_path=engine.best_model_path).is_file()
