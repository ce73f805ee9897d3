# Copyright (C) 2026 anomalib-fewshot contributors
# SPDX-License-Identifier: Apache-2.0

"""Compare threshold rules for k normal images over random support sets: false-alarm rate and recall.

Usage: python threshold_rules.py CATEGORY... [--k_shot 2 4 8 16] [--supports 100] [--num_steps 0] [--image_size 224]
    [--results rules.csv]

CATEGORY is a folder in the layout of MVTec AD. Support sets and new images are sampled from all normal images in
`train` and `test`, so that they are exchangeable, as the guarantee requires. Features are computed once. Each row of
the results is one support set. The printed table contains means: false-alarm rate ± standard error (95th percentile
over support sets) / recall.
"""

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from anomalib.data.utils import read_image
from scipy.stats import betaprime
from sklearn.metrics import precision_recall_curve

from anomalib_fewshot import CoftAD
from anomalib_fewshot.models.coft_ad.features import Features
from anomalib_fewshot.models.coft_ad.folds import FoldFeatures, extract_fold_features
from anomalib_fewshot.models.components import seeded_generator

NUM_NEW = 20  # normal images, and defects, to score for each support set
NUM_ANOMALIES = 6  # synthetic anomalies per support image, one of each kind


class Category:
    """Features of a category: normal images, defects, and anomalies synthesized from normal images."""

    def __init__(self, root: Path, model: CoftAD) -> None:
        def read(path: Path) -> torch.Tensor:
            return model.pre_processor.transform(read_image(path, as_tensor=True)[None])

        self.name = root.name
        self.good: list[FoldFeatures] = []
        self.anomalies: list[Features] = []
        paths = sorted(path for part in ("train", "test") for path in (root / part / "good").iterdir())
        for number, path in enumerate(paths):
            image = read(path)
            settings = replace(model.fold_settings(), seed=number, single_image_views=1)  # as one of several images
            self.good += extract_fold_features(model.model.features, [image], settings)
            anomalies, _ = model.synthesize(image[0], seeded_generator(1, number))
            self.anomalies.append(model.model.features(anomalies[:: len(anomalies) // NUM_ANOMALIES]))
        defects = sorted(path for path in (root / "test").glob("*/*") if path.parent.name != "good")
        self.defects = [model.model.features(read(path)) for path in defects]


def best_f1(normal: np.ndarray, anomalous: np.ndarray) -> float:
    """Return the threshold with the best F1 score."""
    is_anomalous = np.repeat([False, True], [len(normal), len(anomalous)])
    precision, recall, thresholds = precision_recall_curve(is_anomalous, np.concatenate([normal, anomalous]))
    f1 = 2 * precision * recall / np.maximum(precision + recall, 1e-9)
    return float(np.nextafter(thresholds[f1[:-1].argmax()], -np.inf))


def beta_prime(scores: np.ndarray) -> float:
    """Return the 95 % quantile of a beta prime distribution of the scores. It is infinite for fewer than four."""
    return float(betaprime.ppf(0.95, *betaprime.fit(scores, floc=0))) if len(scores) > 3 else np.inf


def compare(category: Category, model: CoftAD, k_shot: int, rng: np.random.Generator) -> dict[str, float]:
    """Return false-alarm rate and recall of each rule for one support set."""
    network = model.model
    order = rng.permutation(len(category.good))
    support, new = order[:k_shot], order[k_shot:][:NUM_NEW]
    defects = rng.permutation(len(category.defects))[:NUM_NEW]
    folds = [category.good[index] for index in support]
    network.fit(folds, model.adaptation, on_step=lambda _: None)
    tested = [category.good[index].images for index in new] + [category.defects[index] for index in defects]
    is_defect = np.repeat([False, True], [len(new), len(defects)])
    by_fold = network.score(Features.cat(tested))[0].numpy()
    defective = [replace(category.good[index], views=category.anomalies[index], num_views=1) for index in support]
    held_out, anomalies = (network.score_out_of_fold(parts).scores.numpy() for parts in (folds, defective))
    training = network.score(Features.cat([fold.images for fold in folds]))[0][0].numpy()
    scores = by_fold[0]
    half = np.arange(len(scores)) % 2 == 0  # for the rule that fits the threshold to half of the test images
    low, high = np.quantile(held_out, [0.25, 0.75])
    thresholds = {
        "highest held-out score": held_out.max(),
        "whisker of held-out scores": high + 1.5 * (high - low),
        "beta prime of held-out scores": beta_prime(held_out),
        "best F1, synthetic anomalies": best_f1(held_out, anomalies),
        "best F1, half of the test images": best_f1(scores[half & ~is_defect], scores[half & is_defect]),
        "highest training score": training.max(),
    }
    alarms = {"exceeds all held-out scores": (by_fold[1:] > held_out[:, None]).all(0)}
    alarms |= {rule: scores > threshold for rule, threshold in thresholds.items()}
    row = {}
    for rule, alarm in alarms.items():
        is_evaluated = ~half if "half" in rule else np.ones_like(half)
        row[f"{rule}: false alarms"] = alarm[is_evaluated & ~is_defect].mean()
        row[f"{rule}: recall"] = alarm[is_evaluated & is_defect].mean()
    return row


def sweep(root: Path, model: CoftAD, k_shots: Sequence[int], supports: int) -> Iterator[dict]:
    """Yield one row per support set of a category. Features are freed afterwards."""
    category = Category(root, model)
    for k_shot in k_shots:
        for support in range(supports):
            row = compare(category, model, k_shot, np.random.default_rng([k_shot, support]))
            yield {"category": category.name, "k_shot": k_shot, "support": support, **row}


def table(rows: pd.DataFrame) -> pd.DataFrame:
    """Return mean false-alarm rate and recall over the categories, for each rule and k."""
    measured = rows.melt(["category", "k_shot", "support"], var_name="what").dropna()
    measured[["rule", "what"]] = measured["what"].str.split(": ", expand=True).to_numpy()
    groups = measured.pivot_table(index=["rule", "k_shot", "category", "support"], columns="what", values="value")
    cells = []
    for (rule, k_shot), group in groups.groupby(level=["rule", "k_shot"]):
        alarms = group["false alarms"].groupby("category")
        error = np.sqrt((alarms.sem() ** 2).sum()) / len(alarms)
        worst, recall = alarms.quantile(0.95).mean(), group["recall"].groupby("category").mean().mean()
        cell = f"{alarms.mean().mean():.3f} ± {error:.3f} ({worst:.2f}) / {recall:.2f}"
        cells.append({"rule": rule, "k": k_shot, "cell": cell})
    return pd.DataFrame(cells).pivot_table(index="rule", columns="k", values="cell", aggfunc="first")


def main() -> None:
    """Print the table and write the results of each support set."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("categories", nargs="+", type=Path)
    parser.add_argument("--k_shot", nargs="+", type=int, default=[2, 4, 8, 16])
    parser.add_argument("--supports", type=int, default=100)
    parser.add_argument("--num_steps", type=int, default=0)
    parser.add_argument("--image_size", type=int, default=224)
    parser.add_argument("--results", type=Path, default=Path("rules.csv"))
    arguments = parser.parse_args()
    model = CoftAD(num_steps=arguments.num_steps, image_size=arguments.image_size).eval()
    rows: list[dict] = []
    for root in arguments.categories:
        for row in sweep(root, model, arguments.k_shot, arguments.supports):
            rows.append(row)
            pd.DataFrame(rows).to_csv(arguments.results, index=False)
    print(table(pd.DataFrame(rows)).to_string())


if __name__ == "__main__":
    with torch.no_grad():
        main()
