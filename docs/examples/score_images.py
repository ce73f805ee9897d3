# Copyright (C) 2026 anomalib-fewshot contributors
# SPDX-License-Identifier: Apache-2.0

"""Score images with an exported ONNX model. Requires only onnxruntime, numpy and Pillow.

Usage: python score_images.py weights/onnx/model.onnx IMAGE...

The script prints one line of JSON per image and writes its heat map to the working directory as `IMAGE_heat.png`. It
reads the thresholds from `metadata.json` in the folder of the model.
"""

import json
import sys
from pathlib import Path

import numpy as np
import onnxruntime
from PIL import Image, ImageOps


def read_image(path: str) -> np.ndarray:
    """Read an image at its original size as RGB between 0 and 1, shape (1, 3, H, W)."""
    upright = ImageOps.exif_transpose(Image.open(path))
    pixels = np.asarray(upright.convert("RGB"), dtype=np.float32) / 255
    return np.ascontiguousarray(pixels.transpose(2, 0, 1)[None])


def check_size(path: str, image: np.ndarray, shape: list) -> None:
    """Exit with an error if the model has a fixed input size, such as ["batch", 3, 64, 64], and the image differs."""
    for actual, expected in zip(image.shape[2:], shape[2:], strict=True):
        if isinstance(expected, int) and actual != expected:  # dynamic axes are strings
            size, required = f"{image.shape[3]} x {image.shape[2]}", f"{shape[3]} x {shape[2]}"
            sys.exit(f"The model requires {required} pixels, got {size}. Export it without --input_size. Image: {path}")


def verdict_and_p_value(score: float, label: bool, settings: dict) -> tuple[str, float | None]:
    """Return the verdict and the conformal p-value, or ``None`` if there is no p-value."""
    if "scheme" not in settings:  # the threshold was fitted to validation images with defects
        return "defect" if label else "good", None
    defect = settings["defect_score"]  # None: calibrated on a single image, so no image is called a defect
    verdict = "review" if score > settings["review_score"] else "good"
    if defect is not None and score > defect:
        verdict = "defect"
    if settings["scheme"] in {"self-views", "training"}:  # no guarantee
        return verdict, None
    for row in settings["p_values"]:
        if score <= row["score_up_to"]:
            return verdict, row["p"]
    return verdict, 1 / (settings["num_normal"] + 1)  # the score exceeds all calibration scores


def heat_map(image: np.ndarray, anomaly_map: np.ndarray) -> Image.Image:
    """Return a gray image with red regions where the anomaly map, shape (H, W), exceeds the threshold 0.5."""
    height, width = image.shape[-2:]
    heat = Image.fromarray(anomaly_map.astype(np.float32)).resize((width, height), Image.Resampling.BILINEAR)
    red = (2 * np.asarray(heat) - 1).clip(0, 1)
    gray = 0.5 * image[0].mean(0)
    return Image.fromarray((255 * np.stack([gray + 0.5 * red, gray, gray], axis=-1)).astype(np.uint8))


def main(model: str, *paths: str) -> None:
    """Score each image, print the results and write the heat maps."""
    settings = json.loads(Path(model).with_name("metadata.json").read_text(encoding="utf-8"))["postprocess"]
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    for path in paths:
        image = read_image(path)
        check_size(path, image, session.get_inputs()[0].shape)
        outputs = dict(zip(names, session.run(names, {"input": image}), strict=True))
        score = outputs["pred_score"].item()
        verdict, p_value = verdict_and_p_value(score, bool(outputs["pred_label"].item()), settings)
        print(json.dumps({"path": path, "score": score, "verdict": verdict, "p_value": p_value}))
        if "anomaly_map" in outputs:
            heat_map(image, outputs["anomaly_map"].squeeze()).save(f"{Path(path).stem}_heat.png")


if __name__ == "__main__":
    main(*sys.argv[1:])
