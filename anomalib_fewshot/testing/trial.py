# Copyright (C) 2026 anomalib-fewshot contributors
# SPDX-License-Identifier: Apache-2.0

"""Training and prediction of a model on small synthetic images, with anomalib's engine."""

import inspect
import logging
import warnings
from collections.abc import Generator, Sequence
from contextlib import contextmanager, redirect_stdout
from functools import cached_property
from io import StringIO
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import numpy as np
import torch
from anomalib.data import MVTecAD, PredictDataset
from anomalib.engine import Engine
from anomalib.models import AnomalibModule
from lightning.pytorch import seed_everything
from PIL import Image
from torch.utils.data import DataLoader, Subset

from anomalib_fewshot.data import FewShot

HEIGHT, WIDTH = 80, 96  # not square, and larger than the input size of the tested models, so that images are resized
CATEGORY = "stripes"
NUM_TRAIN, NUM_TEST = 6, 3


class Trained(NamedTuple):
    """Trained model with its engine and data."""

    model: AnomalibModule
    engine: Engine
    data: FewShot


class Outputs(NamedTuple):
    """Scores, shape ``(B,)``, anomaly maps, shape ``(B, H, W)``, and the size of the predicted images."""

    scores: torch.Tensor
    maps: torch.Tensor | None
    image_size: tuple[int, int]


class Trial:
    """Model class with its arguments, and small synthetic images: stripes, with dark squares as defects.

    Args:
        model (type[AnomalibModule]): Class of the model.
        k_shot (int): Number of normal images. Defaults to ``2``.
        **arguments (Any): Arguments of the model. Use a small backbone without pretrained weights.
    """

    def __init__(self, model: type[AnomalibModule], k_shot: int = 2, **arguments: Any) -> None:  # noqa: ANN401
        self.name = model.__name__
        self.k_shot = k_shot
        self._class = model
        self._arguments = arguments

    @cached_property
    def folder(self) -> Path:
        """Temporary folder of images and results. It is deleted with this object."""
        self._temporary = TemporaryDirectory(ignore_cleanup_errors=True)
        folder = Path(self._temporary.name)
        _write_images(folder / "data" / CATEGORY)
        return folder

    @cached_property
    def trained(self) -> Trained:
        """The trained model. All checks share it, so they must not change it."""
        return self.train()

    @cached_property
    def outputs(self) -> Outputs:
        """Outputs of the trained model for the test images."""
        return self.predict(self.trained.model)

    def new_model(self) -> AnomalibModule:
        """Return an untrained model without a visualizer."""
        quiet = {"visualizer": False} if "visualizer" in inspect.signature(self._class).parameters else {}
        return self._class(**quiet | self._arguments)

    def train(self, global_seed: int = 0, support: Sequence[str] | None = None) -> Trained:
        """Train the model.

        Args:
            global_seed (int): Seed of the global generators. Defaults to ``0``.
            support (Sequence[str] | None): Names of the support images. Defaults to ``None``: `FewShot` selects them.
        """
        with suppress_output():
            seed_everything(global_seed, verbose=False)
            model, engine, data = self.new_model(), self.engine(), self.data(support)
            engine.fit(model, datamodule=data)
        return Trained(model, engine, data)

    def data(self, support: Sequence[str] | None = None) -> FewShot:
        """Return the data module."""
        source = MVTecAD(self.folder / "data", CATEGORY, num_workers=0, train_batch_size=4, eval_batch_size=4)
        return FewShot(source, self.k_shot, support=support)

    def engine(self) -> Engine:
        """Return an engine that trains for one epoch, unless the model overrides it."""
        return Engine(
            default_root_dir=self.folder / "results",
            accelerator="cpu",
            devices=1,
            max_epochs=1,
            logger=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )

    def predict(
        self,
        model: AnomalibModule,
        *,
        batch_size: int = 2 * NUM_TEST,
        reverse: bool = False,
        checkpoint: str | Path | None = None,
    ) -> Outputs:
        """Predict the test images and return the outputs, sorted by file name.

        Args:
            model (AnomalibModule): The model.
            batch_size (int): Batch size. Defaults to the number of test images.
            reverse (bool): Predict the images in reverse order. Defaults to ``False``.
            checkpoint (str | Path | None): Checkpoint to load. Defaults to ``None``.
        """
        dataset = PredictDataset(self.folder / "data" / CATEGORY / "test")
        order = range(len(dataset))
        subset = Subset(dataset, order[::-1] if reverse else order)
        loader = DataLoader(subset, batch_size, collate_fn=dataset.collate_fn)
        with suppress_output():
            batches = self.engine().predict(model, dataloaders=loader, ckpt_path=checkpoint)
        results: list[Any] = list(batches or [])
        scores = torch.cat([batch.pred_score.flatten() for batch in results])
        maps = None
        if all(batch.anomaly_map is not None for batch in results):
            maps = torch.cat([batch.anomaly_map.flatten(0, -3) for batch in results])
        if reverse:
            scores = scores.flip(0)
            maps = None if maps is None else maps.flip(0)
        height, width = results[0].image.shape[-2:]
        return Outputs(scores, maps, (height, width))

    def images(self) -> torch.Tensor:
        """Return the test images as input of an exported model, shape ``(B, 3, H, W)``, sorted by file name."""
        dataset: Any = PredictDataset(self.folder / "data" / CATEGORY / "test")
        return torch.stack([item.image for item in dataset])

    def support_names(self) -> list[str]:
        """Return the names of the selected support images."""
        manifest = self.trained.data.manifest
        return list(manifest.images) if manifest is not None else []


@contextmanager
def suppress_output() -> Generator[None]:
    """Suppress printed text, logs and warnings of training and prediction."""
    disabled = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        with warnings.catch_warnings(), redirect_stdout(StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled)


def _write_images(folder: Path) -> None:
    """Write images in the layout of MVTec AD."""
    rng = np.random.default_rng(0)
    for split, count in (("train/good", NUM_TRAIN), ("test/good", NUM_TEST), ("test/hole", NUM_TEST)):
        for index in range(count):
            mask = np.zeros((HEIGHT, WIDTH), dtype=np.uint8)
            stripes = 110 + 40 * np.sin(np.arange(WIDTH) / 3 + rng.uniform(0, 6))
            image = np.tile(stripes, (HEIGHT, 1))[..., None] + rng.normal(0, 4, (HEIGHT, WIDTH, 3))
            if split == "test/hole":
                top, left = rng.integers(4, HEIGHT - 28, 2)
                mask[top : top + 24, left : left + 24] = 255
                image[mask > 0] = 10
                _save(mask, folder / "ground_truth" / "hole" / f"{index:03}_mask.png")
            _save(image.clip(0, 255).astype(np.uint8), folder / split / f"{index:03}.png")


def _save(image: np.ndarray, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image).save(path)
