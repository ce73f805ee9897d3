# Copyright (C) 2026 anomalib-fewshot contributors
# SPDX-License-Identifier: Apache-2.0

"""Score images with an exported ONNX model. Requires only onnxruntime, numpy and Pillow.

Usage: python score_images.py weights/onnx/model.onnx IMAGE_OR_FOLDER...

The script prints one line of JSON per image. It reads the thresholds from `metadata.json` in the folder of the model.
"""

import argparse
import csv
import json
import math
import os
import struct
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple, TextIO

import numpy as np
import onnxruntime
from PIL import Image, ImageOps

VERDICTS = ("good", "review", "defect")
SUFFIXES = {".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"}
FIELDS = ("path", "score", "verdict", "p_value")
# What Pillow raises for broken files, and `check_size` for a wrong size.
READ_ERRORS = (OSError, SyntaxError, ValueError, EOFError, MemoryError, struct.error, Image.DecompressionBombError)


def read_image(file: Any) -> np.ndarray:  # noqa: ANN401  a path or a binary file
    """Read an image at its original size as RGB between 0 and 1, shape (3, H, W)."""
    upright = ImageOps.exif_transpose(Image.open(file))
    if upright.mode.startswith(("I", "F")):
        msg = f"the image must have 8 bits per channel, got mode {upright.mode}"
        raise ValueError(msg)
    pixels = np.asarray(upright.convert("RGB"), dtype=np.float32) / 255
    return np.ascontiguousarray(pixels.transpose(2, 0, 1))


class Result(NamedTuple):
    """Result of one image. The anomaly map, shape (H, W), is above 0.5 in anomalous regions."""

    score: float
    verdict: str
    p_value: float | None
    anomaly_map: np.ndarray | None


class Model:
    """An exported model. `path` is the ONNX file, with `metadata.json` in the same folder.

    `threads` is the number of threads that score an image. The default 0 means one for each core.
    """

    def __init__(self, path: str | Path, threads: int = 0) -> None:
        metadata = Path(path).with_name("metadata.json")
        for file in (Path(path), metadata):
            if not file.is_file():
                sys.exit(f"The file does not exist. Copy the folder of the export as a whole: {file}")
        try:
            self.metadata = json.loads(metadata.read_text(encoding="utf-8"))
            self.settings = self.metadata["postprocess"]
        except (ValueError, KeyError, TypeError):
            sys.exit(f"The file is not the metadata of an export. Copy the folder of the export again: {metadata}")
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        try:
            self.session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # noqa: BLE001  ONNX Runtime has an error class for each cause
            sys.exit(f"ONNX Runtime cannot load the model: {str(error).splitlines()[0]}")
        self.shape = self.session.get_inputs()[0].shape  # such as ["batch", 3, 64, 64]: dynamic axes are strings
        self.outputs = [output.name for output in self.session.get_outputs()]
        if self.session.get_inputs()[0].name != "input" or "pred_score" not in self.outputs:
            sys.exit(f"The model has no input `input` or no output `pred_score`. Export it with anomalib: {path}")

    def check_size(self, image: np.ndarray) -> None:
        """Raise an error if the model has a fixed input size and the image differs."""
        for actual, expected in zip(image.shape[1:], self.shape[2:], strict=True):
            if isinstance(expected, int) and actual != expected:
                required, found = f"{self.shape[3]} x {self.shape[2]}", f"{image.shape[2]} x {image.shape[1]}"
                msg = f"the model requires {required} pixels, got {found}. Export it without --input_size"
                raise ValueError(msg)

    def score(self, images: np.ndarray) -> list[Result]:
        """Score images of one size, shape (B, 3, H, W)."""
        found = dict(zip(self.outputs, self.session.run(self.outputs, {"input": images}), strict=True))
        results = []
        for index in range(len(images)):
            values = {name: value[index].squeeze() for name, value in found.items()}
            score = float(values["pred_score"])
            label = bool(values.get("pred_label"))
            verdict = verdict_of(score, label, self.settings)
            if "verdict" in values and not math.isnan(score):  # the graph was exported with `verdict: true`
                verdict = VERDICTS[int(values["verdict"])]
            results.append(Result(score, verdict, p_value_of(score, self.settings), values.get("anomaly_map")))
        return results


def verdict_of(score: float, label: bool, settings: dict) -> str:
    """Return the verdict of a score. `label` is the label that the model predicts."""
    if math.isnan(score):
        return "unknown"
    if "scheme" not in settings:  # the threshold was fitted to validation images with defects
        return "defect" if label else "good"
    defect = settings["defect_score"]  # None: calibrated on a single image, so no image is called a defect
    if defect is not None and score > defect:
        return "defect"
    return "review" if score > settings["review_score"] else "good"


