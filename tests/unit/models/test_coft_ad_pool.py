# Copyright (C) 2026 anomalib-fewshot contributors
# SPDX-License-Identifier: Apache-2.0

"""CoftAD with a pool of unlabeled images: distances against loops, symmetry, and the false-alarm guarantee."""

import logging
from pathlib import Path

import onnxruntime
import pytest
import torch
from anomalib.data import MVTecAD
from anomalib.data.utils import read_image
from anomalib.engine import Engine
from sklearn.metrics import roc_auc_score

from anomalib_fewshot import CoftAD, FewShot
from anomalib_fewshot.errors import ArgumentError
from anomalib_fewshot.models.coft_ad.adaptation import AdaptationSettings
from anomalib_fewshot.models.coft_ad.features import Features, mean_of_highest
from anomalib_fewshot.models.coft_ad.folds import (
    MAX_POOL_SIZE,
    FoldFeatures,
    FoldSettings,
    extract_fold_features,
    extract_pool_features,
)
from anomalib_fewshot.models.coft_ad.memory_bank import MAX_ROWS, MemoryBank, lowest_without_each
from anomalib_fewshot.models.coft_ad.patch_scorer import PatchScorer
from anomalib_fewshot.models.coft_ad.torch_model import CoftADModel
from anomalib_fewshot.models.components import Moments, RankedScore, seeded
from anomalib_fewshot.post_processing import CalibrationScheme

GRID, DIM = 6, 4


def draw_features(rng: torch.Generator, *, anomalous: bool = False, num_groups: int = 2) -> Features:
    """Return the features of an image whose patches are near its own mean. An anomaly changes three patches."""
    patches = 0.8 * torch.randn(DIM, generator=rng) + 0.6 * torch.randn(1, GRID, GRID, DIM, generator=rng)
    if anomalous:
        patches[:, 0, :3] += 3
    return Features(patches.mean((1, 2)), [patches] * num_groups, patches)


def as_fold(features: Features) -> FoldFeatures:
    """Return a fold of one image as it is."""
    moments = [Moments.of(part) for part in (*features.patches, features.embeddings)]
    return FoldFeatures(moments, features, 1, [part[:0].flatten(0, 2) for part in features.patches])


def draw_folds(count: int, seed: int = 0) -> list[FoldFeatures]:
    rng = torch.Generator().manual_seed(seed)
    return [as_fold(draw_features(rng)) for _ in range(count)]


class Network(CoftADModel):
    """CoftAD's model without a backbone, for features of ``DIM`` channels."""

    def __init__(self) -> None:
        with seeded(0):
            super().__init__("test_efficientnet", None, pre_trained=False, weights=None, image_size=(64, 64))
        self.scorer = PatchScorer(self.groups, DIM, DIM)


@pytest.fixture(scope="module")
def network() -> Network:
    return Network().eval()


def fit(network: CoftADModel, support: list[FoldFeatures], pool: list[FoldFeatures]) -> CoftADModel:
    network.fit(support, AdaptationSettings(num_steps=0, learning_rate=0.0), print, pool, support)
    return network


def score_in_bag(network: CoftADModel, fold: FoldFeatures) -> float:
    return float(network.score_support([fold]))


@pytest.mark.parametrize(("count", "num_folds", "num_nearest"), [(9, 3, 2), (4, 1, 2), (5, 5, 1), (3, 0, 2)])
def test_mean_of_the_lowest_distances_against_a_loop(count: int, num_folds: int, num_nearest: int) -> None:
    distances = torch.rand(4, 7, count, generator=torch.Generator().manual_seed(count))
    result = lowest_without_each(distances, num_folds, num_nearest)
    assert result.shape == (4, 7, 1 + num_folds)
    for member in range(1 + num_folds):
        others = [number for number in range(count) if number != member - 1]
        expected = distances[..., others].sort().values[..., :num_nearest].mean(-1)
        torch.testing.assert_close(result[..., member], expected)


def test_images_of_the_bank_are_found() -> None:
    folds, others = draw_folds(12), draw_folds(3, seed=1)
    bank = MemoryBank(DIM)
    bank.fit(folds[:4], folds[4:])
    assert bank.has_pool
    found = bank.find_own(torch.cat([fold.images.bank for fold in folds]))
    assert torch.equal(found, torch.eye(12, dtype=torch.bool))
    assert not bank.find_own(torch.cat([fold.images.bank for fold in others])).any()
    bank.fit(folds[:4])
    assert not bank.has_pool


def test_copies_of_one_image_have_finite_scores(network: Network) -> None:
    (fold,) = draw_folds(1)
    fit(network, [fold] * 3, [fold] * 8)
    assert not network.scorer.memory_bank.find_own(fold.images.bank).any()
    assert torch.isfinite(network.score_support([fold] * 3)).all()
    others = Features.cat([other.images for other in draw_folds(2, seed=3)])
    assert torch.isfinite(network.score(others)[0]).all()


