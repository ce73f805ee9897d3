# Copyright (C) 2026 anomalib-fewshot contributors
# SPDX-License-Identifier: Apache-2.0

"""Data that the tests make for themselves. No test uses a network."""

import gc
import inspect
import os

os.environ["HF_HUB_OFFLINE"] = "1"  # before timm is imported: a missing weight fails at once
# Before torch is imported: waiting threads of OpenMP sleep. On a busy machine, they use most of the time otherwise.
os.environ.setdefault("GOMP_SPINCOUNT", "1000")
os.environ.setdefault("OMP_NUM_THREADS", "1")  # of the processes that tests start

from collections.abc import Iterator
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from types import SimpleNamespace

import jsonargparse._core
import numpy as np
import pytest
import torch
from fresh_python import FreshPython
from image_files import save_image
from PIL import Image, ImageDraw

torch.set_num_threads(1)  # figures are compared bit for bit: sums of several threads follow the load of the machine

# jsonargparse looks up its caller in each call of a parser. Without the lines of source of all frames, that is quick.
jsonargparse._core.inspect = SimpleNamespace(**vars(inspect) | {"stack": partial(inspect.stack, 0)})  # noqa: SLF001


def pytest_collection_finish() -> None:
    """Leave what is imported out of garbage collections: Lightning asks for several a run, half of a short test."""
    gc.collect()
    gc.freeze()


SIZE = 64
CATEGORIES = ("bolt", "cloth")


def draw(generator: np.random.Generator, category: str, *, defect: bool) -> tuple[np.ndarray, np.ndarray]:
    """Return an image of stripes, grey or coloured, and the mask of the dark square that is its defect."""
    stripes = 110 + 40 * np.sin(np.arange(SIZE) / (3 if category == "bolt" else 1.5) + generator.uniform(0, 6))
    image = np.repeat(np.tile(stripes, (SIZE, 1))[..., None], 3, axis=2)
    image *= 1 if category == "bolt" else np.array([1.0, 0.6, 0.3])
    image += generator.normal(0, 4, image.shape)
    mask = np.zeros((SIZE, SIZE), dtype=np.uint8)
    if defect:
        top, left = generator.integers(8, SIZE - 24, 2)
        mask[top : top + 16, left : left + 16] = 255
        image[mask > 0] = 10
    return image.clip(0, 255).astype(np.uint8), mask


@pytest.fixture(scope="session")
def fresh_python() -> Iterator[FreshPython]:
    """Return a function that runs code in a process which has not imported anomalib."""
    python = FreshPython()
    yield python
    python.close()


@pytest.fixture
def quick_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fork worker processes from a server that has imported this package. By default, each imports it for seconds."""
    from anomalib_fewshot.pipelines.run import subprocess

    context = get_context("forkserver")
    context.set_forkserver_preload(["anomalib_fewshot.pipelines.cost"])
    monkeypatch.setattr(subprocess, "get_context", lambda _: context)


@pytest.fixture(scope="session")
def mvtec_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder of two categories in MVTec AD's layout: 10 to train, 4 good and 4 defective to test."""
    root = tmp_path_factory.mktemp("mvtec")
    for number, category in enumerate(CATEGORIES):
        generator = np.random.default_rng(number)
        for folder, count in (("train/good", 10), ("test/good", 4), ("test/hole", 4)):
            for index in range(count):
                image, mask = draw(generator, category, defect=folder == "test/hole")
                save_image(image, root / category / folder / f"{index:03}.png")
                if folder == "test/hole":
                    save_image(mask, root / category / "ground_truth" / "hole" / f"{index:03}_mask.png")
    return root


@pytest.fixture(scope="session")
def dagm_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder of two categories as DAGM 2007 is published: 5 images to train, one with a defect, 6 to test."""
    root = tmp_path_factory.mktemp("DAGM")
    generator = np.random.default_rng(0)
    for category in ("Class1", "Class10"):
        for split, count, defects in (("Train", 5, [3]), ("Test", 6, [2, 5])):
            folder, lines = root / category / split, ["1"]
            for number in range(1, count + 1):
                image = generator.integers(90, 160, (SIZE, SIZE), dtype=np.uint8)
                if number in defects:
                    mask = Image.new("L", (SIZE, SIZE))
                    ImageDraw.Draw(mask).ellipse((10, 20, 30, 40), fill=255)
                    image[np.array(mask) > 0] = 10
                    save_image(np.array(mask), folder / "Label" / f"{number:04}_label.PNG")
                save_image(image, folder / f"{number:04}.PNG")
                mask_name = f"{number:04}_label.PNG" if number in defects else "0"
                lines.append(f"{number}\t{int(number in defects)}\t{number:04}.PNG\t0\t{mask_name}")
            (folder / "Label" / "Labels.txt").write_text("\n".join(lines), encoding="utf-8")
    return root
