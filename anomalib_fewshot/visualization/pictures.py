# Copyright (C) 2026 anomalib-fewshot contributors
# SPDX-License-Identifier: Apache-2.0

"""Embeddings on a plane: a picture, and a page in one file that needs no network."""

import json
from base64 import b64encode
from collections.abc import Callable, Mapping
from io import BytesIO
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image, ImageOps
from sklearn.decomposition import PCA
from sklearn.manifold import TSNE

from anomalib_fewshot._templates import template_environment
from anomalib_fewshot.atomic import write_atomically

from .embedded import Embedded, separation

# Okabe and Ito's colours, which those who see no red or green can discriminate, and a mark for each kind beside them.
STYLES = {"good": ("#0072B2", "o", 18), "defect": ("#D55E00", "^", 22), "support": ("#000000", "*", 130)}
THUMBNAIL = 128  # pixels
MAX_PERPLEXITY = 30
COLUMNS = 3


def _pca(vectors: np.ndarray, seed: int) -> np.ndarray:
    count = min(2, *vectors.shape)
    return np.pad(PCA(count, random_state=seed).fit_transform(vectors), ((0, 0), (0, 2 - count)))


def _tsne(vectors: np.ndarray, seed: int) -> np.ndarray:
    reduced = PCA(min(50, *vectors.shape), random_state=seed).fit_transform(vectors)
    perplexity = min(MAX_PERPLEXITY, (len(vectors) - 1) / 3)
    init = "pca" if reduced.shape[1] > 1 else "random"
    return TSNE(perplexity=perplexity, init=init, random_state=seed).fit_transform(reduced)


PROJECTIONS: dict[str, Callable[[np.ndarray, int], np.ndarray]] = {"tsne": _tsne, "pca": _pca}


def project(vectors: torch.Tensor, projection: str = "tsne", seed: int = 0) -> np.ndarray:
    """Return points on a plane: ``(B, D)`` -> ``(B, 2)``.

    Args:
        vectors (torch.Tensor): Vectors, four or more.
        projection (str): ``"tsne"`` or ``"pca"``. Defaults to ``"tsne"``.
        seed (int): Seed. Defaults to ``0``.

    Raises:
        ValueError: If there is no such projection, or there are fewer than four vectors.
    """
    if projection not in PROJECTIONS:
        msg = f"`projection` must be one of {tuple(PROJECTIONS)}, got {projection!r}."
        raise ValueError(msg)
    if len(vectors) < 4:
        msg = f"`vectors` must be four or more, got {len(vectors)}. Take more test images."
        raise ValueError(msg)
    return PROJECTIONS[projection](vectors.double().numpy(), seed)


def draw(embedded: Mapping[str, Embedded], path: Path, projection: str = "tsne", seed: int = 0) -> None:
    """Draw embeddings as PNG, a panel for each model.

    Args:
        embedded (Mapping[str, Embedded]): Images by the name of the model that sees them.
        path (Path): File to write.
        projection (str): See :func:`project`. Defaults to ``"tsne"``.
        seed (int): Seed. Defaults to ``0``.
    """
    columns = min(COLUMNS, len(embedded))
    rows = -(-len(embedded) // columns)
    figure = Figure(figsize=(4 * columns, 4 * rows + 0.4), layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False).flatten()
    for panel in panels:
        panel.set_axis_off()
    for panel, (name, each) in zip(panels, embedded.items(), strict=False):
        panel.set_axis_on()
        panel.set_title(name, parse_math=False)
        _scatter(panel, each, projection, seed)
    _legend(figure, panels[0])
    stream = BytesIO()
    figure.savefig(stream, format="png", dpi=150)
    write_atomically(path, stream.getvalue())


def draw_one(embedded: Embedded, seed: int = 0) -> bytes:
    """Return a small JPEG of the embeddings of one model by t-SNE, with :func:`separation` below.

    Args:
        embedded (Embedded): Images of all kinds, four or more.
        seed (int): Seed. Defaults to ``0``.
    """
    figure = Figure(figsize=(3.6, 4.0), layout="constrained")
    panel = figure.subplots()
    _scatter(panel, embedded, "tsne", seed)
    found = separation(embedded)
    panel.set_xlabel(f"defects {found['defects']:.3g} spreads away, AUROC {found['AUROC']:.3f}")
    _legend(figure, panel)
    stream = BytesIO()
    figure.savefig(stream, format="jpeg", dpi=100)
    return stream.getvalue()


def _scatter(panel: Axes, embedded: Embedded, projection: str, seed: int) -> None:
    """Draw the images of a model."""
    points = project(embedded.vectors, projection, seed)
    panel.set(xticks=[], yticks=[])
    for kind, (color, marker, size) in STYLES.items():
        own = points[[other == kind for other in embedded.kinds]]
        panel.scatter(
            own[:, 0],
            own[:, 1],
            s=size,
            c=color,
            marker=marker,
            label=kind,
            alpha=0.85,
            edgecolors="white",
            linewidths=0.8 if kind == "support" else 0.3,
        )


def _legend(figure: Figure, panel: Axes) -> None:
    figure.legend(*panel.get_legend_handles_labels(), loc="outside lower center", ncols=3, frameon=False)


def write_page(
    embedded: Mapping[str, Embedded],
    table: pd.DataFrame,
    path: Path,
    projection: str = "tsne",
    seed: int = 0,
) -> None:
    """Write a page on which a point shows its picture.

    Args:
        embedded (Mapping[str, Embedded]): Images by the name of the model that sees them, the same for all.
        table (pd.DataFrame): Numbers of each model.
        path (Path): File to write.
        projection (str): See :func:`project`. Defaults to ``"tsne"``.
        seed (int): Seed. Defaults to ``0``.
    """
    first = next(iter(embedded.values()))
    data = {
        "pictures": [
            {"name": "/".join(Path(file).parts[-2:]), "kind": kind, "thumbnail": _thumbnail(file)}
            for file, kind in zip(first.paths, first.kinds, strict=True)
        ],
        "panels": [
            {"name": name, "points": _unit(project(each.vectors, projection, seed))} for name, each in embedded.items()
        ],
    }
    templates = template_environment("anomalib_fewshot.visualization")
    content = {
        "projection": {"tsne": "t-SNE", "pca": "PCA"}[projection],
        "columns": list(table),
        "rows": [(name, [f"{value:.3g}" for value in values]) for name, values in table.iterrows()],
        "data": json.dumps(data, separators=(",", ":")).replace("<", "\\u003c"),  # no tag can end the script
    }
    write_atomically(path, templates.get_template("page.html.j2").render(content).encode(errors="replace"))


def _unit(points: np.ndarray) -> list[list[float]]:
    """Return points within a square of side 1, each axis by the same factor."""
    low, high = points.min(0), points.max(0)
    width = max(float((high - low).max()), np.finfo(float).tiny)
    return (0.5 + (points - (low + high) / 2) / width).round(4).tolist()


def _thumbnail(path: str) -> str:
    """Return a small picture as data URI."""
    stream = BytesIO()
    with Image.open(path) as picture:
        ImageOps.contain(picture.convert("RGB"), (THUMBNAIL, THUMBNAIL)).save(stream, format="JPEG", quality=80)
    return f"data:image/jpeg;base64,{b64encode(stream.getvalue()).decode()}"
