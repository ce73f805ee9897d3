# Copyright (C) 2026 anomalib-fewshot contributors
# SPDX-License-Identifier: Apache-2.0

"""Measure CoftAD's false-alarm rate with a pool of unlabeled images, over many support sets of real images.

python unlabeled_guarantee.py ROOT [ROOT ...] [--trials 100] [--results unlabeled_guarantee.csv]

Each ROOT contains folders in MVTec AD's layout. So that thousands of fits are possible, features are reduced to 16
channels (random projection) on a grid of 10 x 10. This changes scores but not the guarantee, which holds for any
features. Images of the pool are scored without themselves (full conformal prediction), others by jackknife+. The good
images are the training and test images of a set together, shuffled: the guarantee needs exchangeable images.
"""

import argparse
from pathlib import Path

import pandas as pd
import torch
from anomalib.data.utils import read_image
from torch.nn import functional as F  # noqa: N812

from anomalib_fewshot import CoftAD
from anomalib_fewshot.models.coft_ad.adaptation import AdaptationSettings
from anomalib_fewshot.models.coft_ad.features import Features
from anomalib_fewshot.models.coft_ad.folds import MIN_POOL_SIZE, FoldFeatures
from anomalib_fewshot.models.coft_ad.patch_scorer import PatchScorer
from anomalib_fewshot.models.coft_ad.torch_model import CoftADModel
from anomalib_fewshot.models.components import Moments, RankedScore, seeded_generator

GRID, DIM = 10, 16
CASES = ((0, 0.0), (16, 0.0), (16, 0.1), (64, 0.0), (64, 0.1))  # pool size, contamination
NUM_LATER = 12  # good images outside the pool in each trial
NO_TRAINING = AdaptationSettings(num_steps=0, learning_rate=0.0)


def reduce_grid(patches: torch.Tensor, seed: int) -> torch.Tensor:
    """Return patches, ``(B, h, w, D)``, as ``(B, GRID, GRID, DIM)``."""
    projection = torch.randn(patches.shape[-1], DIM, generator=seeded_generator(seed))
    pooled = F.adaptive_avg_pool2d(patches.movedim(-1, 1), GRID).movedim(1, -1)
    return pooled @ projection / DIM**0.5


def extract(model: CoftAD, path: Path) -> Features:
    """Return the reduced features of an image and of its mirror image."""
    image = model.pre_processor.transform(read_image(path, as_tensor=True)[None])
    features = model.model.features(torch.cat([image, image.flip(-1)]))
    patches = [reduce_grid(part, seed) for seed, part in enumerate(features.patches)]
    return Features(features.embeddings[:, :2], patches, reduce_grid(features.bank, len(patches)))


def as_fold(features: Features, num_views: int = 1) -> FoldFeatures:
    """Return a fold of one image: as it is, as with a pool, or with its mirror image, as without."""
    own = features[:num_views]
    moments = [Moments.of(part) for part in (*own.patches, own.embeddings)]
    return FoldFeatures(moments, own, num_views, [part[:0].flatten(0, 2) for part in own.patches])


def make_network() -> CoftADModel:
    """Return CoftAD's model for the reduced features. Its backbone is not used."""
    network = CoftADModel("tf_efficientnet_lite0", None, pre_trained=False, weights=None, image_size=(64, 64)).eval()
    network.scorer = PatchScorer(network.groups, DIM, DIM)
    return network


def trial(
    network: CoftADModel,
    support: list[Features],
    pool: list[Features],
    later: list[Features],
) -> tuple[list[bool], list[bool]]:
    """Return whether each image of the pool and each later image ranks above all support images."""
    folds = [as_fold(features, 1 if pool else 2) for features in support]
    views = [as_fold(features, 2) for features in support] if pool else []
    network.fit(folds, NO_TRAINING, print, [as_fold(features) for features in pool], views)
    result = network.score_out_of_fold(folds)
    ranked = RankedScore()
    ranked.fit(result.scores, result.fold, 1, network.score_support(folds) if pool else None)
    alarms = []
    for images in (pool, later):
        above: list[bool] = []
        if images:
            features = Features.cat([image[:1] for image in images])
            own = network.scorer.memory_bank.find_own(features.bank) if pool else None
            scores, _ = network.score(features, own=own)
            above = (ranked(scores[0], scores[1:], None if own is None else own.any(-1)) > 1).tolist()
        alarms.append(above)
    return alarms[0], alarms[1]


def measure(root: Path, model: CoftAD, network: CoftADModel, num_trials: int) -> list[dict]:
    """Return the false-alarm rate and recall of each k and case on one folder, averaged over trials."""
    good = [extract(model, path) for path in sorted([*root.glob("train/good/*"), *root.glob("test/good/*")])]
    bad = [extract(model, path) for path in sorted(root.glob("test/*/*")) if path.parent.name != "good"]
    rows = []
    for k_shot in (1, 2, 4, 8):
        for size, contamination in CASES:
            num_bad = round(size * contamination)
            num_good = min(size - num_bad, len(good) - k_shot - NUM_LATER)
            if (size > 0 and num_good + num_bad < MIN_POOL_SIZE) or (size == 0 and k_shot == 1):
                continue
            rates: dict[str, list[float]] = {"pool": [], "later": [], "pool_recall": [], "later_recall": []}
            for number in range(num_trials):
                rng = seeded_generator(number)
                drawn = [good[i] for i in torch.randperm(len(good), generator=rng)]
                defects = [bad[i] for i in torch.randperm(len(bad), generator=rng)]
                support, rest = drawn[:k_shot], drawn[k_shot:]
                pool = defects[:num_bad] + rest[: num_good if size else 0]
                later = defects[num_bad : num_bad + NUM_LATER]
                num_later_bad = len(later)
                later = later + rest[-NUM_LATER:]
                in_pool, outside = trial(network, support, pool, later)
                parts = {
                    "pool": in_pool[num_bad:],
                    "pool_recall": in_pool[:num_bad],
                    "later": outside[num_later_bad:],
                    "later_recall": outside[:num_later_bad],
                }
                for name, part in parts.items():
                    if part:
                        rates[name].append(sum(part) / len(part))
            row = {"set": root.name, "k_shot": k_shot, "pool_size": size, "contamination": contamination}
            row["bound"] = 1 / (k_shot + 1)
            for name, values in rates.items():
                row[name] = float(torch.tensor(values).mean()) if values else float("nan")
                if len(values) > 1:
                    row[f"{name}_error"] = float(torch.tensor(values).std()) / len(values) ** 0.5
            rows.append(row)
    return rows


def main() -> None:
    """Print the rates of each set, and the mean over the sets."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("roots", nargs="+", type=Path)
    parser.add_argument("--trials", type=int, default=100)
    parser.add_argument("--results", type=Path, default=Path("unlabeled_guarantee.csv"))
    arguments = parser.parse_args()
    model, network = CoftAD(evaluator=False, visualizer=False).eval(), make_network()
    rows: list[dict] = []
    for parent in arguments.roots:
        for root in sorted(path.parent for path in parent.glob("*/train")):
            rows += measure(root, model, network, arguments.trials)
            pd.DataFrame(rows).to_csv(arguments.results, index=False)
            print(root.name, flush=True)
    columns = ["bound", "pool", "later", "pool_recall", "later_recall"]
    table = pd.DataFrame(rows).groupby(["k_shot", "pool_size", "contamination"])[columns].mean()
    print(table.round(3).to_string())


if __name__ == "__main__":
    with torch.no_grad():
        main()
