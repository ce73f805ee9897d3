# Copyright (C) 2026 anomalib-fewshot contributors
# SPDX-License-Identifier: Apache-2.0

"""A model on tiny generated pictures, through anomalib's engine."""

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

HEIGHT, WIDTH = 80, 96  # not square, and larger than the models of a test are, so that they resize
CATEGORY = "stripes"
NUM_TRAIN, NUM_TEST = 6, 3


class Trained(NamedTuple):
    """A trained model and what trained it."""

    model: AnomalibModule
    engine: Engine
    data: FewShot


class Outputs(NamedTuple):
    """Scores, shape ``(B,)``, maps, ``(B, h, w)``, if there are, and the size of the images they belong to."""

    scores: torch.Tensor
    maps: torch.Tensor | None
    image_size: tuple[int, int]


class Trial:
    """A model class with its arguments on tiny generated pictures: stripes, and as defects dark squares.

    Args:
        model (type[AnomalibModule]): Class of the model.
        k_shot (int): Number of good pictures. Defaults to ``2``.
        **arguments (Any): Arguments of the model, such as a small backbone without pretrained weights.
    """

    def __init__(self, model: type[AnomalibModule], k_shot: int = 2, **arguments: Any) -> None:  # noqa: ANN401
        self.name = model.__name__
        self.k_shot = k_shot
        self._class = model
        self._arguments = arguments

    @cached_property
    def folder(self) -> Path:
        """Folder of pictures and results, which is removed with this object."""
        self._temporary = TemporaryDirectory(ignore_cleanup_errors=True)
        folder = Path(self._temporary.name)
        _write_pictures(folder / "data" / CATEGORY)
        return folder

    @cached_property
    def trained(self) -> Trained:
        """The model after a training, which the checks share: they leave it as it is."""
        return self.train()

    @cached_property
    def outputs(self) -> Outputs:
        """Its outputs for the test pictures."""
        return self.predict(self.trained.model)

    def new_model(self) -> AnomalibModule:
        """Return the model before a training, without the pictures that it would draw."""
        quiet = {"visualizer": False} if "visualizer" in inspect.signature(self._class).parameters else {}
        return self._class(**quiet | self._arguments)

    def train(self, global_seed: int = 0, support: Sequence[str] | None = None) -> Trained:
        """Train the model.

        Args:
            global_seed (int): Seed of the global generators. Defaults to ``0``.
            support (Sequence[str] | None): Names of the good pictures. Defaults to ``None``: the data choose.
        """
        with quietly():
            seed_everything(global_seed, verbose=False)
            model, engine, data = self.new_model(), self.engine(), self.data(support)
            engine.fit(model, datamodule=data)
        return Trained(model, engine, data)

    def data(self, support: Sequence[str] | None = None) -> FewShot:
        """Return the data."""
        source = MVTecAD(self.folder / "data", CATEGORY, num_workers=0, train_batch_size=4, eval_batch_size=4)
        return FewShot(source, self.k_shot, support=support)

    def engine(self) -> Engine:
        """Return an engine that trains one epoch, unless the model says otherwise."""
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
        backwards: bool = False,
        checkpoint: str | Path | None = None,
    ) -> Outputs:
        """Return what a prediction says of the test pictures, in the order of their names.

        Args:
            model (AnomalibModule): The model.
            batch_size (int): Pictures at once. Defaults to all.
            backwards (bool): Predict the last picture first. Defaults to ``False``.
            checkpoint (str | Path | None): Checkpoint to load. Defaults to ``None``.
        """
        dataset = PredictDataset(self.folder / "data" / CATEGORY / "test")
        order = range(len(dataset))
        subset = Subset(dataset, order[::-1] if backwards else order)
        loader = DataLoader(subset, batch_size, collate_fn=dataset.collate_fn)
        with quietly():
            batches = self.engine().predict(model, dataloaders=loader, ckpt_path=checkpoint)
        found: list[Any] = list(batches or [])
        step = -1 if backwards else 1
        scores = torch.cat([batch.pred_score.flatten() for batch in found])[range(len(dataset))[::step]]
        maps = None
        if all(batch.anomaly_map is not None for batch in found):
            maps = torch.cat([batch.anomaly_map.flatten(0, -3) for batch in found])[range(len(dataset))[::step]]
        height, width = found[0].image.shape[-2:]
        return Outputs(scores, maps, (height, width))

    def pictures(self) -> torch.Tensor:
        """Return the test pictures as an exported model takes them, shape ``(B, 3, H, W)``, in the order of names."""
        return torch.stack([item.image for item in PredictDataset(self.folder / "data" / CATEGORY / "test")])

    def support_names(self) -> list[str]:
        """Return the names of the pictures that the data choose."""
        manifest = self.trained.data.manifest
        return list(manifest.images) if manifest is not None else []


@contextmanager
def quietly() -> Generator[None]:
    """Keep what a training prints, logs and warns of from those who read a check."""
    disabled = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        with warnings.catch_warnings(), redirect_stdout(StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled)


def _write_pictures(folder: Path) -> None:
    """Write pictures in MVTec AD's layout."""
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
