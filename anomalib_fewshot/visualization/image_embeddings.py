# Copyright (C) 2026 anomalib-fewshot contributors
# SPDX-License-Identifier: Apache-2.0

"""Embeddings of the support and test images, and the separation of defects from good images."""

from dataclasses import dataclass
from math import ceil
from typing import Any

import torch
from anomalib.models import AnomalibModule
from torch.nn import functional as F  # noqa: N812
from torchmetrics.functional.classification import binary_auroc

from anomalib_fewshot.data import FewShot

from .features import embed

KINDS = ("support", "good", "defect")


@dataclass(frozen=True)
class ImageEmbeddings:
    """Embeddings of images by one model.

    Args:
        vectors (torch.Tensor): One vector per image, shape ``(B, D)``.
        kinds (list[str]): ``"support"``, ``"good"`` or ``"defect"`` for each image.
        paths (list[str]): Path of each image.
    """

    vectors: torch.Tensor
    kinds: list[str]
    paths: list[str]


def embed_images(
    model: AnomalibModule,
    datamodule: FewShot,
    pooling: str = "mean",
    num_images: int = 200,
) -> ImageEmbeddings:
    """Embed the support set and the test images.

    Args:
        model (AnomalibModule): A fitted model.
        datamodule (FewShot): The data that the model was fitted to, after ``setup``.
        pooling (str): See :func:`embed`. Defaults to ``"mean"``.
        num_images (int): Maximum number of test images. Every n-th image of each label is used. Defaults to ``200``.

    Raises:
        ValueError: If ``pooling`` is unknown.
        TypeError: If no features are registered for the model.
    """
    data = datamodule.test_data
    support_data: Any = datamodule.support_data
    support = list(support_data)
    kinds = ["support"] * len(support)
    test = []
    for label, kind in ((0, "good"), (1, "defect")):
        rows = data.samples.index[data.samples.label_index == label].tolist()
        step = max(1, ceil(len(rows) / (num_images // 2)))
        test += [data[row] for row in rows[::step]]
        kinds += [kind] * len(rows[::step])
    vectors = embed(model, _to_batch(support), _to_batch(test), pooling)
    return ImageEmbeddings(vectors, kinds, [str(item.image_path) for item in (*support, *test)])


def separation(embeddings: ImageEmbeddings) -> dict[str, float]:
    """Measure how far defects are from good images, in all dimensions.

    Args:
        embeddings (ImageEmbeddings): Embeddings of support, good and defect images.

    Returns:
        dict[str, float]: ``std``, the root mean square distance between good test images and the mean of the
        support set; ``defects``, the same distance for defects in units of ``std``; and ``AUROC`` of the distance.

    Raises:
        ValueError: If one of the three kinds is missing.

    Example:
        >>> vectors = torch.tensor([[0.0], [2.0], [2.0], [0.0], [5.0]])
        >>> separation(ImageEmbeddings(vectors, ["support", "support", "good", "good", "defect"], [""] * 5))
        {'std': 1.0, 'defects': 4.0, 'AUROC': 1.0}
    """
    parts = {kind: embeddings.vectors[[each == kind for each in embeddings.kinds]].double() for kind in KINDS}
    missing = [kind for kind, vectors in parts.items() if len(vectors) == 0]
    if missing:
        msg = f"`embeddings` must contain images of each kind {KINDS}, got none of {missing}. Use other test data."
        raise ValueError(msg)
    center = parts["support"].mean(0)
    good, defect = (torch.linalg.vector_norm(parts[kind] - center, dim=1) for kind in KINDS[1:])
    std = float(good.square().mean().sqrt())
    labels = torch.tensor([0] * len(good) + [1] * len(defect))
    distances = torch.cat([good, defect])
    distances /= distances.max().clamp_min(torch.finfo().tiny)  # torchmetrics expects scores in [0, 1]
    return {
        "std": std,
        "defects": float(defect.square().mean().sqrt()) / max(std, torch.finfo().tiny),
        "AUROC": float(binary_auroc(distances, labels)),
    }


def _to_batch(items: list[Any]) -> torch.Tensor:
    """Return images as one batch, resized to the first one if sizes differ."""
    size = items[0].image.shape[-2:]
    images = []
    for item in items:
        image = item.image[None]
        images.append(image if image.shape[-2:] == size else F.interpolate(image, size, mode="bilinear"))
    return torch.cat(images)
