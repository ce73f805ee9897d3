# Copyright (C) 2026 anomalib-fewshot contributors
# SPDX-License-Identifier: Apache-2.0

"""The test images of a fitted model as vectors, and how far defects are from good ones."""

from dataclasses import dataclass
from typing import Any

import torch
from anomalib.models import AnomalibModule
from torch.nn import functional as F  # noqa: N812
from torchmetrics.functional.classification import binary_auroc

from anomalib_fewshot.data import FewShot

from .embeddings import embed

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


def embed_images(
    model: AnomalibModule,
    datamodule: FewShot,
    pooling: str = "mean",
    num_images: int = 200,
) -> Embedded:
    """Return the images of the support and of the test as a model sees them.

    Args:
        model (AnomalibModule): A fitted model.
        datamodule (FewShot): Its data, set up.
        pooling (str): See :func:`embed`. Defaults to ``"mean"``.
        num_images (int): Test images at most, every n-th of each kind. Defaults to ``200``.

    Raises:
        ValueError: If there is no such pooling.
        TypeError: If the features of the model are not known.
    """
    data = datamodule.test_data
    by_kind = [data.samples.index[data.samples.label_index == label].tolist() for label in (0, 1)]
    rows = [row for rows in by_kind for row in rows[:: max(1, -(-len(rows) // (num_images // 2)))]]
    support, chosen = [*datamodule.train_data], [data[row] for row in rows]
    vectors = embed(model, _stack(support), _stack(chosen), pooling)
    kinds = ["support"] * len(support) + [KINDS[1 + int(label)] for label in data.samples.label_index[rows]]
    return Embedded(vectors, kinds, [str(item.image_path) for item in (*support, *chosen)])


def separation(embedded: Embedded) -> dict[str, float]:
    """Return how far defects are from good images, in all dimensions.

    Args:
        embedded (Embedded): Images of all kinds.

    Returns:
        dict[str, float]: ``std``, the root mean square distance of good test images from the mean of the support;
        ``defects``, that of defects in units of the std; and ``AUROC`` of the distance.

    Raises:
        ValueError: If images of a kind are missing.

    Example:
        >>> vectors = torch.tensor([[0.0], [2.0], [2.0], [0.0], [5.0]])
        >>> separation(Embedded(vectors, ["support", "support", "good", "good", "defect"], [""] * 5))
        {'std': 1.0, 'defects': 4.0, 'AUROC': 1.0}
    """
    parts = {kind: embedded.vectors[[own == kind for own in embedded.kinds]].double() for kind in KINDS}
    missing = [kind for kind, vectors in parts.items() if len(vectors) == 0]
    if missing:
        msg = f"There must be images of each of {KINDS}, got none of {missing}. Take data with test images of both."
        raise ValueError(msg)
    center = parts["support"].mean(0)
    good, defect = (torch.linalg.vector_norm(parts[kind] - center, dim=1) for kind in KINDS[1:])
    std = float(good.square().mean().sqrt())
    labels = torch.tensor([0] * len(good) + [1] * len(defect))
    distances = torch.cat([good, defect])
    return {
        "std": std,
        "defects": float(defect.square().mean().sqrt()) / max(std, torch.finfo().tiny),
        "AUROC": float(binary_auroc(distances / distances.max().clamp_min(torch.finfo().tiny), labels)),  # in [0, 1]
    }


def _stack(items: list[Any]) -> torch.Tensor:
    """Return images as a batch: all in the size of the first, for those of a folder may differ."""
    size = items[0].image.shape[-2:]
    pictures = (item.image[None] for item in items)
    return torch.cat([p if p.shape[-2:] == size else F.interpolate(p, size, mode="bilinear") for p in pictures])