def test_an_image_of_the_bank_is_compared_with_the_others() -> None:
    """The distance is the mean of those from the two nearest other images."""
    folds = draw_folds(10)
    bank = MemoryBank(DIM)
    bank.fit(folds[:2], folds[2:])
    own = bank.find_own(folds[5].images.bank)
    others = [fold.images.bank.flatten(0, 2) for number, fold in enumerate(folds) if number != 5]
    rows = folds[5].images.bank.flatten(0, 2)
    by_image = torch.stack([torch.cdist(rows, other).amin(-1) for other in others])
    expected = by_image.sort(0).values[:2].mean(0).view(GRID, GRID)
    mean, std = bank.mean[0], bank.std[0]
    z = (expected - mean) / std
    expected = torch.where(z > 0, z.clamp_min(0).log1p(), z)
    torch.testing.assert_close(bank(folds[5].images.bank, slice(0, 1), own)[0, 0], expected, rtol=1e-3, atol=1e-3)


def test_the_number_of_rows_is_limited() -> None:
    bank = MemoryBank(DIM)
    rng = torch.Generator().manual_seed(0)
    folds = []
    for _ in range(4 + MAX_POOL_SIZE):
        patches = torch.randn(1, 8, 8, DIM, generator=rng)
        folds.append(FoldFeatures([], Features(patches[:, 0, 0], [], patches), 1, []))
    bank.fit(folds[:4], folds[4:])
    assert bank.bank.shape[0] * bank.bank.shape[1] <= MAX_ROWS


def test_scores_do_not_depend_on_which_images_are_labeled(network: Network) -> None:
    """Swapping a support image and one of the pool changes neither their scores without fold 0, nor those of others."""
    folds = draw_folds(14)
    fit(network, folds[:4], folds[4:])
    before = [score_in_bag(network, fold) for fold in folds]
    swapped = [folds[9], *folds[1:9], folds[0], *folds[10:]]
    fit(network, swapped[:4], swapped[4:])
    after = [score_in_bag(network, fold) for fold in folds]
    assert before == pytest.approx(after, rel=1e-4, abs=1e-4)


def test_a_fit_without_a_support_image_has_not_seen_it(network: Network) -> None:
    """Jackknife+ for later images: the fit without an image is that to the other images and the pool."""
    folds, (new,) = draw_folds(13), draw_folds(1, seed=5)
    fit(network, folds[:3], folds[3:])
    by_fold = network.score(new.images)[0][:, 0]
    for number in range(3):
        others = [fold for position, fold in enumerate(folds[:3]) if position != number]
        fit(network, others, folds[3:])
        assert float(by_fold[1 + number]) == pytest.approx(float(network.score(new.images)[0][0, 0]), rel=1e-3)


def test_score_is_the_mean_of_both_scorers(network: Network) -> None:
    """With a pool, half of a score is that of the labeled images alone. It does not change with the pool."""
    folds, (new,) = draw_folds(13), draw_folds(1, seed=5)
    fit(network, folds[:3], folds[3:])
    assert network.is_mixed
    scores, maps = network.score(new.images)
    with_pool = mean_of_highest(network.scorer(new.images)).T
    fit(network, folds[:3], [])
    assert not network.is_mixed
    alone, alone_maps = network.score(new.images)
    torch.testing.assert_close(scores, (with_pool + alone) / 2)
    assert maps.shape == alone_maps.shape
    fit(network, folds[:1], folds[3:])  # a single labeled image has no scorer without its fold
    assert not network.is_mixed


def test_defects_of_the_pool_are_not_learned_completely(network: Network) -> None:
    """If half of the pool shows one defect, the labeled images still tell it from good images."""
    rng = torch.Generator().manual_seed(1)
    support = draw_folds(4)
    pool = [as_fold(draw_features(rng, anomalous=number % 2 == 0)) for number in range(12)]
    fit(network, support, pool)
    later = [as_fold(draw_features(rng, anomalous=number < 20)) for number in range(40)]
    scores = network.score(Features.cat([fold.images for fold in later]))[0][0]
    alone = mean_of_highest(network.scorer(Features.cat([fold.images for fold in later]), slice(0, 1)))[:, 0]
    labels = torch.arange(40) < 20
    assert roc_auc_score(labels, scores) >= roc_auc_score(labels, alone)