def p_value_of(score: float, settings: dict) -> float | None:
    """Return the conformal p-value of a score, or `None` if there is no p-value."""
    if math.isnan(score) or settings.get("scheme") in {None, "self-views", "training"}:  # no guarantee
        return None
    for row in settings["p_values"]:
        if score <= row["score_up_to"]:
            return row["p"]
    return 1 / (settings["num_normal"] + 1)  # the score exceeds all calibration scores


def heat_map(image: np.ndarray, anomaly_map: np.ndarray) -> Image.Image:
    """Return a gray image with red regions where the anomaly map, shape (H, W), exceeds the threshold 0.5."""
    height, width = image.shape[-2:]
    heat = Image.fromarray(anomaly_map.astype(np.float32)).resize((width, height), Image.Resampling.BILINEAR)
    red = (2 * np.asarray(heat) - 1).clip(0, 1)
    gray = 0.5 * image.mean(0)
    return Image.fromarray((255 * np.stack([gray + 0.5 * red, gray, gray], axis=-1)).astype(np.uint8))


def find_images(paths: list[Path], skipped: Path | None = None) -> list[Path]:
    """Return the given files and the images in the given folders, without those in the folder `skipped`."""
    images = []
    for path in paths:
        found = [path]
        if path.is_dir():
            files = [file for file in sorted(path.rglob("*")) if not file.is_dir()]
            found = [file for file in files if file.suffix.lower() in SUFFIXES and not file.name.startswith(".")]
            if skipped is not None:
                found = [file for file in found if skipped.absolute() not in file.absolute().parents]
            if not found:
                sys.exit(f"The folder contains no images: {path}")
        images += found
    return list(dict.fromkeys(images))


def read_batches(model: Model, paths: list[Path], size: int, failed: list[Path]) -> Iterator[dict[Path, np.ndarray]]:
    """Yield up to `size` consecutive images of equal size. Report unreadable images and append them to `failed`."""
    batch: dict[Path, np.ndarray] = {}
    for path in paths:
        try:
            image = read_image(path)
            model.check_size(image)
        except READ_ERRORS as error:
            print(f"The image was not scored: {str(error) or type(error).__name__}. Image: {path}", file=sys.stderr)
            failed.append(path)
            continue
        if batch and (len(batch) == size or image.shape != next(iter(batch.values())).shape):
            yield batch
            batch = {}
        batch[path] = image
    if batch:
        yield batch


def open_table(path: Path | None) -> TextIO:
    """Open a table for the results. `None` discards them. Names that are not valid UTF-8 are escaped."""
    return Path(path or os.devnull).open("w", newline="", encoding="utf-8", errors="backslashreplace")


def main() -> int:
    """Score each image, print the results and write the heat maps. Return 1 if an image could not be scored."""
    parser = argparse.ArgumentParser(description="Score images with an exported ONNX model.")
    parser.add_argument("model", type=Path, help="ONNX file, with metadata.json in the same folder")
    parser.add_argument("images", type=Path, nargs="+", help="images, or folders that contain images")
    parser.add_argument("--batch", type=int, default=1, metavar="N", help="images of equal size to score at once")
    parser.add_argument("--heat_maps", type=Path, metavar="DIR", help="folder for heat maps")
    parser.add_argument("--csv", type=Path, metavar="FILE", help="table of the results")
    args = parser.parse_args()
    warnings.filterwarnings("ignore", module="PIL")  # about broken files, which are reported, and about large images
    model = Model(args.model)
    paths = find_images(args.images, args.heat_maps)
    try:
        if args.heat_maps is not None:
            args.heat_maps.mkdir(parents=True, exist_ok=True)
        table = open_table(args.csv)
    except OSError as error:
        sys.exit(f"The results cannot be written: {error.strerror}: {error.filename}")
    writer = csv.DictWriter(table, FIELDS)
    writer.writeheader()
    root = Path(os.path.commonpath([path.absolute().parent for path in paths]))
    size = 1 if isinstance(model.shape[0], int) else max(1, args.batch)
    failed: list[Path] = []
    with table:
        for batch in read_batches(model, paths, size, failed):
            for (path, image), result in zip(batch.items(), model.score(np.stack([*batch.values()])), strict=True):
                score = None if math.isnan(result.score) else result.score
                row = dict(zip(FIELDS, (str(path), score, result.verdict, result.p_value), strict=True))
                print(json.dumps(row), flush=True)
                writer.writerow(row)
                if args.heat_maps is not None and result.anomaly_map is not None:
                    file = args.heat_maps / path.absolute().relative_to(root).with_name(f"{path.name}.png")
                    file.parent.mkdir(parents=True, exist_ok=True)
                    heat_map(image, result.anomaly_map).save(file)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
