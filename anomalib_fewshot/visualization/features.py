# Copyright (C) 2026 anomalib-fewshot contributors
# SPDX-License-Identifier: Apache-2.0

"""Embeddings of several models side by side, as pictures and as numbers."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from anomalib.data import AnomalibDataModule
from anomalib.models import AnomalibModule
from jsonargparse.typing import Path_fr
from torch.nn import functional as F  # noqa: N812
from torchmetrics.functional.classification import binary_auroc

from anomalib_fewshot.models.components.checks import check_at_least
from anomalib_fewshot.pipelines.cost import fit_few_shot
from anomalib_fewshot.pipelines.plan.spec import Spec, check, read_spec

from .embeddings import POOLINGS, embed
from .pictures import PROJECTIONS, draw, write_page

KINDS = ("support", "good", "defect")


@dataclass(frozen=True)
class Embedded:
    """Images as a model sees them.

    Args:
        vectors (torch.Tensor): One for each image, shape ``(B, D)``.
        kinds (list[str]): ``"support"``, ``"good"`` or ``"defect"`` of each.
        paths (list[str]): File of each.
    """

    vectors: torch.Tensor
    kinds: list[str]
    paths: list[str]


def compare_features(
    methods: dict[str, Path_fr | dict[str, Any]],
    data: dict[str, Any],
    folder: str | Path = "results/features",
    k_shot: int = 4,
    seed: int = 0,
    projection: str = "tsne",
    pooling: str = "mean",
    num_images: int = 200,
    accelerator: str = "auto",
) -> pd.DataFrame:
    """Draw test images as models see them: `features.png`, the page `features.html`, and numbers, `features.csv`.

    Each model is fitted to the same support. A method beside its control without training, such as ``CoftAD`` beside
    ``CoftAD`` with ``num_steps: 0``, is the picture before and after. The axes of a projection mean nothing, and t-SNE
    keeps neighbours and not distances: compare by the numbers, which are of all dimensions.

    Args:
        methods (dict): Models by their name: ``class_path`` and ``init_args``, or a YAML file of them.
        data (dict): Datamodule: ``class_path`` and ``init_args``.
        folder (str | Path): Where the files are written. Defaults to ``"results/features"``.
        k_shot (int): Number of images of the support. Defaults to ``4``.
        seed (int): Seed of the support and of t-SNE. Defaults to ``0``.
        projection (str): ``"tsne"`` or ``"pca"``. Defaults to ``"tsne"``.
        pooling (str): See :func:`embed`. Defaults to ``"mean"``.
        num_images (int): Test images at most, every n-th of each kind. Defaults to ``200``.
        accelerator (str): Accelerator of Lightning's trainer. Defaults to ``"auto"``.

    Returns:
        pd.DataFrame: See :func:`separation`, a row for each method.

    Raises:
        FileNotFoundError: If the file of a method is not there.
        ValueError: If a method or the data are none, or if another argument is out of its range.
        TypeError: If the features of a method are not known.
    """
    check_at_least(2, num_images=num_images)
    for name, value, known in (("projection", projection, PROJECTIONS), ("pooling", pooling, POOLINGS)):
        if value not in known:
            msg = f"`{name}` must be one of {tuple(known)}, got {value!r}."
            raise ValueError(msg)
    specs = {name: read_spec(spec) for name, spec in methods.items()}
    for spec in specs.values():
        check(spec, AnomalibModule)
    check(read_spec(data), AnomalibDataModule)
    arguments = (read_spec(data), k_shot, seed, None, accelerator)
    embedded = {name: _embed(spec, pooling, num_images, *arguments) for name, spec in specs.items()}
    table = pd.DataFrame({name: separation(each) for name, each in embedded.items()}).T.rename_axis("method")
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    draw(embedded, folder / "features.png", projection, seed)
    write_page(embedded, table, folder / "features.html", projection, seed)
    table.to_csv(folder / "features.csv")
    return table


def separation(embedded: Embedded) -> dict[str, float]:
    """Return how far defects are from good images, in all dimensions.

    Args:
        embedded (Embedded): Images of all kinds.

    Returns:
        dict[str, float]: ``spread``, the root mean square distance of good test images from the mean of the support;
        ``defects``, that of defects in units of the spread; and ``AUROC`` of the distance.

    Raises:
        ValueError: If images of a kind are missing.

    Example:
        >>> vectors = torch.tensor([[0.0], [2.0], [2.0], [0.0], [5.0]])
        >>> separation(Embedded(vectors, ["support", "support", "good", "good", "defect"], [""] * 5))
        {'spread': 1.0, 'defects': 4.0, 'AUROC': 1.0}
    """
    parts = {kind: embedded.vectors[[own == kind for own in embedded.kinds]].double() for kind in KINDS}
    missing = [kind for kind, vectors in parts.items() if len(vectors) == 0]
    if missing:
        msg = f"There must be images of each of {KINDS}, got none of {missing}. Take data with test images of both."
        raise ValueError(msg)
    center = parts["support"].mean(0)
    good, defect = (torch.linalg.vector_norm(parts[kind] - center, dim=1) for kind in KINDS[1:])
    spread = float(good.square().mean().sqrt())
    labels = torch.tensor([0] * len(good) + [1] * len(defect))
    distances = torch.cat([good, defect])
    return {
        "spread": spread,
        "defects": float(defect.square().mean().sqrt()) / max(spread, torch.finfo().tiny),
        "AUROC": float(binary_auroc(distances / distances.max().clamp_min(torch.finfo().tiny), labels)),  # in [0, 1]
    }


def _embed(spec: Spec, pooling: str, num_images: int, *arguments: Any) -> Embedded:  # noqa: ANN401
    """Fit a model, and return the images of the support and of the test as it sees them."""
    model, datamodule, _ = fit_few_shot(spec, *arguments)
    data = datamodule.test_data
    by_kind = [data.samples.index[data.samples.label_index == label].tolist() for label in (0, 1)]
    rows = [row for rows in by_kind for row in rows[:: max(1, -(-len(rows) // (num_images // 2)))]]
    support, chosen = [*datamodule.train_data], [data[row] for row in rows]
    vectors = embed(model, _stack(support), _stack(chosen), pooling)
    kinds = ["support"] * len(support) + [KINDS[1 + int(label)] for label in data.samples.label_index[rows]]
    return Embedded(vectors, kinds, [str(item.image_path) for item in (*support, *chosen)])


def _stack(items: list[Any]) -> torch.Tensor:
    """Return images as a batch: all in the size of the first, for those of a folder may differ."""
    size = items[0].image.shape[-2:]
    pictures = (item.image[None] for item in items)
    return torch.cat([p if p.shape[-2:] == size else F.interpolate(p, size, mode="bilinear") for p in pictures])
