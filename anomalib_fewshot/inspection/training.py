# Copyright (C) 2026 anomalib-fewshot contributors
# SPDX-License-Identifier: Apache-2.0

"""A detector of a list of good pictures: trained without settings, or loaded from an earlier run."""

import logging
import shutil
import tempfile
import warnings
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from pathlib import Path
from pickle import UnpicklingError  # noqa: S403  an error alone

import pandas as pd
import torch
from anomalib.data import AnomalibDataModule, AnomalibDataset, DatasetItem, ImageItem
from anomalib.data.utils import LabelName, Split
from anomalib.engine import Engine
from torchvision.transforms.v2.functional import to_dtype, to_image

from anomalib_fewshot._cli.signals import interruptible
from anomalib_fewshot._host import update_augmentations
from anomalib_fewshot.atomic import complete_file
from anomalib_fewshot.data import FewShot
from anomalib_fewshot.data.validation.image import read_upright
from anomalib_fewshot.models import CoftAD
from anomalib_fewshot.models.components import StepReport

from .ignore_mask import IgnoreMask

CHECKPOINT, SUPPORT = "model.ckpt", "support.json"


class GoodPictures(AnomalibDataModule):
    """Normal training images from a list of files. Their paths may have letters that anomalib's own `Folder` refuses.

    Args:
        paths (Sequence[Path]): Files.
        ignored (IgnoreMask | None): Region that does not count. Defaults to ``None``.
    """

    reads_upright = True  # `FewShot` accepts images with an EXIF orientation

    def __init__(self, paths: Sequence[Path], ignored: IgnoreMask | None = None) -> None:
        super().__init__(train_batch_size=8, eval_batch_size=8, num_workers=0)
        self.paths = paths
        self.ignored = ignored

    @property
    def name(self) -> str:  # type: ignore[override]  # as in anomalib, over an attribute of Lightning's
        """Name in the manifest of the support."""
        return "good"

    def setup(self, stage: str | None = None) -> None:
        """Make the dataset. There is none to validate or test on."""
        del stage
        if not hasattr(self, "train_data"):
            self.train_data = _GoodDataset(self.paths, self.ignored)
        update_augmentations(self)

    def _setup(self, _stage: str | None = None) -> None:
        """Not used: there is nothing to split."""


class _GoodDataset(AnomalibDataset):
    """Images read upright by their EXIF orientation, which anomalib's own datasets ignore."""

    def __init__(self, paths: Sequence[Path], ignored: IgnoreMask | None) -> None:
        super().__init__()
        self.ignored = ignored
        samples = pd.DataFrame({
            "image_path": [str(path) for path in paths],
            "split": Split.TRAIN,
            "label": "normal",
            "label_index": LabelName.NORMAL,
            "mask_path": "",
        })
        samples.attrs["task"] = "classification"
        self.samples = samples

    def __getitem__(self, index: int) -> DatasetItem:
        path = self.samples.iloc[index].image_path
        image = to_dtype(to_image(read_upright(Path(path))), torch.float32, scale=True)  # (3, H, W)
        if self.augmentations:
            image = self.augmentations(image)
        if self.ignored is not None:
            image = self.ignored.apply(image)
        return ImageItem(image=image, gt_label=torch.tensor(LabelName.NORMAL), image_path=path, mask_path="")


def new_model() -> CoftAD:
    """Return the model that is trained: with default settings."""
    return CoftAD(evaluator=False, visualizer=False)


def train(
    paths: Sequence[Path],
    folder: Path,
    ignored: IgnoreMask | None,
    tell: Callable[[int, int], object],
) -> CoftAD:
    """Train a model on good pictures, and write its checkpoint and the manifest of its support to a folder.

    Args:
        paths (Sequence[Path]): The pictures, all of which are used.
        folder (Path): Folder of the run.
        ignored (IgnoreMask | None): Region that does not count.
        tell (Callable[[int, int], object]): Takes the number of steps that are done, and that of all.
    """
    with tempfile.TemporaryDirectory() as root, quiet(), interruptible():
        model = new_model()
        data = FewShot(GoodPictures(paths, ignored), k_shot=len(paths))
        engine = Engine(
            default_root_dir=root,
            logger=False,
            callbacks=[StepReport(tell)],
            enable_model_summary=False,
            devices=1,
        )
        engine.fit(model, datamodule=data)
        if data.manifest is not None:
            data.manifest.write(folder / SUPPORT)
        with complete_file(folder / CHECKPOINT) as part:  # a run that was ended may be resumed with it
            shutil.copyfile(str(engine.best_model_path), part)
    return model


def load(model: Path) -> CoftAD:
    """Return the model of an earlier run, or of a checkpoint.

    Args:
        model (Path): Folder of the run, or the checkpoint of a fit.

    Raises:
        FileNotFoundError: If the folder has no checkpoint.
        ValueError: If it holds more than weights, which might run as code, if it is of another model, or if its
            thresholds are not from good pictures.
    """
    path = checkpoint_of(model)
    if not path.is_file():
        msg = f"`model` must be the folder of an earlier run, got {model}, which has no {CHECKPOINT}. Give another."
        raise FileNotFoundError(msg)
    with quiet():
        try:
            loaded = CoftAD.load_from_checkpoint(path, map_location="cpu")
        except UnpicklingError as error:
            msg = f"`model` must have a checkpoint that holds weights alone, got {path}. Do not trust it; train again."
            raise ValueError(msg) from error
    if not loaded.is_fitted or loaded.post_processor.scheme is None:  # type: ignore[union-attr]
        msg = (
            f"`model` must have thresholds from good pictures, got {path}, which has none. Fit it by `FewShot` "
            "without its argument `validation`."
        )
        raise ValueError(msg)
    return loaded


def checkpoint_of(model: Path) -> Path:
    """Return the checkpoint in the folder of a run, or the path itself if it is a file."""
    return model if model.is_file() else model / CHECKPOINT


@contextmanager
def quiet() -> Generator[None]:
    """Keep the logs and warnings of anomalib and Lightning to themselves, where a command says all in its own words."""
    disabled = logging.getLogger().manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled)


def to_device(model: CoftAD) -> CoftAD:
    """Return a model ready to score, on a GPU if there is one."""
    return model.eval().to("cuda" if torch.cuda.is_available() else "cpu")
