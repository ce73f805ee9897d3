# Copyright (C) 2026 anomalib-fewshot contributors
# SPDX-License-Identifier: Apache-2.0

"""Two-dimensional plots of embeddings, as an image file and as a web page that works offline."""

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

from .image_embeddings import ImageEmbeddings, separation

# The Okabe-Ito palette is safe for color-blind readers. Each kind also has its own marker.
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
    """Project vectors to two dimensions: ``(B, D)`` -> ``(B, 2)``.

    Args:
        vectors (torch.Tensor): At least four vectors.
        projection (str): ``"tsne"`` or ``"pca"``. Defaults to ``"tsne"``.
        seed (int): Random seed. Defaults to ``0``.

    Raises:
        ValueError: If ``projection`` is unknown, or if there are fewer than four vectors.
    """
    if projection not in PROJECTIONS:
        msg = f"`projection` must be one of {tuple(PROJECTIONS)}, got {projection!r}."
        raise ValueError(msg)
    if len(vectors) < 4:
        msg = f"`vectors` must contain at least four vectors, got {len(vectors)}. Use more test images."
        raise ValueError(msg)
    return PROJECTIONS[projection](vectors.double().numpy(), seed)


def draw(embeddings: Mapping[str, ImageEmbeddings], path: Path, projection: str = "tsne", seed: int = 0) -> None:
    """Plot embeddings as a PNG file with one panel per model.

    Args:
        embeddings (Mapping[str, ImageEmbeddings]): Embeddings by the name of the model.
        path (Path): Output file.
        projection (str): See :func:`project`. Defaults to ``"tsne"``.
        seed (int): Random seed. Defaults to ``0``.
    """
    columns = min(COLUMNS, len(embeddings))
    rows = -(-len(embeddings) // columns)
    figure = Figure(figsize=(4 * columns, 4 * rows + 0.4), layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False).flatten()
    for panel in panels:
        panel.set_axis_off()
    for panel, (name, each) in zip(panels, embeddings.items(), strict=False):
        panel.set_axis_on()
        panel.set_title(name, parse_math=False)
        _scatter(panel, each, projection, seed)
    _legend(figure, panels[0])
    stream = BytesIO()
    figure.savefig(stream, format="png", dpi=150)
    write_atomically(path, stream.getvalue())


def draw_one(embeddings: ImageEmbeddings, seed: int = 0) -> bytes:
    """Return a small JPEG with a t-SNE plot of one model and its :func:`separation`.

    Args:
        embeddings (ImageEmbeddings): Embeddings of at least four images, with all kinds present.
        seed (int): Random seed. Defaults to ``0``.
    """
    figure = Figure(figsize=(3.6, 4.0), layout="constrained")
    panel = figure.subplots()
    _scatter(panel, embeddings, "tsne", seed)
    measured = separation(embeddings)
    panel.set_xlabel(f"distance of defects: {measured['defects']:.3g} std, AUROC: {measured['AUROC']:.3f}")
    _legend(figure, panel)
    stream = BytesIO()
    figure.savefig(stream, format="jpeg", dpi=100)
    return stream.getvalue()


def _scatter(panel: Axes, embeddings: ImageEmbeddings, projection: str, seed: int) -> None:
    """Plot the embeddings of one model."""
    points = project(embeddings.vectors, projection, seed)
    panel.set(xticks=[], yticks=[])
    for kind, (color, marker, size) in STYLES.items():
        selected = points[[each == kind for each in embeddings.kinds]]
        panel.scatter(
            selected[:, 0],
            selected[:, 1],
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
    embeddings: Mapping[str, ImageEmbeddings],
    table: pd.DataFrame,
    path: Path,
    projection: str = "tsne",
    seed: int = 0,
) -> None:
    """Write a web page that shows the image of a point on hover.

    Args:
        embeddings (Mapping[str, ImageEmbeddings]): Embeddings of the same images by the name of the model.
        table (pd.DataFrame): Metrics, one row per model.
        path (Path): Output file.
        projection (str): See :func:`project`. Defaults to ``"tsne"``.
        seed (int): Random seed. Defaults to ``0``.
    """
    first = next(iter(embeddings.values()))
    data = {
        "images": [
            {"name": "/".join(Path(file).parts[-2:]), "kind": kind, "thumbnail": _thumbnail(file)}
            for file, kind in zip(first.paths, first.kinds, strict=True)
        ],
        "panels": [
            {"name": name, "points": _scale_to_unit_square(project(each.vectors, projection, seed))}
            for name, each in embeddings.items()
        ],
    }
    templates = template_environment("anomalib_fewshot.visualization")
    content = {
        "projection": {"tsne": "t-SNE", "pca": "PCA"}[projection],
        "columns": list(table),
        "rows": [(name, [f"{value:.3g}" for value in values]) for name, values in table.iterrows()],
        "data": json.dumps(data, separators=(",", ":")).replace("<", "\\u003c"),  # no name can close <script>
    }
    write_atomically(path, templates.get_template("page.html.j2").render(content).encode(errors="replace"))


def _scale_to_unit_square(points: np.ndarray) -> list[list[float]]:
    """Scale points to the unit square with the same factor for both axes."""
    low, high = points.min(0), points.max(0)
    width = max(float((high - low).max()), np.finfo(float).tiny)
    return (0.5 + (points - (low + high) / 2) / width).round(4).tolist()


def _thumbnail(path: str) -> str:
    """Return a thumbnail as a data URI."""
    stream = BytesIO()
    with Image.open(path) as image:
        ImageOps.contain(image.convert("RGB"), (THUMBNAIL, THUMBNAIL)).save(stream, format="JPEG", quality=80)
    return f"data:image/jpeg;base64,{b64encode(stream.getvalue()).decode()}"
