# Copyright (C) 2026 anomalib-fewshot contributors
# SPDX-License-Identifier: Apache-2.0

"""Compare CoftAD, AnomalyDINO's nearest neighbor and PatchCore's memory bank on the features of one ViT.

python vit_compare.py ROOT --weights vit_s_focus.safetensors [--k_shot 1 4] [--seeds 0 1]

`vit_weights.py` creates the weight file. All methods use the same images, layers and size. AnomalyDINO: cosine distance
of the last layer from the nearest support patch, mean of the highest 1 %. PatchCore: distance of means over 3 x 3
positions of all layers, maximum. Neither has a coreset or rotated views. Features are computed once.
"""

import argparse
from math import prod
from pathlib import Path

import pandas as pd
import torch
from anomalib.data.utils import read_image
from sklearn.metrics import roc_auc_score
from torch.nn import functional as F  # noqa: N812

from anomalib_fewshot import CoftAD, FewShot, MVTecFolder
from anomalib_fewshot.data.support import image_shapes
from anomalib_fewshot.models.coft_ad.folds import extract_fold_features
from anomalib_fewshot.models.components import choose_image_size, nearest_distances


def read(model: CoftAD, path: str) -> torch.Tensor:
    """Return a normalized image, shape ``(1, 3, H, W)``."""
    return model.pre_processor.transform(read_image(path, as_tensor=True)[None])


def last_layer(model: CoftAD, image: torch.Tensor) -> torch.Tensor:
    """Return the patches of the last layer with unit length: ``(1, 3, H, W)`` -> ``(h w, C)``."""
    return F.normalize(model.model.backbone(image)[-1][0].flatten(1).T, dim=-1)


def measure(root: Path, arguments: argparse.Namespace, k_shot: int, seed: int, cache: dict) -> dict:
    """Return the image AUROC of each method."""
    datamodule = FewShot(MVTecFolder(root.parent, root.name, num_workers=0), k_shot=k_shot, seed=seed)
    datamodule.setup("fit")
    size = choose_image_size(image_shapes(datamodule), prod(CoftAD.default_image_size), 14)
    settings = {"image_size": size, "num_steps": arguments.num_steps, "evaluator": False, "visualizer": False}
    model = CoftAD(arguments.backbone, arguments.layers, weights=arguments.weights, seed=seed, **settings).eval()
    network = model.model
    support = [str(path) for path in datamodule.support_data.samples.image_path]
    folds = extract_fold_features(network.features, [read(model, path) for path in support], model.fold_settings())
    network.fit(folds, model.adaptation, lambda _: None)
    tokens = torch.cat([last_layer(model, read(model, path)) for path in support])
    bank = torch.cat([network.features(read(model, path)).bank[0].flatten(0, 1) for path in support])
    scores: dict[str, list[float]] = {"CoftAD": [], "AnomalyDINO": [], "PatchCore": []}
    samples = datamodule.test_data.samples
    for path in samples.image_path:
        if (size, path) not in cache:
            image = read(model, str(path))
            maps = network.backbone(image)
            cache[size, path] = network.features(image), F.normalize(maps[-1][0].flatten(1).T, dim=-1)
        features, last = cache[size, path]
        scores["CoftAD"].append(float(network.score(features)[0][0]))
        distances = 1 - (last @ tokens.T).amax(1)
        highest, _ = distances.topk(max(1, len(distances) // 100))
        scores["AnomalyDINO"].append(float(highest.mean()))
        scores["PatchCore"].append(float(nearest_distances(features.bank[0].flatten(0, 1), bank[None]).max()))
    labels = samples.label_index.to_numpy()
    row = {"set": root.name, "k_shot": k_shot, "seed": seed, "size": "{} x {}".format(*size)}
    return row | {name: roc_auc_score(labels, values) for name, values in scores.items()}


def main() -> None:
    """Print the mean of each set."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("root", type=Path)
    parser.add_argument("--weights", required=True)
    parser.add_argument("--backbone", default="vit_small_patch14_dinov2")
    parser.add_argument("--layers", nargs="+", type=int)
    parser.add_argument("--num_steps", type=int, default=40)
    parser.add_argument("--k_shot", nargs="+", type=int, default=[1, 4])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1])
    parser.add_argument("--results", type=Path, default=Path("vit_compare.csv"))
    arguments = parser.parse_args()
    rows = []
    for root in sorted(path.parent for path in arguments.root.glob("*/train")):
        cache: dict = {}
        for seed in arguments.seeds:
            for k_shot in arguments.k_shot:
                rows.append(measure(root, arguments, k_shot, seed, cache))
                pd.DataFrame(rows).to_csv(arguments.results, index=False)
        print(root.name, flush=True)
    table = pd.DataFrame(rows)
    print(
        table.pivot_table(index=["k_shot", "set"], values=["CoftAD", "AnomalyDINO", "PatchCore"]).round(3).to_string(),
    )


if __name__ == "__main__":
    with torch.no_grad():
        main()
