# Copyright (C) 2026 anomalib-fewshot contributors
# SPDX-License-Identifier: Apache-2.0

"""CoftAD's models, on small untrained backbones."""

from collections.abc import Callable
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
from anomalib_fewshot.models.coft_ad.adaptation import AdaptationSettings
from anomalib_fewshot.models.coft_ad.folds import FoldSettings, extract_fold_features
from anomalib_fewshot.models.coft_ad.torch_model import CoftADModel
from anomalib_fewshot.models.components import seeded
from anomalib_fewshot.post_processing import CalibrationScheme

EMBEDDING = {"published": True, "num_steps": 0}
PUBLISHED = {"published": True, "learning_rate": 1e-3}


def small(**arguments) -> CoftAD:
    settings = {"backbone": "test_efficientnet", "pre_trained": False, "image_size": 64, "num_steps": 2}
    return CoftAD(**settings | arguments, visualizer=False)


def torch_model(
    published: bool = False,
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
            published=published,
        ).eval()


@torch.no_grad()
def fit(model: CoftADModel, support: torch.Tensor) -> None:
    """Fit a model to images, without random views."""
    settings = FoldSettings(lambda images, _: images, num_views=1, right_angles=False)
    folds = extract_fold_features(model.features, [support], settings)
    model.fit(folds, AdaptationSettings(num_steps=0, learning_rate=0.0), on_step=print)


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


@pytest.mark.parametrize("published", [True, False])
def test_shapes_and_scores(published: bool) -> None:
    model = torch_model(published)
    fit(model, images())
    with torch.no_grad():
        result = model(images())
        features = model.features(images())
        shallow, deep = (
            density(patches)[:, 0] for density, patches in zip(model.scorer.densities, features.patches, strict=True)
        )
        from_bank = model.scorer.memory_bank(features.bank)[:, 0]
    assert result.pred_score.shape == (3,)
    assert result.anomaly_map.shape == (3, 1, 64, 96)
    assert [part.shape[:3] for part in features.patches] == [(3, 8, 12), (3, 2, 3)]
    torch.testing.assert_close(features.embeddings.norm(dim=-1), torch.ones(3))
    norms = features.patches[0].norm(dim=-1)
    torch.testing.assert_close(norms, torch.full((3, 8, 12), 2**0.5))  # 1 in each of two layers
    deep = F.interpolate(deep[:, None], (8, 12), mode="bilinear", align_corners=False)[:, 0]
    gaussians = shallow + 0.5 * deep
    maps = gaussians - 0.25 * gaussians.mean((1, 2), keepdim=True) + 1.5 * from_bank
    expected = maps.flatten(1).max(1).values  # 0.3 % of 96 is less than one
    if published:
        expected = model.image_density.distances(features.embeddings)[:, 0].log()
    torch.testing.assert_close(result.pred_score, expected, rtol=1e-3, atol=1e-3)


def test_heads_are_only_in_the_published_form() -> None:
    names = [{name.split(".")[0] for name in torch_model(published).state_dict()} for published in (True, False)]
    assert names[0] - names[1] == {"heads", "image_density"}


def test_vit_patches() -> None:
    model = torch_model(image_size=(64, 64), name="vit_tiny_patch16_224")
    fit(model, images(size=(64, 64)))
    with torch.no_grad():
        assert model(images(size=(64, 64))).anomaly_map.shape == (3, 1, 64, 64)


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
    assert result.pred_score > normal.pred_score + 10


@pytest.mark.parametrize("k_shot", [1, 4])
@pytest.mark.parametrize("category", ["bolt", "cloth"])
@pytest.mark.parametrize("published", [False, True])
def test_finite_and_deterministic(
    mvtec_root: Path,
    tmp_path: Path,
    k_shot: int,
    category: str,
    published: bool,
) -> None:
    results = []
    for seed in (1, 2):
        seed_everything(seed)
        model = small(published=published)
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
    model = small(**PUBLISHED, num_steps=3)
    before = model.model.backbone.features.conv_stem.weight.clone()
    engine, _ = train(model, mvtec_root, tmp_path)
    assert engine.trainer.global_step == 3
    assert not torch.equal(model.model.backbone.features.conv_stem.weight, before)
    assert 0 < float(engine.trainer.callback_metrics["embedding_std"]) <= 1


