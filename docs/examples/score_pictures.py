# Copyright (C) 2026 anomalib-fewshot contributors
# SPDX-License-Identifier: Apache-2.0

"""Score pictures by an exported model. It needs onnxruntime, numpy and Pillow alone.

python score_pictures.py weights/onnx/model.onnx PICTURE... prints a line of JSON for each picture, and writes its heat
map as `PICTURE_heat.png` into the working directory. `metadata.json` has to lie beside the model.
"""

import json
import sys
from pathlib import Path

import numpy as np
import onnxruntime
from PIL import Image, ImageOps


def read(path: str) -> np.ndarray:
    """Return a picture as the model takes it: RGB from 0 to 1, in its own size, shape (1, 3, H, W)."""
    upright = ImageOps.exif_transpose(Image.open(path))
    pixels = np.asarray(upright.convert("RGB"), dtype=np.float32) / 255
    return np.ascontiguousarray(pixels.transpose(2, 0, 1)[None])


def check_size(path: str, picture: np.ndarray, shape: list) -> None:
    """End with an error if a model of a fixed size, such as the shape ["batch", 3, 64, 64], cannot take a picture."""
    for own, side in zip(picture.shape[2:], shape[2:], strict=True):
        if isinstance(side, int) and own != side:  # a name stands for any size
            size, wanted = f"{picture.shape[3]} x {picture.shape[2]}", f"{shape[3]} x {shape[2]}"
            sys.exit(f"{path} has {size} pixels, and the model takes {wanted}. Export it without --input_size.")


def judge(score: float, label: bool, rules: dict) -> tuple[str, float | None]:
    """Return the verdict, and the part of the good pictures and this one that it does not beat."""
    if "scheme" not in rules:  # the threshold is from validation images, defects among them
        return "defect" if label else "good", None
    verdict = "defect" if score > rules["defect_score"] else "review" if score > rules["review_score"] else "good"
    if rules["scheme"] == "self-views":  # of a single picture, which guarantees nothing
        return "good" if verdict == "good" else "review", None
    if rules["scheme"] == "training":
        return verdict, None
    beats_all = 1 / (rules["num_normal"] + 1)
    return verdict, next((row["p"] for row in rules["p_values"] if score <= row["score_up_to"]), beats_all)


def heat_map(picture: np.ndarray, anomaly_map: np.ndarray) -> Image.Image:
    """Return the picture in grey, reddened where its anomaly map, shape (H, W), is above the threshold of 0.5."""
    height, width = picture.shape[-2:]
    heat = Image.fromarray(anomaly_map.astype(np.float32)).resize((width, height), Image.Resampling.BILINEAR)
    red = (2 * np.asarray(heat) - 1).clip(0, 1)
    grey = 0.5 * picture[0].mean(0)
    return Image.fromarray((255 * np.stack([grey + 0.5 * red, grey, grey], axis=-1)).astype(np.uint8))


def main(model: str, *paths: str) -> None:
    """Score each picture."""
    rules = json.loads(Path(model).with_name("metadata.json").read_text(encoding="utf-8"))["postprocess"]
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    for path in paths:
        picture = read(path)
        check_size(path, picture, session.get_inputs()[0].shape)
        found = dict(zip(names, session.run(names, {"input": picture}), strict=True))
        score = found["pred_score"].item()
        verdict, p_value = judge(score, bool(found["pred_label"].item()), rules)
        print(json.dumps({"path": path, "score": score, "verdict": verdict, "p_value": p_value}))
        if "anomaly_map" in found:
            heat_map(picture, found["anomaly_map"].squeeze()).save(f"{Path(path).stem}_heat.png")


if __name__ == "__main__":
    main(*sys.argv[1:])
