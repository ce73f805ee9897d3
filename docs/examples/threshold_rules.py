# Copyright (C) 2026 anomalib-fewshot contributors
# SPDX-License-Identifier: Apache-2.0

"""Compare rules that take a threshold from k good pictures, over random supports: false alarms, and defects found.

python threshold_rules.py CATEGORY... [--k_shot 2 4 8 16] [--supports 100] [--num_steps 0] [--image_size 224]
    [--results rules.csv]

A CATEGORY is a folder in MVTec AD's layout. Support and new pictures are drawn from all good pictures of the category,
those of `train` and those of `test`, so that they are exchangeable, which is what the guarantee is about. Features are
computed once, fits are those of CoftAD. A row of the results is a support; what is printed is the mean over them: false
alarms ± their standard error (those of the worst 5 % of supports) / recall.
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

NEW = 20  # good pictures that are scored for each support, and as many defects
ANOMALIES = 6  # synthesised from each picture of the support, one of each kind, for the rule that uses them


class Category:
    """Features of the pictures of a category: good ones, defects, and anomalies synthesised from good ones."""

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
            self.anomalies.append(model.model.features(anomalies[:: len(anomalies) // ANOMALIES]))
        defects = sorted(path for path in (root / "test").glob("*/*") if path.parent.name != "good")
        self.defects = [model.model.features(read(path)) for path in defects]


def best_f1(normal: np.ndarray, anomalous: np.ndarray) -> float:
    """Return the line that scores of the best F1 are above."""
    is_anomalous = np.repeat([False, True], [len(normal), len(anomalous)])
    precision, recall, lines = precision_recall_curve(is_anomalous, np.concatenate([normal, anomalous]))
    f1 = 2 * precision * recall / np.maximum(precision + recall, 1e-9)
    return float(np.nextafter(lines[f1[:-1].argmax()], -np.inf))


def beta_prime(scores: np.ndarray) -> float:
    """Return the 95 % quantile of a beta prime distribution of scores, infinite for fewer than four."""
    return float(betaprime.ppf(0.95, *betaprime.fit(scores, floc=0))) if len(scores) > 3 else np.inf


def compare(category: Category, model: CoftAD, k_shot: int, rng: np.random.Generator) -> dict[str, float]:
    """Return false alarms and recall of each rule with one support."""
    network = model.model
    order = rng.permutation(len(category.good))
    support, new = order[:k_shot], order[k_shot:][:NEW]
    defects = rng.permutation(len(category.defects))[:NEW]
    folds = [category.good[index] for index in support]
    network.fit(folds, model.adaptation, on_step=lambda _: None)
    tested = [category.good[index].images for index in new] + [category.defects[index] for index in defects]
    is_defect = np.repeat([False, True], [len(new), len(defects)])
    by_fold = network.score(Features.cat(tested))[0].numpy()
    defective = [replace(category.good[index], views=category.anomalies[index], num_views=1) for index in support]
    held_out, anomalies = (network.score_out_of_fold(parts).scores.numpy() for parts in (folds, defective))
    seen = network.score(Features.cat([fold.images for fold in folds]))[0][0].numpy()
    scores = by_fold[0]
    half = np.arange(len(scores)) % 2 == 0  # upstream takes the threshold from one half of the test pictures
    low, high = np.quantile(held_out, [0.25, 0.75])
    lines = {
        "highest held-out score": held_out.max(),
        "whisker of held-out scores": high + 1.5 * (high - low),
        "beta prime of held-out scores": beta_prime(held_out),
        "best F1, synthesised anomalies": best_f1(held_out, anomalies),
        "best F1, half of the test pictures": best_f1(scores[half & ~is_defect], scores[half & is_defect]),
        "highest training score": seen.max(),
    }
    alarms = {"beats all held-out": (by_fold[1:] > held_out[:, None]).all(0)}
    alarms |= {rule: scores > line for rule, line in lines.items()}
    row = {}
    for rule, alarm in alarms.items():
        tested_by = ~half if "half" in rule else half | ~half
        row[f"{rule}: false alarms"] = alarm[tested_by & ~is_defect].mean()
        row[f"{rule}: recall"] = alarm[tested_by & is_defect].mean()
    return row


def sweep(root: Path, model: CoftAD, k_shots: Sequence[int], supports: int) -> Iterator[dict]:
    """Yield a row for each support of a category, whose features are not kept."""
    category = Category(root, model)
    for k_shot in k_shots:
        for support in range(supports):
            own = compare(category, model, k_shot, np.random.default_rng([k_shot, support]))
            yield {"category": category.name, "k_shot": k_shot, "support": support, **own}


def table(rows: pd.DataFrame) -> pd.DataFrame:
    """Return false alarms and recall of each rule and k: means over the categories."""
    measured = rows.melt(["category", "k_shot", "support"], var_name="what").dropna()
    measured[["rule", "what"]] = measured["what"].str.split(": ", expand=True).to_numpy()
    groups = measured.pivot_table(index=["rule", "k_shot", "category", "support"], columns="what", values="value")
    cells = []
    for (rule, k_shot), own in groups.groupby(level=["rule", "k_shot"]):
        alarms = own["false alarms"].groupby("category")
        error = np.sqrt((alarms.sem() ** 2).sum()) / len(alarms)
        worst, recall = alarms.quantile(0.95).mean(), own["recall"].groupby("category").mean().mean()
        cell = f"{alarms.mean().mean():.3f} ± {error:.3f} ({worst:.2f}) / {recall:.2f}"
        cells.append({"rule": rule, "k": k_shot, "cell": cell})
    return pd.DataFrame(cells).pivot_table(index="rule", columns="k", values="cell", aggfunc="first")


def main() -> None:
    """Print the table, and keep the figures of each support."""
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
        for own in sweep(root, model, arguments.k_shot, arguments.supports):
            rows.append(own)
            pd.DataFrame(rows).to_csv(arguments.results, index=False)
    print(table(pd.DataFrame(rows)).to_string())


if __name__ == "__main__":
    with torch.no_grad():
        main()