@pytest.mark.parametrize("weights", [{"negative_weight": 0.0}, {"positive_weight": 0.0}])
def test_either_kind_of_pairs_alone_changes_the_metric(weights: dict, mvtec_root: Path, tmp_path: Path) -> None:
    models = [small(**weights), small(num_steps=0)]
    for model in models:
        train(model, mvtec_root, tmp_path)
    for method, control in zip(*(model.model.scorer.densities for model in models), strict=True):
        assert not torch.allclose(method.metric[0], control.metric[0], rtol=1e-4)


@pytest.mark.parametrize("k_shot", [1, 2, 4, 8])
def test_control_without_fine_tuning_is_paired(k_shot: int, mvtec_root: Path, tmp_path: Path) -> None:
    """Method and control differ by the adaptation alone: views, folds and held-out images are the same, bit for bit."""
    models = [small(num_steps=steps) for steps in (0, 2)]
    for model in models:
        train(model, mvtec_root, tmp_path, k_shot=k_shot)
    for control, method in zip(*(model.model.scorer.densities for model in models), strict=True):
        assert torch.equal(control.mean, method.mean)
        assert torch.equal(control.metric[0], method.metric[0]) is (k_shot == 1)
    assert torch.equal(models[0].model.scorer.memory_bank.bank, models[1].model.scorer.memory_bank.bank)
    if k_shot == 1:
        torch.testing.assert_close(scores(models[1]), scores(models[0]), rtol=0, atol=0)


def test_training_leaves_the_batch_statistics_alone(mvtec_root: Path, tmp_path: Path) -> None:
    """Those of one image would ruin a pretrained backbone."""
    model = small(**PUBLISHED)
    before = {key: value.clone() for key, value in model.state_dict().items() if "running" in key}
    train(model, mvtec_root, tmp_path, k_shot=1)
    assert before
    assert all(torch.equal(model.state_dict()[key], value) for key, value in before.items())


@pytest.mark.parametrize("published", [False, True])
def test_without_few_shot_all_images_are_the_support(published: bool, mvtec_root: Path, tmp_path: Path) -> None:
    model, other = small(published=published), small(published=published)
    engine = Engine(default_root_dir=tmp_path, enable_progress_bar=False)
    engine.fit(model, datamodule=MVTecAD(mvtec_root, "bolt", train_batch_size=4, num_workers=0))
    assert engine.trainer.global_step == (2 if published else 3)  # the steps; an epoch
    assert scores(model).isfinite().all()
    if not published:
        train(other, mvtec_root, tmp_path, k_shot=10)
        for one, two in zip(model.model.scorer.densities, other.model.scorer.densities, strict=True):
            torch.testing.assert_close(one.mean, two.mean)


def test_no_fine_tuning_leaves_the_backbone_as_it_is(mvtec_root: Path, tmp_path: Path) -> None:
    model = small(num_steps=0)
    before = {key: value.clone() for key, value in model.model.backbone.state_dict().items()}
    train(model, mvtec_root, tmp_path)
    assert all(torch.equal(value, before[key]) for key, value in model.model.backbone.state_dict().items())
    assert scores(model).isfinite().all()


def test_loss_of_a_fixed_batch_falls() -> None:
    model = small(**PUBLISHED, num_steps=1, negative_weight=0.0)
    optimizer = torch.optim.AdamW(model.model.parameters(), lr=1e-3)
    losses = []
    for _ in range(15):
        views = [images(4, (64, 64)), images(4, (64, 64)).flip(-1)]
        loss = model.loss(*(model.model.heads(model.model.embed(view)) for view in views))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] - 0.3


