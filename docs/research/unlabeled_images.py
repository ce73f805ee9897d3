# Copyright (C) 2026 anomalib-fewshot contributors
# SPDX-License-Identifier: Apache-2.0

"""Compare CoftAD with and without a pool of unlabeled images on folders in MVTec AD's layout.

python unlabeled_images.py ROOT [ROOT ...] [--k_shot 4] [--seeds 0 1] [--pool 0 60] [--contamination 0 0.05 0.1 0.3]

The backbone is frozen: the features of each image are computed once. The pool is smaller if a set has fewer images. The
column `bank` is PatchCore's score from the same memory bank: the highest distance from the nearest patch.
"""

import argparse
from dataclasses import dataclass, field
from math import prod
from pathlib import Path

import pandas as pd
import torch
from anomalib.data.utils import read_image
from sklearn.metrics import roc_auc_score

from anomalib_fewshot import CoftAD, FewShot, MVTecFolder
from anomalib_fewshot.data.support import image_shapes
from anomalib_fewshot.models.coft_ad.features import Features
from anomalib_fewshot.models.coft_ad.folds import (
    MIN_POOL_SIZE,
    FoldFeatures,
    FoldSettings,
    extract_fold_features,
    extract_pool_features,
)
from anomalib_fewshot.models.components import RankedScore, choose_image_size, nearest_distances


@dataclass
class Images:
    """Features of the images of one folder, each computed once."""

    model: CoftAD
    features: dict[str, Features] = field(default_factory=dict)
    folds: dict[str, FoldFeatures] = field(default_factory=dict)

    def read(self, path: str) -> torch.Tensor:
        """Return a normalized image, shape ``(1, 3, H, W)``."""
        return self.model.pre_processor.transform(read_image(path, as_tensor=True)[None])

    def score_features(self, path: str) -> Features:
        """Return the features of an image."""
        if path not in self.features:
            self.features[path] = self.model.model.features(self.read(path))
        return self.features[path]

    def pool(self, paths: list[str], settings: FoldSettings) -> list[FoldFeatures]:
        """Return the features of a pool."""
        for path in paths:
            if path not in self.folds:
                (self.folds[path],) = extract_pool_features(self.model.model.features, [self.read(path)], settings)
        return [self.folds[path] for path in paths]


def measure(root: Path, cache: dict, k_shot: int, seed: int, size: int, contamination: float) -> dict:
    """Return the figures of one support set and pool. ``cache`` has the :class:`Images` of each image size."""
    source = MVTecFolder(root.parent, root.name, num_workers=0)
    size = min(size, len(list((root / "train").glob("*/*"))) - k_shot)
    if size < MIN_POOL_SIZE:
        size, contamination = 0, 0
    datamodule = FewShot(source, k_shot=k_shot, seed=seed, unlabeled=size or None, contamination=contamination)
    datamodule.setup("fit")
    image_size = choose_image_size(image_shapes(datamodule), prod(CoftAD.default_image_size), 32)
    if image_size not in cache:
        cache[image_size] = Images(CoftAD(seed=seed, image_size=image_size, evaluator=False, visualizer=False).eval())
    images = cache[image_size]
    network, settings = images.model.model, images.model.fold_settings()
    pool: list[FoldFeatures] = []
    support_folds: list[FoldFeatures] = []
    support = [images.model.pre_processor.transform(batch.image) for batch in datamodule.support_dataloader()]
    if size:
        support_folds = extract_fold_features(network.features, support, settings)
        settings = settings.with_pool(k_shot + size)
        paths = [path for batch in datamodule.unlabeled_dataloader() for path in batch.image_path]
        pool = images.pool(paths, settings)
    folds = extract_fold_features(network.features, support, settings)
    network.fit(folds, images.model.adaptation, lambda _: None, pool, support_folds)
    ranked = RankedScore(network.ranked_score.weight)
    if network.num_fits > 1:
        result = network.score_out_of_fold(folds)
        in_bag = network.score_support(folds) if pool else None
        ranked.fit(result.scores, result.fold, min(2, k_shot), in_bag)
    scores, highest = [], []
    samples = datamodule.test_data.samples
    for path in samples.image_path:
        features = images.score_features(str(path))
        by_fit, _ = network.score(features)
        scores.append(ranked(by_fit[0], by_fit[1:]))
        highest.append(nearest_distances(features.bank, network.scorer.memory_bank.bank).amin(-1).max())
    values, labels = torch.cat(scores), torch.tensor(samples.label_index.to_numpy()).bool()
    row = {"set": root.name, "k_shot": k_shot, "seed": seed, "pool": size, "contamination": contamination}
    row |= {"auroc": roc_auc_score(labels, values), "bank": roc_auc_score(labels, torch.stack(highest))}
    if network.num_fits > 1:
        above = values > 1
        row |= {"false_alarms": float(above[~labels].float().mean()), "recall": float(above[labels].float().mean())}
    return row


def main() -> None:
    """Print the mean of each set, and write all figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("roots", nargs="+", type=Path)
    parser.add_argument("--k_shot", nargs="+", type=int, default=[4])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1])
    parser.add_argument("--pool", nargs="+", type=int, default=[0, 60])
    parser.add_argument("--contamination", nargs="+", type=float, default=[0, 0.05, 0.1, 0.3])
    parser.add_argument("--results", type=Path, default=Path("unlabeled_images.csv"))
    arguments = parser.parse_args()
    rows: list[dict] = []
    for root in sorted(path.parent for parent in arguments.roots for path in parent.glob("*/train")):
        for seed in arguments.seeds:
            cache: dict = {}
            for k_shot in arguments.k_shot:
                for size in arguments.pool:
                    for contamination in arguments.contamination if size else [0]:
                        row = measure(root, cache, k_shot, seed, size, contamination)
                        rows.append(row | {"requested": size})
                        pd.DataFrame(rows).to_csv(arguments.results, index=False)
        print(root.name, flush=True)
    table = pd.DataFrame(rows)
    for value in ("auroc", "bank", "recall"):
        columns = ["requested", "contamination"]
        print(table.pivot_table(index=["k_shot", "set"], columns=columns, values=value).round(3).to_string())


if __name__ == "__main__":
    with torch.no_grad():
        main()