@pytest.mark.parametrize("num_anomalous", [0, 3])
def test_false_alarm_rate_of_images_of_the_pool_and_of_later_ones(network: Network, num_anomalous: int) -> None:
    """On average over support sets, at most 1 / (k + 1) of the good images rank above all k support images."""
    count, pool_size, num_trials = 3, 12, 60
    rng = torch.Generator().manual_seed(0)
    alarms: dict[str, list[float]] = {"pool": [], "later": []}
    found = []
    for _ in range(num_trials):
        support = [as_fold(draw_features(rng)) for _ in range(count)]
        pool = [as_fold(draw_features(rng, anomalous=number < num_anomalous)) for number in range(pool_size)]
        later = [as_fold(draw_features(rng)) for _ in range(8)]
        fit(network, support, pool)
        result = network.score_out_of_fold(support)
        ranked = RankedScore()
        ranked.fit(result.scores, result.fold, 1, network.score_support(support))
        for kind, images in (("pool", pool), ("later", later)):
            features = Features.cat([fold.images for fold in images])
            own = network.scorer.memory_bank.find_own(features.bank)
            assert own.any(-1).tolist() == [kind == "pool"] * len(images)
            scores, _ = network.score(features, own=own)
            is_defect = ranked(scores[0], scores[1:], own.any(-1)) > 1
            first_good = num_anomalous if kind == "pool" else 0
            alarms[kind].append(float(is_defect[first_good:].float().mean()))
            if first_good:
                found.append(float(is_defect[:first_good].float().mean()))
    for kind, rates in alarms.items():
        values = torch.tensor(rates)
        error = float(values.std()) / num_trials**0.5
        assert float(values.mean()) <= 1 / (count + 1) + 3 * error, kind
        assert float(values.mean()) > 0.1, kind  # the rule is not merely strict
    if found:
        assert sum(found) / len(found) > 0.7


