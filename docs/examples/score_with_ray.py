# Copyright (C) 2026 anomalib-fewshot contributors
# SPDX-License-Identifier: Apache-2.0

"""Score a large folder of images on a Ray cluster with an exported ONNX model.

Requires score_images.py in the same folder and `pip install ray onnxruntime numpy pillow`. All machines must have the
model and the images under the same path.

Usage: python score_with_ray.py weights/onnx/model.onnx FOLDER scores.csv --workers 8
"""

import argparse
import csv
import math
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import ray
import score_images
from ray.exceptions import RayError
from ray.util import ActorPool
from score_images import FIELDS, READ_ERRORS, Model, find_images, open_table, read_image

IMAGES_PER_TASK = 64
COLUMNS = (*FIELDS, "error")


class Worker:
    """Loads the model once, and scores lists of images."""

    def __init__(self, model: Path, batch: int) -> None:
        self.model = Model(model, threads=1)  # one core for each worker: workers that share cores slow each other down
        self.batch = 1 if isinstance(self.model.shape[0], int) else batch

    def score(self, paths: list[Path]) -> list[dict[str, Any]]:
        """Return one row for each image, in the order of the paths. Images that cannot be read have an error."""
        rows = []
        batch: list[tuple[Path, np.ndarray]] = []
        for path in paths:
            try:
                image = read_image(path)
                self.model.check_size(image)
            except READ_ERRORS as error:
                rows += self.score_batch(batch)
                rows.append({"path": str(path), "error": str(error) or type(error).__name__})
                batch = []
                continue
            if len(batch) == self.batch or (batch and image.shape != batch[0][1].shape):
                rows += self.score_batch(batch)
                batch = []
            batch.append((path, image))
        return rows + self.score_batch(batch)

    def score_batch(self, batch: list[tuple[Path, np.ndarray]]) -> list[dict[str, Any]]:
        """Return the rows of images of one size."""
        if not batch:
            return []
        rows = []
        results = self.model.score(np.stack([image for _, image in batch]))
        for (path, _), result in zip(batch, results, strict=True):
            score = None if math.isnan(result.score) else result.score
            values = {"score": score, "verdict": result.verdict, "p_value": result.p_value}
            rows.append({"path": str(path), **values, "error": ""})
        return rows


def tasks(paths: list[Path]) -> Iterator[list[Path]]:
    """Split the paths into lists of at most `IMAGES_PER_TASK`."""
    for start in range(0, len(paths), IMAGES_PER_TASK):
        yield paths[start : start + IMAGES_PER_TASK]


def main() -> int:
    """Score all images and write the table. Return 1 if an image could not be scored."""
    parser = argparse.ArgumentParser(description="Score a large folder of images on a Ray cluster.")
    parser.add_argument("model", type=Path, help="ONNX file, with metadata.json in the same folder")
    parser.add_argument("folder", type=Path, help="folder that contains the images")
    parser.add_argument("output", type=Path, help="CSV file for the results")
    parser.add_argument("--workers", type=int, default=2, metavar="N", help="processes of one core each (%(default)s)")
    parser.add_argument("--batch", type=int, default=1, metavar="N", help="images of equal size to score at once")
    args = parser.parse_args()
    if args.workers < 1 or args.batch < 1:
        parser.error("--workers and --batch must be at least 1")
    if not args.folder.is_dir():
        sys.exit(f"The folder does not exist: {args.folder}")
    Model(args.model)  # a model that cannot be loaded ends the script before workers start
    paths = find_images([args.folder.absolute()])
    try:
        file = open_table(args.output)
    except OSError as error:
        sys.exit(f"The table cannot be written: {error.strerror}: {args.output}")
    ray.init(log_to_driver=False, include_dashboard=False, logging_level="WARNING")
    ray.cloudpickle.register_pickle_by_value(score_images)  # send it to the workers, which do not have the file
    cores = int(ray.cluster_resources().get("CPU", 1))
    workers = min(args.workers, cores)  # Ray would wait forever for cores that the cluster does not have
    actor = ray.remote(num_cpus=1, max_restarts=3, max_task_retries=3)(Worker)
    pool = ActorPool([actor.remote(args.model.absolute(), args.batch) for _ in range(workers)])
    failed = 0
    with file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        try:
            for rows in pool.map(lambda worker, task: worker.score.remote(task), tasks(paths)):
                writer.writerows(rows)
                failed += sum(bool(row["error"]) for row in rows)
        except RayError as error:
            sys.exit(f"A worker failed: {str(error).splitlines()[-1]}")
    print(f"Scored {len(paths) - failed} of {len(paths)} images with {workers} workers: {args.output}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