def test_checkpoint_gives_equal_scores_and_needs_no_other_weights(mvtec_root: Path, tmp_path: Path) -> None:
    model = CoftAD(image_size=64, num_steps=1, visualizer=False)
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
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Against models that were trained on supports without one image: the rule of jackknife+, in a loop."""
    monkeypatch.setattr(CoftAD, "fold_settings", _without_random_views)
    model = small(num_steps=num_steps)
    _, datamodule = train(model, mvtec_root, tmp_path, k_shot=4)
    plain, exceeded = small(num_steps=num_steps).eval().model, torch.zeros(4)
    names = sorted(datamodule.manifest.images)
    support = model.pre_processor.transform(next(iter(datamodule.support_dataloader())).image)
    new = images(4, (64, 64))
    new = torch.stack([support[0] * w + new[0] * (1 - w) for w in (0.99, 0.95, 0.8, 0.0)])  # from normal to noise
    with torch.no_grad():
        by_fold, _ = model.eval().model.score(model.model.features(new))
    for index in range(4):
        other = small(num_steps=num_steps)
        others = FewShot(MVTecAD(mvtec_root, "bolt", num_workers=0), support=names[:index] + names[index + 1 :])
        Engine(default_root_dir=tmp_path, enable_progress_bar=False).fit(other, datamodule=others)
        plain.scorer.load_state_dict(other.model.scorer.state_dict())  # without a rank
        with torch.no_grad():
            exceeded += plain(new).pred_score > plain(support[index, None]).pred_score
            if num_steps == 0:  # the anomalies of an image follow from its position
                torch.testing.assert_close(by_fold[index + 1], plain(new).pred_score, rtol=1e-3, atol=1e-3)
    ranked = scores_of(model, new)
    if num_steps == 0:  # all, all but one, or fewer
        assert ((ranked[:, None] > model.model.ranked_score.levels).sum(1) == (exceeded - 2).clamp_min(0)).all()
    assert ranked[3] > 1 >= ranked[0]
    result = model.post_processor.eval()(model.model(new))
    assert result.pred_label.tolist() == (ranked > 1).tolist() == (result.pred_score > 1).tolist()


def _without_random_views(model: CoftAD) -> FoldSettings:
    synthesize = model.synthesize if model.num_steps > 0 else None
    return FoldSettings(lambda images, _: images, synthesize, num_views=1, right_angles=False, num_angles=12)


def test_single_image_has_no_rank_and_a_backbone_that_saw_all_images_neither(mvtec_root: Path, tmp_path: Path) -> None:
    for k_shot, published, scheme in (
        (1, False, CalibrationScheme.SELF_VIEWS),
        (3, True, CalibrationScheme.LEAVE_ONE_OUT),
    ):
        model = small(published=published)
        train(model, mvtec_root, tmp_path, k_shot=k_shot)
        assert model.post_processor.scheme is scheme
        ranked = model.model.ranked_score
        assert len(ranked.levels) == 0
        with torch.no_grad():
            by_fold, _ = model.eval().model.score(model.model.features(images(2, (64, 64))))
        ratios = ((by_fold[0] - ranked.out_of_fold_scores.max()) / ranked.weight).exp()
        torch.testing.assert_close(scores_of(model, images(2, (64, 64))), ratios)
    model = small(**EMBEDDING)
    train(model, mvtec_root, tmp_path, k_shot=3)
    assert model.post_processor.scheme is CalibrationScheme.JACKKNIFE_PLUS


def test_more_images_than_folds(mvtec_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(CoftAD, "fold_settings", lambda model: FoldSettings(model.augment, max_folds=3))
    model = small(num_steps=0)
    train(model, mvtec_root, tmp_path, k_shot=7)
    assert len(model.model.scorer.densities[0].mean) == 1 + 3
    assert model.model.ranked_score.fold.tolist() == [0, 0, 0, 1, 1, 2, 2]
    assert model.post_processor.scheme is CalibrationScheme.CV_PLUS
    assert model.post_processor.num_folds == 3
    assert len(model.post_processor.calibration_scores) == 7


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
        ({"positive_weight": -1.0}, "`positive_weight` must be at least 0, got -1"),
        ({"negative_weight": -1.0}, "`negative_weight` must be at least 0, got -1"),
        ({"image_size": 8}, "`image_size` must be at least 32, got 8"),
        ({"backbone": "resnet"}, "`backbone` must be the name of a timm model, got 'resnet'"),
        ({"rotations": "half"}, "`rotations` must be one of .* got 'half'"),
    ],
)
def test_wrong_arguments(arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        small(**arguments)


@pytest.mark.parametrize("published", [False, True])
@pytest.mark.parametrize("val_split_mode", ["same_as_test", "none"])
def test_one_fit_at_the_end_for_all_trainer_settings(
    val_split_mode: str,
    published: bool,
    mvtec_root: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model, calls = small(num_steps=3, published=published), []
    for name in ("training_step", "fit"):
        monkeypatch.setattr(model, name, _counted(getattr(model, name), calls, name))
    engine = Engine(default_root_dir=tmp_path, enable_progress_bar=False, accumulate_grad_batches=2, max_steps=1)
    source = MVTecAD(mvtec_root, "bolt", num_workers=0, train_batch_size=1, val_split_mode=val_split_mode)
    engine.fit(model, datamodule=FewShot(source, k_shot=2))
    assert calls == ["training_step"] * (3 if published else 2) + ["fit"]
    engine.test(model, datamodule=FewShot(MVTecAD(mvtec_root, "bolt", num_workers=0), k_shot=1))
    assert calls.count("fit") == 1  # a test never fits


@pytest.mark.parametrize(("published", "devices"), [(False, 1), (True, 2)])
def test_fine_tuning_of_the_metric_is_on_one_device(published: bool, devices: int, tmp_path: Path) -> None:
    engine = Engine(default_root_dir=tmp_path, accelerator="cpu", devices=2)
    engine._setup_trainer(small(published=published))  # noqa: SLF001
    assert engine.trainer.num_devices == devices


def test_arguments_reach_the_losses() -> None:
    model = small(positive_weight=0.25, negative_weight=0.5, seed=7)
    assert model.adaptation == AdaptationSettings(2, 1e-3, 0.25, 0.5, 7)
    model = small(published=True, positive_weight=0.25, negative_weight=0.5)
    assert (model.loss.positive_weight, model.loss.negative_weight) == (0.25, 0.5)
    assert model.fold_settings().synthesize is None
    assert model.configure_optimizers().defaults["lr"] == pytest.approx(3e-5)


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


def test_densities_are_of_embeddings_as_the_test_images_have_them(
    mvtec_root: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(CoftAD, "fold_settings", _without_random_views)
    model = small(num_steps=0)
    engine = Engine(default_root_dir=tmp_path, enable_progress_bar=False, precision="bf16-mixed", accelerator="cpu")
    datamodule = FewShot(MVTecAD(mvtec_root, "bolt", num_workers=0), k_shot=2)
    engine.fit(model, datamodule=datamodule)
    images = model.pre_processor.transform(next(iter(datamodule.support_dataloader())).image)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        mean = model.eval().model.features(images).patches[0].mean((0, 1, 2))
        assert model.model(images).anomaly_map.dtype == torch.float32
    torch.testing.assert_close(model.model.scorer.densities[0].mean[0], mean)
    with torch.no_grad():
        exact = model.model.features(images).patches[0].mean((0, 1, 2))
    assert not torch.allclose(exact, mean, rtol=1e-5)


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
    assert "no image is called a defect" in caplog.text
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
