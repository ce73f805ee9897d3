# Copyright (C) 2026 anomalib-fewshot contributors
# SPDX-License-Identifier: Apache-2.0

"""Compare CoftAD with and without its feature group "direction and length" on folders in MVTec AD's layout.

python coft_ad_third_group.py ROOT [--k_shot 1 2 4] [--seeds 0 1] [--results third_group.csv]

The backbone is frozen: the features of a test image are computed once for all support sets and both variants.
"""

import argparse
from dataclasses import replace
from pathlib import Path

import pandas as pd
import torch
from anomalib.data.utils import read_image
from sklearn.metrics import roc_auc_score

from anomalib_fewshot import CoftAD, FewShot, MVTecFolder
from anomalib_fewshot.models.coft_ad.features import FEATURE_GROUPS, Features
from anomalib_fewshot.models.coft_ad.folds import FoldFeatures, extract_fold_features
from anomalib_fewshot.models.coft_ad.torch_model import CoftADModel

VARIANTS = {"three groups": (0, 1, 2), "without direction and length": (0, 2)}
MAX_TEST = 60  # normal images, and as many anomalous ones, evenly spaced


def select(features: Features, groups: tuple[int, ...]) -> Features:
    """Return features with some of the groups."""
    return replace(features, patches=[features.patches[number] for number in groups])


def fit(model: CoftAD, folds: list[FoldFeatures], groups: tuple[int, ...]) -> CoftADModel:
    """Fit a model with some of the groups. It ranks scores as the calibration of the default does."""
    network = CoftADModel(
        model.hparams["backbone"],
        layers=None,
        pre_trained=False,
        weights=None,
        image_size=(320, 320),
        groups=[FEATURE_GROUPS[number] for number in groups],
    )
    parts = []
    for fold in folds:
        moments = [fold.moments[number] for number in (*groups, -1)]
        anomalous = [fold.anomalous[number] for number in groups]
        parts.append(replace(fold, moments=moments, views=select(fold.views, groups), anomalous=anomalous))
    network.eval().fit(parts, model.adaptation, lambda _: None)
    if len(parts) > 1:
        result = network.score_out_of_fold(parts)
        network.ranked_score.fit(result.scores, result.fold, min(2, len(parts) - 1))
    return network


def measure(root: Path, k_shots: list[int], seeds: list[int]) -> list[dict]:
    """Return the image AUROC of each variant, k and seed on one folder."""
    networks = {}
    for seed in seeds:
        model = CoftAD(seed=seed, evaluator=False, visualizer=False).eval()
        transform = model.pre_processor.transform
        for k_shot in k_shots:
            datamodule = FewShot(MVTecFolder(root.parent, root.name, num_workers=0), k_shot=k_shot, seed=seed)
            datamodule.setup("fit")
            support = [transform(batch.image) for batch in datamodule.support_dataloader()]
            folds = extract_fold_features(model.model.features, support, model.fold_settings())
            for name, groups in VARIANTS.items():
                networks[name, k_shot, seed] = fit(model, folds, groups)
    paths: list[tuple[Path, bool]] = []
    for is_defect in (False, True):
        found = sorted(path for path in (root / "test").glob("*/*") if (path.parent.name != "good") == is_defect)
        paths += [(path, is_defect) for path in found[:: max(1, len(found) // MAX_TEST)][:MAX_TEST]]
    scores: dict[tuple, list[float]] = {case: [] for case in networks}
    for path, _ in paths:
        features = model.model.features(transform(read_image(path, as_tensor=True)[None]))
        for case, network in networks.items():
            by_fold, _ = network.score(select(features, VARIANTS[case[0]]))
            scores[case].append(float(network.ranked_score(by_fold[0], by_fold[1:])))
    labels = [is_defect for _, is_defect in paths]
    columns = ("variant", "k_shot", "seed")
    rows = []
    for case, values in scores.items():
        rows.append(dict(zip(columns, case, strict=True)) | {"set": root.name, "auroc": roc_auc_score(labels, values)})
    return rows


def main() -> None:
    """Print the mean of each set and k, and write all figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("root", type=Path)
    parser.add_argument("--k_shot", nargs="+", type=int, default=[1, 2, 4])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1])
    parser.add_argument("--results", type=Path, default=Path("third_group.csv"))
    arguments = parser.parse_args()
    rows: list[dict] = []
    for root in sorted(path.parent for path in arguments.root.glob("*/train")):
        rows += measure(root, arguments.k_shot, arguments.seeds)
        pd.DataFrame(rows).to_csv(arguments.results, index=False)
        table = pd.DataFrame(rows).pivot_table(index=["set", "k_shot"], columns="variant", values="auroc")
        print(table.round(3).to_string(), flush=True)


if __name__ == "__main__":
    with torch.no_grad():
        main()
