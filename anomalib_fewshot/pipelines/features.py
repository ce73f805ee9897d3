# Copyright (C) 2026 anomalib-fewshot contributors
# SPDX-License-Identifier: Apache-2.0

"""Embeddings of several models side by side, as pictures and as numbers."""

from pathlib import Path
from typing import Any

import pandas as pd
from anomalib.data import AnomalibDataModule
from anomalib.models import AnomalibModule
from jsonargparse.typing import Path_fr

from anomalib_fewshot.models.components.checks import check_at_least
from anomalib_fewshot.visualization import POOLINGS, PROJECTIONS, draw, embed_images, separation, write_page

from .cost import fit_few_shot
from .plan.spec import check, read_spec


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
    embedded = {}
    for name, spec in specs.items():
        model, datamodule, _ = fit_few_shot(spec, *arguments)
        embedded[name] = embed_images(model, datamodule, pooling, num_images)
    table = pd.DataFrame({name: separation(each) for name, each in embedded.items()}).T.rename_axis("method")
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    draw(embedded, folder / "features.png", projection, seed)
    write_page(embedded, table, folder / "features.html", projection, seed)
    table.to_csv(folder / "features.csv")
    return table
