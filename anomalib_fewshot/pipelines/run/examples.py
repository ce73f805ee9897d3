# Copyright (C) 2026 anomalib-fewshot contributors
# SPDX-License-Identifier: Apache-2.0

"""Example images of a run: heat maps of its best and worst test images, and a plot of the features."""

import io

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
    left = to_pil_image(image)
    heat_map = visualize_anomaly_map(anomaly_map, colormap=True, normalize=False).resize(left.size)
    right = overlay_image(left, heat_map, alpha=MAP_OPACITY)
    width = round(HEIGHT * left.width / left.height)
    canvas = Image.new("RGB", (2 * width, HEIGHT))
    for offset, part in ((0, left), (width, right)):
        canvas.paste(part.convert("RGB").resize((width, HEIGHT)), (offset, 0))
    file = io.BytesIO()
    canvas.save(file, "JPEG", quality=80)
    return file.getvalue()
