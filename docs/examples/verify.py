# Copyright (C) 2026 anomalib-fewshot contributors
# SPDX-License-Identifier: Apache-2.0

"""Check that an exported model returns the same results on another machine or with another version of a runtime.

Requires score_images.py in the same folder and its packages: onnxruntime, numpy and Pillow.

Usage: python verify.py weights/onnx/model.onnx golden.json --write --images FOLDER     # once, with good and bad images
       python verify.py weights/onnx/model.onnx golden.json                             # on each other machine

The paths of the images in golden.json are relative to its folder. Copy it with the images and the folder of the export.
"""

import argparse
import hashlib
import json
import os
import platform
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import PIL
from score_images import READ_ERRORS, Model, find_images, read_image

TOLERANCE = 1e-3


def sha256(path: Path) -> str:
    """Return the SHA-256 of a file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def versions() -> dict[str, str]:
    """Return what a difference may come from."""
    packages = {"onnxruntime": onnxruntime.__version__, "numpy": np.__version__, "pillow": PIL.__version__}
    return {**packages, "python": platform.python_version(), "machine": platform.machine()}


def score(model: Model, path: Path) -> dict[str, float | str]:
    """Return the score and the verdict of an image."""
    image = read_image(path)
    model.check_size(image)
    result = model.score(image[None])[0]
    return {"score": result.score, "verdict": result.verdict}


def write(model_file: Path, golden_file: Path, images: list[Path]) -> None:
    """Write the results of the images."""
    model = Model(model_file)
    files = {"model": sha256(model_file), "metadata": sha256(model_file.with_name("metadata.json"))}
    rows = []
    for path in find_images(images):
        relative = Path(os.path.relpath(path, golden_file.parent)).as_posix()
        try:
            rows.append({"image": relative, "sha256": sha256(path), **score(model, path)})
        except READ_ERRORS as error:
            sys.exit(f"Nothing was recorded, because an image cannot be scored: {error}. Image: {path}")
    golden = {"files": files, "versions": versions(), "images": rows}
    try:
        golden_file.write_text(json.dumps(golden, indent=2) + "\n", encoding="utf-8")
    except OSError as error:
        sys.exit(f"The results cannot be written: {error.strerror}: {golden_file}")
    print(f"Recorded {len(rows)} images: {golden_file}")


def read_golden(path: Path) -> dict[str, Any]:
    """Read recorded results."""
    if not path.is_file():
        sys.exit(f"There are no recorded results. Record them with --write --images FOLDER: {path}")
    try:
        golden = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        golden = None
    if not isinstance(golden, dict) or not {"files", "versions", "images"} <= set(golden):
        sys.exit(f"The file does not contain recorded results. Record them with --write --images FOLDER: {path}")
    return golden


def compare(model_file: Path, golden: dict[str, Any], folder: Path, tolerance: float) -> list[str]:
    """Return one line for each difference. `folder` is the folder of the recorded results."""
    model = Model(model_file)
    differences = []
    for name, path in {"model": model_file, "metadata": model_file.with_name("metadata.json")}.items():
        if sha256(path) != golden["files"][name]:
            differences.append(f"The {name} is another file than the recorded one: {path}")
    for row in golden["images"]:
        path = folder / row["image"]
        if not path.is_file():
            differences.append(f"The image is missing: {path}")
            continue
        if sha256(path) != row["sha256"]:
            differences.append(f"The image is another file than the recorded one: {path}")
            continue
        try:
            found = score(model, path)
        except READ_ERRORS as error:
            differences.append(f"The image cannot be scored: {error}. Image: {path}")
            continue
        if found["verdict"] != row["verdict"]:
            differences.append(f"The verdict is {found['verdict']}, recorded {row['verdict']}: {path}")
        if not np.isclose(found["score"], row["score"], rtol=0, atol=tolerance, equal_nan=True):
            differences.append(f"The score is {found['score']:.6f}, recorded {row['score']:.6f}: {path}")
    return differences


def main() -> int:
    """Record results, or compare with recorded ones. Return 1 if there is a difference."""
    parser = argparse.ArgumentParser(description="Compare the results of an exported ONNX model with recorded ones.")
    parser.add_argument("model", type=Path, help="ONNX file, with metadata.json in the same folder")
    parser.add_argument("golden", type=Path, help="JSON file of the recorded results")
    parser.add_argument("--write", action="store_true", help="record the results of --images")
    parser.add_argument("--images", type=Path, nargs="+", help="images or folders, for --write")
    parser.add_argument(
        "--tolerance",
        type=float,
        default=TOLERANCE,
        help="largest difference of a score (%(default)s)",
    )
    args = parser.parse_args()
    if args.write:
        if not args.images:
            sys.exit("--write needs images: --images FOLDER")
        write(args.model, args.golden, args.images)
        return 0
    golden = read_golden(args.golden)
    differences = compare(args.model, golden, args.golden.parent, args.tolerance)
    for difference in differences:
        print(difference)
    if differences:
        print(f"Differences: {len(differences)}. Recorded with {golden['versions']}, compared with {versions()}")
        return 1
    print(f"No differences: {len(golden['images'])} images agree within {args.tolerance:g}.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
