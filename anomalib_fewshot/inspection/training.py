# Copyright (C) 2026 anomalib-fewshot contributors
# SPDX-License-Identifier: Apache-2.0

"""Training of a detector with default settings, and loading of one from an earlier run."""

import logging
import shutil
import tempfile
import warnings
from collections.abc import Callable, Collection, Generator, Sequence
from contextlib import contextmanager
from pathlib import Path
from pickle import UnpicklingError  # noqa: S403  only the exception class

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
from anomalib_fewshot.errors import CheckpointMismatchError, MissingDataError
from anomalib_fewshot.models import CoftAD
from anomalib_fewshot.models.components import StepReport
from anomalib_fewshot.post_processing import SupportPostProcessor

from .ignore_mask import IgnoreMask
from .settings import Settings

CHECKPOINT, SUPPORT = "model.ckpt", "support.json"


class GoodImages(AnomalibDataModule):
    """Data module of normal training images from a list of files.

    Unlike anomalib's `Folder`, it accepts paths with any characters.

    Args:
        paths (Sequence[Path]): Files.
        ignored (IgnoreMask | None): Region to ignore. Defaults to ``None``.
    """

    reads_upright = True  # tells `FewShot` to accept images with an EXIF orientation

    def __init__(self, paths: Sequence[Path], ignored: IgnoreMask | None = None) -> None:
        super().__init__(train_batch_size=8, eval_batch_size=8, num_workers=0)
        self.paths = paths
        self.ignored = ignored

    @property
    def name(self) -> str:  # type: ignore[override]  # overrides an attribute of Lightning, as in anomalib
        """Name in the support manifest."""
        return "good"

    def setup(self, stage: str | None = None) -> None:
        """Create the training dataset. There are no validation or test data."""
        del stage
        if not hasattr(self, "train_data"):
            self.train_data = _GoodDataset(self.paths, self.ignored)
        update_augmentations(self)

    def _setup(self, _stage: str | None = None) -> None:
        """Do nothing, because there are no data to split."""


class _GoodDataset(AnomalibDataset):
    """Dataset that applies the EXIF orientation, which anomalib's datasets ignore."""

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


def new_model(settings: Settings) -> CoftAD:
    """Return an untrained model with the false-alarm rate and the image size of a run, and defaults otherwise."""
    size = settings.image_size
    return CoftAD(
        image_size="auto" if size is None else size if isinstance(size, int) else (size[0], size[1]),
        post_processor=SupportPostProcessor(settings.false_alarm_rate),
        evaluator=False,
        visualizer=False,
    )


def train(
    paths: Sequence[Path],
    folder: Path,
    ignored: IgnoreMask | None,
    report_progress: Callable[[int, int], object],
    pool: Sequence[Path],
    settings: Settings,
    marked: Collection[Path] = (),
) -> CoftAD:
    """Train a model on good pictures and write its checkpoint and support manifest to a folder.

    Files of an earlier training are replaced at the end, so that an interrupted training changes nothing.

    Args:
        paths (Sequence[Path]): The good pictures. All of them are used.
        folder (Path): Folder of the run.
        ignored (IgnoreMask | None): Region to ignore.
        report_progress (Callable[[int, int], object]): Called with the number of completed steps and the total.
        pool (Sequence[Path]): Unlabeled pictures to learn from. They are read as the good ones. May be empty.
        settings (Settings): Settings of the run.
        marked (Collection[Path]): Good pictures that were chosen by their scores. The thresholds are calibrated on the
            others, if there are at least two. Defaults to none.
    """
    with tempfile.TemporaryDirectory() as root, quiet(), interruptible():
        model = new_model(settings)
        data = FewShot(GoodImages(paths, ignored), k_shot=len(paths), unlabeled=list(pool))
        engine = Engine(
            default_root_dir=root,
            logger=False,
            callbacks=[StepReport(report_progress)],
            enable_model_summary=False,
            devices=1,
        )
        engine.fit(model, datamodule=data)
        if data.manifest is not None:
            data.manifest.write(folder / SUPPORT)
        checkpoint = Path(str(engine.best_model_path))
        support = [Path(path) for batch in data.support_dataloader() for path in batch.image_path]
        others = [number for number, path in enumerate(support) if path not in marked]
        if 2 <= len(others) < len(support):
            model.calibrate_on(others)
            save_state(model, checkpoint)
        with complete_file(folder / CHECKPOINT) as part:  # a resumed run must not find half a file
            shutil.copyfile(checkpoint, part)
    return model


def load(model: Path) -> CoftAD:
    """Load the model of an earlier run or of a checkpoint.

    Args:
        model (Path): Folder of the run, or a checkpoint.

    Raises:
        MissingDataError: If there is no checkpoint.
        CheckpointMismatchError: If the checkpoint contains pickled objects, which could execute code, or
            if its thresholds were not calibrated on good pictures.
    """
    path = checkpoint_of(model)
    if not path.is_file():
        msg = f"`model` must be the folder of an earlier run, got {model} without {CHECKPOINT}. Check the path."
        raise MissingDataError(msg)
    with quiet():
        try:
            loaded: CoftAD = CoftAD.load_from_checkpoint(path, map_location="cpu")  # type: ignore[assignment]
        except UnpicklingError as error:
            msg = (
                "`model` must be a checkpoint that contains only weights, got other objects, which could execute code. "
                f"Do not load it with other tools; train again. Checkpoint: {path}"
            )
            raise CheckpointMismatchError(msg) from error
    if not loaded.is_fitted or loaded.post_processor.scheme is None:  # type: ignore[union-attr]
        msg = (
            "`model` must have thresholds calibrated on good pictures, got a checkpoint without them. Fit the model "
            f"with `FewShot` and without its argument `validation`. Checkpoint: {path}"
        )
        raise CheckpointMismatchError(msg)
    return loaded


def save_state(model: CoftAD, checkpoint: Path) -> None:
    """Replace the state of a model in its checkpoint, which holds the thresholds.

    Args:
        model (CoftAD): The model of the checkpoint, with changed thresholds.
        checkpoint (Path): The checkpoint. It is replaced at once, so a crash leaves the old or the new one.
    """
    content = torch.load(checkpoint, map_location="cpu", weights_only=True)
    content["state_dict"] = {name: value.cpu() for name, value in model.state_dict().items()}
    model.on_save_checkpoint(content)  # the settings of the post-processor
    with complete_file(checkpoint) as part:
        torch.save(content, part)


def checkpoint_of(model: Path) -> Path:
    """Return the checkpoint in the folder of a run. A path to a file is returned unchanged."""
    return model if model.is_file() else model / CHECKPOINT


@contextmanager
def quiet() -> Generator[None]:
    """Suppress logs and warnings of anomalib and Lightning, because the command prints its own messages."""
    disabled = logging.getLogger().manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled)


def to_device(model: CoftAD) -> CoftAD:
    """Return the model in evaluation mode, on a GPU if one is available."""
    return model.eval().to("cuda" if torch.cuda.is_available() else "cpu")