def test_anomalies_are_synthesized_from_a_share_of_the_images() -> None:
    """The content of an image decides, not its position: labeled and unlabeled images are treated alike."""
    rng = torch.Generator().manual_seed(0)
    images = torch.rand(40, 3, 8, 8, generator=rng)

    def synthesize(image: torch.Tensor, _: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
        return image[None], torch.ones(1, 8, 8)

    def extract(batch: torch.Tensor) -> Features:
        patches = batch.movedim(1, -1)
        return Features(batch.mean((-2, -1)), [patches], patches)

    settings = FoldSettings(lambda batch, _: batch, synthesize).with_pool(40)
    chosen = []
    for order in (torch.arange(40), torch.arange(39, -1, -1)):
        folds = extract_fold_features(extract, [images[order[:4]]], settings)
        folds += extract_pool_features(extract, [images[order[4:]]], settings)
        assert [len(fold.views.bank) for fold in folds] == [2] * 40
        has_anomalies = torch.tensor([len(fold.anomalous[0]) == 64 for fold in folds])
        chosen.append(set(order[has_anomalies].tolist()))
    assert chosen[0] == chosen[1]
    assert 1 <= len(chosen[0]) <= 14  # six are expected


def test_ranks_of_images_in_the_bag() -> None:
    ranked = RankedScore()
    ranked.fit(torch.tensor([1.0, 2.0, 3.0]), torch.arange(3), 3, torch.tensor([1.5, 2.5, 3.5]))
    scores, by_fold = torch.tensor([2.0, 2.0]), torch.tensor([[2.0, 9.0]] * 3)
    result = ranked(scores, by_fold, torch.tensor([True, False]))
    assert ((result[:, None] > ranked.levels).sum(1) == torch.tensor([1, 3])).all()  # 2.0 exceeds 1.5 only


def small(**arguments) -> CoftAD:
    settings = {"backbone": "test_efficientnet", "pre_trained": False, "image_size": 64, "num_steps": 2}
    return CoftAD(**settings | arguments, visualizer=False)


def train(root: Path, results: Path, k_shot: int, unlabeled: int, **arguments) -> tuple[CoftAD, Engine, FewShot]:
    model = small(**arguments)
    engine = Engine(default_root_dir=results, enable_progress_bar=False)
    datamodule = FewShot(MVTecAD(root, "bolt", num_workers=0), k_shot=k_shot, unlabeled=unlabeled)
    engine.fit(model, datamodule=datamodule)
    return model, engine, datamodule


@torch.no_grad()
def score_files(model: CoftAD, paths: list[str]) -> torch.Tensor:
    images = torch.stack([read_image(path, as_tensor=True) for path in paths])
    return model.eval().score_images(model.preprocess(images)).pred_score


@pytest.mark.parametrize(("k_shot", "unlabeled"), [(1, 9), (2, 8)])
def test_checkpoint_scores_images_of_the_pool_without_themselves(
    k_shot: int,
    unlabeled: int,
    mvtec_root: Path,
    tmp_path: Path,
) -> None:
    model, engine, datamodule = train(mvtec_root, tmp_path, k_shot, unlabeled)
    assert model.post_processor.scheme is CalibrationScheme.JACKKNIFE_PLUS
    assert model.post_processor.guaranteed_fpr == pytest.approx(1 / (k_shot + 1))
    assert len(model.model.scorer.memory_bank.bank) == k_shot + unlabeled
    paths = [path for batch in datamodule.unlabeled_dataloader() for path in batch.image_path]
    test_paths = list(datamodule.test_data.samples.image_path)
    scores = score_files(model, paths + test_paths)
    assert scores.isfinite().all()
    loaded = CoftAD.load_from_checkpoint(engine.trainer.checkpoint_callback.best_model_path)
    torch.testing.assert_close(score_files(loaded, paths + test_paths), scores, rtol=0, atol=0)
    maps = model.model.scorer(model.model.features(torch.zeros(1, 3, 64, 64)))
    assert maps.shape[1] == model.model.num_fits == 1 + k_shot
    engine.test(model, datamodule=datamodule)
    if k_shot == 1:
        assert set(model.post_processor.verdicts(torch.tensor([0.0, 1.1]))) == {"good", "review"}
        assert "no image is called a defect" in model.post_processor.describe()


@pytest.mark.parametrize(("k_shot", "unlabeled", "kept"), [(3, 0, [0, 2]), (2, 8, [1])])
def test_some_images_do_not_set_the_thresholds(
    k_shot: int,
    unlabeled: int,
    kept: list[int],
    mvtec_root: Path,
    tmp_path: Path,
) -> None:
    model, _, datamodule = train(mvtec_root, tmp_path, k_shot, unlabeled)
    ranked, post_processor = model.model.ranked_score, model.post_processor
    scores, in_bag_scores = ranked.out_of_fold_scores.clone(), ranked.in_bag_scores.clone()
    paths = list(datamodule.test_data.samples.image_path)
    before = score_files(model, paths)
    model.calibrate_on(kept)
    assert torch.equal(ranked.out_of_fold_scores, scores[kept])
    assert torch.equal(ranked.in_bag_scores, in_bag_scores[kept])
    assert ranked.fold.tolist() == kept
    assert len(post_processor.calibration_scores) == len(kept)
    assert post_processor.guaranteed_fpr == pytest.approx(1 / (1 + len(kept)))
    assert float(post_processor.calibration_scores[-1]) == pytest.approx(1)
    assert (score_files(model, paths) >= before - 1e-4).all()  # relative to the most unusual of fewer images
    with pytest.raises(ArgumentError, match="`images` must be numbers of support images"):
        model.calibrate_on([])


def test_export_with_a_pool(mvtec_root: Path, tmp_path: Path) -> None:
    """The exported graph knows the images of the pool as the model does."""
    model, _, datamodule = train(mvtec_root, tmp_path, 2, 8)
    paths = [path for batch in datamodule.unlabeled_dataloader() for path in batch.image_path][:2]
    paths += list(datamodule.test_data.samples.image_path)[-2:]
    images = torch.stack([read_image(path, as_tensor=True) for path in paths])
    with torch.no_grad():
        expected = model.eval()(images)
    onnx = model.to_onnx(tmp_path)
    session = onnxruntime.InferenceSession(onnx)
    for number, image in enumerate(images):
        outputs = session.run(["pred_score"], {"input": image[None].numpy()})
        assert float(outputs[0].squeeze()) == pytest.approx(float(expected.pred_score[number]), abs=1e-4)


def test_the_published_form_warns_that_it_uses_no_pool(
    mvtec_root: Path,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    with caplog.at_level(logging.WARNING):
        model, _, _ = train(mvtec_root, tmp_path, 2, 8, published=True, num_steps=0)
    assert "CoftAD does not use the 8 unlabeled images" in caplog.text
    assert not model.model.scorer.memory_bank.has_pool


def test_few_unlabeled_images_are_not_used(
    mvtec_root: Path,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    with caplog.at_level(logging.WARNING):
        model, _, datamodule = train(mvtec_root, tmp_path / "few", 2, 7)
    assert "7 unlabeled images are not used" in caplog.text
    without, _, _ = train(mvtec_root, tmp_path / "none", 2, 0)
    paths = list(datamodule.test_data.samples.image_path)
    torch.testing.assert_close(score_files(model, paths), score_files(without, paths), rtol=0, atol=0)


def test_of_many_unlabeled_images_some_are_used(mvtec_root: Path) -> None:
    datamodule = FewShot(MVTecAD(mvtec_root, "bolt", num_workers=0), k_shot=2, unlabeled=8)
    datamodule.setup("fit")
    paths = [path for batch in datamodule.unlabeled_dataloader() for path in batch.image_path]
    chosen = [path for batch in datamodule.unlabeled_dataloader(max_images=3) for path in batch.image_path]
    again = [path for batch in datamodule.unlabeled_dataloader(max_images=3) for path in batch.image_path]
    assert len(set(chosen)) == 3
    assert chosen == again == sorted(chosen, key=paths.index)
    assert set(chosen) != set(paths[:3])
