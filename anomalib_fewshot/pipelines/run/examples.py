# Copyright (C) 2026 anomalib-fewshot contributors
# SPDX-License-Identifier: Apache-2.0

"""Examples of a run: its best and worst test images beside their heat maps, and all of them as the model sees them."""

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

HEIGHT = 192  # pixels of a picture
MAP_SHARE = 0.5  # of the heat map, over the image
MIN_POINTS = 4  # of a t-SNE


def make_examples(dataset: AnomalibDataset, predictions: Predictions) -> dict[str, bytes]:
    """Return JPEG files of the defect with the highest score, the one with the lowest, and the worst normal image.

    All heat maps have one scale: from the median of all test maps, which is cold, to their maximum.

    Args:
        dataset (AnomalibDataset): Test images, in the order of the predictions.
        predictions (Predictions): Raw predictions.

    Returns:
        dict[str, bytes]: ``hit``, ``miss`` and ``false_alarm``. Empty if the model gives no maps.
    """
    if predictions.maps is None:
        return {}
    numbers = torch.arange(len(predictions.paths))
    anomalous, normal = numbers[predictions.labels], numbers[~predictions.labels]
    chosen = {
        "hit": anomalous[predictions.scores[anomalous].argmax()],
        "miss": anomalous[predictions.scores[anomalous].argmin()],
        "false_alarm": normal[predictions.scores[normal].argmax()],
    }
    cold, hot = predictions.maps.median(), predictions.maps.max()
    scale = hot - cold if hot > cold else torch.tensor(1.0)
    maps = ((predictions.maps - cold) / scale).clamp(0, 1)
    return {name: _picture(dataset[int(i)].image, maps[i]) for name, i in chosen.items()}


def draw_features(model: AnomalibModule, datamodule: FewShot) -> dict[str, bytes]:
    """Return a JPEG file of the support and the test images as a fitted model sees them.

    Args:
        model (AnomalibModule): A fitted model.
        datamodule (FewShot): Its data.

    Returns:
        dict[str, bytes]: ``features``. Empty if the features of the model are not known, or there are too few images.
    """
    if not has_features(model):
        return {}
    embedded = embed_images(model, datamodule)
    return {"features": draw_one(embedded)} if len(embedded.kinds) >= MIN_POINTS else {}


def _picture(image: torch.Tensor, heat: torch.Tensor) -> bytes:
    left = to_pil_image(image)
    heat_map = visualize_anomaly_map(heat, colormap=True, normalize=False).resize(left.size)
    right = overlay_image(left, heat_map, alpha=MAP_SHARE)
    width = round(HEIGHT * left.width / left.height)
    picture = Image.new("RGB", (2 * width, HEIGHT))
    for offset, part in ((0, left), (width, right)):
        picture.paste(part.convert("RGB").resize((width, HEIGHT)), (offset, 0))
    file = io.BytesIO()
    picture.save(file, "JPEG", quality=80)
    return file.getvalue()
