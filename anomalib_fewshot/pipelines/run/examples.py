# Copyright (C) 2026 anomalib-fewshot contributors
# SPDX-License-Identifier: Apache-2.0

"""Example images of a run: heat maps of its best and worst test images, and a plot of the features."""

import hashlib
import io
from collections.abc import Sequence

import numpy as np
import torch
from anomalib.data import AnomalibDataset
from anomalib.models import AnomalibModule
from anomalib.visualization.image.functional import overlay_image, visualize_anomaly_map
from PIL import Image
from torchvision.transforms.v2.functional import to_pil_image

from anomalib_fewshot.data import FewShot
from anomalib_fewshot.visualization import draw_one, embed_images, has_features

from .predictions import Predictions

HEIGHT = 192  # of an example image, in pixels
MAP_OPACITY = 0.5  # of the heat map overlay
MIN_POINTS = 4  # for t-SNE
SCALE_END = 2.0  # of the common color scale; 1 is the 99th percentile of the maps of normal images


def make_examples(dataset: AnomalibDataset, predictions: Predictions) -> dict[str, bytes]:
    """Return heat maps of the highest- and lowest-scoring anomalous image and the highest-scoring normal image.

    All heat maps share one color scale, from the median of all test maps (cold) to their maximum (hot).

    Args:
        dataset (AnomalibDataset): Test images, in the order of the predictions.
        predictions (Predictions): Raw predictions.

    Returns:
        dict[str, bytes]: JPEG files ``hit``, ``miss`` and ``false_alarm``. Empty if the model has no anomaly maps.
    """
    if predictions.maps is None:
        return {}
    indices = torch.arange(len(predictions.paths))
    anomalous, normal = indices[predictions.labels], indices[~predictions.labels]
    selected = {
        "hit": anomalous[predictions.scores[anomalous].argmax()],
        "miss": anomalous[predictions.scores[anomalous].argmin()],
        "false_alarm": normal[predictions.scores[normal].argmax()],
    }
    cold, hot = predictions.maps.median(), predictions.maps.max()
    scale = hot - cold if hot > cold else torch.tensor(1.0)
    maps = ((predictions.maps - cold) / scale).clamp(0, 1)
    return {name: _draw_example(dataset[int(i)].image, maps[i]) for name, i in selected.items()}  # type: ignore[arg-type]


def make_common_examples(dataset: AnomalibDataset, predictions: Predictions) -> dict[str, bytes]:
    """Return heat maps of the same test images for every method, on a color scale that does not depend on units.

    The images are selected by their position in the sorted list of paths, not by their scores: two anomalous images, at
    one quarter and three quarters of the list, and the normal image in the middle. On the color scale, 0 (cold) is the
    median of the maps of normal test images and 1 is their 99th percentile. 2 and above are hot.

    Args:
        dataset (AnomalibDataset): Test images, in the order of the predictions.
        predictions (Predictions): Raw predictions.

    Returns:
        dict[str, bytes]: JPEG files ``common-KIND-HASH-image`` and ``common-KIND-HASH-map``, where the hash of the path
        identifies the image. Empty if the model has no anomaly maps.
    """
    if predictions.maps is None:
        return {}
    order = sorted(range(len(predictions.paths)), key=lambda i: predictions.paths[i])
    anomalous = [i for i in order if predictions.labels[i]]
    normal = [i for i in order if not predictions.labels[i]]
    selected = {"1": _at(anomalous, 0.25), "2": _at(anomalous, 0.75), "normal": _at(normal, 0.5)}
    values = predictions.maps[normal].numpy()
    cold, high = np.quantile(values, [0.5, 0.99])
    scale = high - cold if high > cold else 1.0
    files: dict[str, bytes] = {}
    for kind, i in selected.items():
        scaled = ((predictions.maps[i] - float(cold)) / float(scale * SCALE_END)).clamp(0, 1)
        image, heat_map = _image_and_heat_map(dataset[i].image, scaled)  # type: ignore[arg-type]
        name = f"common-{kind}-{hashlib.sha256(predictions.paths[i].encode()).hexdigest()[:8]}"
        files |= {f"{name}-image": _to_jpeg([image]), f"{name}-map": _to_jpeg([heat_map])}
    return files


def _at(indices: Sequence[int], position: float) -> int:
    """Return the element at a relative position from 0 to 1."""
    return indices[round(position * (len(indices) - 1))]


def draw_features(model: AnomalibModule, datamodule: FewShot) -> dict[str, bytes]:
    """Return a plot of the features of the support set and the test images, as a JPEG file.

    Args:
        model (AnomalibModule): A fitted model.
        datamodule (FewShot): The data that the model was fitted to.

    Returns:
        dict[str, bytes]: ``features``. Empty if the features cannot be extracted, or if there are too few images.
    """
    if not has_features(model):
        return {}
    embedded = embed_images(model, datamodule)
    return {"features": draw_one(embedded)} if len(embedded.kinds) >= MIN_POINTS else {}


def _draw_example(image: torch.Tensor, anomaly_map: torch.Tensor) -> bytes:
    """Return a JPEG file with the image on the left and the heat map overlay on the right."""
    return _to_jpeg(_image_and_heat_map(image, anomaly_map))


def _image_and_heat_map(image: torch.Tensor, anomaly_map: torch.Tensor) -> tuple[Image.Image, Image.Image]:
    """Return an image and its heat map overlay, for an image in ``[0, 1]`` and a map in ``[0, 1]``."""
    picture = to_pil_image(image)
    heat_map = visualize_anomaly_map(anomaly_map, colormap=True, normalize=False).resize(picture.size)
    return picture, overlay_image(picture, heat_map, alpha=MAP_OPACITY)


def _to_jpeg(parts: Sequence[Image.Image]) -> bytes:
    """Return a JPEG file with images of one size side by side."""
    width = round(HEIGHT * parts[0].width / parts[0].height)
    canvas = Image.new("RGB", (len(parts) * width, HEIGHT))
    for number, part in enumerate(parts):
        canvas.paste(part.convert("RGB").resize((width, HEIGHT)), (number * width, 0))
    file = io.BytesIO()
    canvas.save(file, "JPEG", quality=80)
    return file.getvalue()
