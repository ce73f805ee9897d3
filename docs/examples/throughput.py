# Copyright (C) 2026 anomalib-fewshot contributors
# SPDX-License-Identifier: Apache-2.0

"""Measure how many images per second an exported model scores, for batch sizes and numbers of threads.

Requires score_images.py in the same folder and its packages: onnxruntime, numpy and Pillow. With OpenVINO installed,
the table also has its rows.

Usage: python throughput.py weights/onnx/model.onnx FOLDER --batches 1 4 8 16 --threads 1 2

The script prints a Markdown table. Each repetition measures all settings in turn. Each ratio is relative to the first
setting in the same repetition, and the table contains the medians, so other programs on the machine change it little.
Reading the image files is not included.
"""

import argparse
import sys
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from typing import NamedTuple

import numpy as np
from score_images import READ_ERRORS, Model, find_images, read_image

Run = Callable[[np.ndarray], object]


class Setting(NamedTuple):
    """One cell of the table."""

    runtime: str
    threads: int
    batch: int


def onnx_runner(model: Path, threads: int) -> Run:
    """Return a function that scores a batch in ONNX Runtime."""
    session = Model(model, threads).session
    return lambda images: session.run(None, {"input": images})


def openvino_runner(model: Path, threads: int) -> Run:
    """Return a function that scores a batch in OpenVINO, without rounding to bf16."""
    import openvino

    options = {"EXECUTION_MODE_HINT": "ACCURACY", "INFERENCE_NUM_THREADS": threads}
    return openvino.Core().compile_model(model, "CPU", options)


def read_images(paths: list[Path], model: Model) -> np.ndarray:
    """Read the images that have the size of the first one, shape (N, 3, H, W)."""
    images: list[np.ndarray] = []
    for path in paths:
        try:
            image = read_image(path)
            model.check_size(image)
        except READ_ERRORS as error:
            print(f"The image was skipped: {error}. Image: {path}", file=sys.stderr)
            continue
        if not images or image.shape == images[0].shape:
            images.append(image)
    if not images:
        sys.exit("None of the images can be read.")
    return np.stack(images)


def images_per_second(run: Run, images: np.ndarray, batch: int, count: int) -> float:
    """Score `count` images in batches, and return how many were scored per second."""
    batches = [images[np.arange(start, start + batch) % len(images)] for start in range(0, count, batch)]
    begin = time.perf_counter()
    for values in batches:
        run(values)
    return batch * len(batches) / (time.perf_counter() - begin)


def measure(runners: dict[Setting, Run], images: np.ndarray, count: int, repeat: int) -> dict[Setting, list[float]]:
    """Return the images per second of each setting in each repetition."""
    for setting, run in runners.items():
        images_per_second(run, images, setting.batch, setting.batch)  # the first batch allocates memory
    found: dict[Setting, list[float]] = {setting: [] for setting in runners}
    for _ in range(repeat):
        for setting, run in runners.items():
            found[setting].append(images_per_second(run, images, setting.batch, count))
    return found


def print_table(found: dict[Setting, list[float]], batches: list[int], shape: tuple[int, ...]) -> None:
    """Print the median ratios to the first setting."""
    base = next(iter(found.values()))
    print(f"Images of {shape[3]} x {shape[2]} pixels. 1.00 means {median(base):.3g} images/s (median).\n")
    print("| Runtime | threads |", " | ".join(f"batch {batch}" for batch in batches), "|")
    print("|---" * (2 + len(batches)) + "|")
    for runtime, threads in dict.fromkeys(setting[:2] for setting in found):
        cells = []
        for batch in batches:
            speeds = found[Setting(runtime, threads, batch)]
            cells.append(f"{median(speed / base[index] for index, speed in enumerate(speeds)):.2f}")
        print(f"| {runtime} | {threads} |", " | ".join(cells), "|")


def main() -> None:
    """Measure all settings and print the table."""
    parser = argparse.ArgumentParser(description="Measure the throughput of an exported ONNX model.")
    parser.add_argument("model", type=Path, help="ONNX file, with metadata.json in the same folder")
    parser.add_argument("images", type=Path, nargs="+", help="images, or folders that contain images")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 4, 8, 16], metavar="N", help="batch sizes")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2], metavar="N", help="numbers of threads")
    parser.add_argument("--count", type=int, default=16, metavar="N", help="images of a measurement (%(default)s)")
    parser.add_argument("--repeat", type=int, default=5, metavar="N", help="repetitions (%(default)s)")
    args = parser.parse_args()
    if min(*args.batches, *args.threads, args.count, args.repeat) < 1:
        parser.error("all numbers must be at least 1")
    model = Model(args.model)
    if isinstance(model.shape[0], int) and args.batches != [model.shape[0]]:
        parser.error(f"the model has a fixed batch size: --batches {model.shape[0]}")
    images = read_images(find_images(args.images), model)
    makers = {"ONNX Runtime": onnx_runner}
    if find_spec("openvino") is not None:
        makers["OpenVINO"] = openvino_runner
    runners: dict[Setting, Run] = {}
    for runtime, make in makers.items():
        for threads in args.threads:
            run = make(args.model, threads)
            for batch in args.batches:
                runners[Setting(runtime, threads, batch)] = run
    print_table(measure(runners, images, args.count, args.repeat), args.batches, images.shape)


if __name__ == "__main__":
    main()
