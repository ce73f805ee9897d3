# Copyright (C) 2026 anomalib-fewshot contributors
# SPDX-License-Identifier: Apache-2.0

"""Compare the features of several models in plots and numbers."""

from pathlib import Path
from typing import Any

import pandas as pd
from anomalib.data import AnomalibDataModule
from anomalib.models import AnomalibModule
from jsonargparse.typing import Path_fr

from anomalib_fewshot.models.components.checks import check_at_least
from anomalib_fewshot.visualization import POOLINGS, PROJECTIONS, draw, embed_images, separation, write_page

from .cost import fit_few_shot
from .plan.spec import check_spec, read_spec


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
    """Plot the features of test images: writes ``features.png``, ``features.html`` and ``features.csv``.

    All models are fitted to the same support set. To compare features before and after training, add a method without
    training, such as ``CoftAD`` with ``num_steps: 0``. The axes of a projection have no meaning, and t-SNE preserves
    neighborhoods, not distances. Compare methods with the numbers, which use all dimensions.

    Args:
        methods (dict): Models by name: ``class_path`` and ``init_args``, or the path of a YAML file with them.
        data (dict): Datamodule: ``class_path`` and ``init_args``.
        folder (str | Path): Output folder. Defaults to ``"results/features"``.
        k_shot (int): Size of the support set. Defaults to ``4``.
        seed (int): Seed of the support set and of t-SNE. Defaults to ``0``.
        projection (str): ``"tsne"`` or ``"pca"``. Defaults to ``"tsne"``.
        pooling (str): ``"mean"`` of all positions, or ``"peak"``: the position that differs most from the support set.
            Defaults to ``"mean"``.
        num_images (int): Maximum number of test images, sampled evenly from each class. Defaults to ``200``.
        accelerator (str): Accelerator of Lightning's trainer. Defaults to ``"auto"``.

    Returns:
        pd.DataFrame: One row per method with the columns of :func:`separation`.

    Raises:
        FileNotFoundError: If the YAML file of a method does not exist.
        ValueError: If a method is not an anomalib model, if ``data`` is not a datamodule, or if another argument is out
            of range.
        TypeError: If the package cannot extract the features of a method.
    """
    check_at_least(2, num_images=num_images)
    for name, value, known in (("projection", projection, PROJECTIONS), ("pooling", pooling, POOLINGS)):
        if value not in known:
            msg = f"`{name}` must be one of {tuple(known)}, got {value!r}."
            raise ValueError(msg)
    specs = {name: read_spec(spec) for name, spec in methods.items()}
    for spec in specs.values():
        check_spec(spec, AnomalibModule)
    check_spec(read_spec(data), AnomalibDataModule)
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
