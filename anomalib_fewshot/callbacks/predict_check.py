# Copyright (C) 2026 anomalib-fewshot contributors
# SPDX-License-Identifier: Apache-2.0

"""Check of the images of a prediction, and a summary of its results."""

import logging
import os
import shlex
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from anomalib.data import PredictDataset
from anomalib.utils.path import generate_output_filename
from anomalib.visualization import ImageVisualizer
from lightning.pytorch import Callback, LightningModule, Trainer

from anomalib_fewshot.data.validation.image_check import check_images, find_skipped_files
from anomalib_fewshot.data.validation.issue import report
from anomalib_fewshot.post_processing import UNKNOWN, VERDICTS

logger = logging.getLogger(__name__)

NUM_SHOWN = 3  # highest number of file names in a message


class PredictCheck(Callback):
    """Check the images of ``anomalib predict``, and log a summary of the results.

    The callback is part of each run with a model of this package, because no data module checks these images.
    """

    def __init__(self) -> None:
        self.files: list[Path] = []
        self._counts: Counter[str] = Counter()
        self._last: Any = None  # the last batch: post-processors run after this callback

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Check the images, and warn about heat maps that would be overwritten.

        Raises:
            DataValidationError: If anomalib cannot read an image correctly.
        """
        del pl_module
        self.files, self._counts = [], Counter()
        loaders = trainer.predict_dataloaders
        for loader in loaders if isinstance(loaders, list) else [loaders]:
            dataset = getattr(loader, "dataset", None)
            if isinstance(dataset, PredictDataset):
                files = dataset.image_filenames
                folders = dict.fromkeys(path.parent for path in files) if len(files) > 1 else ()
                report([*check_images((), files, decode=False), *find_skipped_files(folders)])
                self.files += files
        if (folder := _map_folder(trainer)) is not None:
            _warn_overwritten_maps(self.files, folder)

    def on_predict_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,  # noqa: ANN401
        *args: Any,  # noqa: ANN401
        **kwargs: Any,  # noqa: ANN401
    ) -> None:
        """Count the verdicts of the previous batch, which is now post-processed."""
        del trainer, pl_module, args, kwargs
        self._count_verdicts()
        self._last = outputs

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log the number of images for each verdict, and the path of the heat maps."""
        self._count_verdicts()
        if not self.files:
            return
        has_verdicts = set(self._counts) <= {UNKNOWN, *VERDICTS}
        names = VERDICTS[::-1] if has_verdicts else ("anomalous", "normal")
        if self._counts[UNKNOWN]:
            names = (UNKNOWN, *names)
        summary = ", ".join(f"{self._counts[name]} {name}" for name in names) if self._counts else "no labels"
        logger.info("%d images: %s.", len(self.files), summary)
        if (folder := _map_folder(trainer)) is not None:
            logger.info("Heat maps: %s", folder)
        if type(pl_module).__name__ == "CoftAD" and trainer.ckpt_path:
            model, new = (shlex.quote(str(path)) for path in (trainer.ckpt_path, _common_folder(self.files)))
            command = f"anomalib inspect --model {model} --new {new}"
            logger.info("For a table of scores, a results page and full-size heat maps, run: %s", command)

    def _count_verdicts(self) -> None:
        last, self._last = self._last, None
        if getattr(last, "explanation", None) is not None:
            self._counts.update(explanation.partition(",")[0] for explanation in last.explanation)
        elif getattr(last, "pred_label", None) is not None:
            self._counts.update("anomalous" if label else "normal" for label in last.pred_label.flatten().tolist())


def _map_folder(trainer: Trainer) -> Path | None:
    """Return the folder of the heat maps. ``None`` without a visualizer."""
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if isinstance(callback, ImageVisualizer):
            return Path(callback.output_dir or Path(trainer.default_root_dir) / "images")
    return None


def _warn_overwritten_maps(files: Sequence[Path], folder: Path) -> None:
    """Warn if anomalib's visualizer writes two heat maps to the same file, or replaces one of an earlier run."""
    names = defaultdict(list)
    for path in files:
        names[generate_output_filename(path, folder, mkdir=False)].append(str(path))
    shared = [path for paths in names.values() if len(paths) > 1 for path in paths]
    if shared:
        shown = ", ".join(shared[:NUM_SHOWN]) + (", ..." if len(shared) > NUM_SHOWN else "")
        logger.warning(
            "%d images have the same file and folder names as others, so their heat maps overwrite each other. Rename "
            "them, or use `anomalib inspect`, which keeps all heat maps: %s",
            len(shared),
            shown,
        )
    if earlier := sum(name.exists() for name in names):
        logger.warning("%d heat maps of an earlier run are replaced: %s", earlier, folder)


def _common_folder(files: Sequence[Path]) -> Path:
    return files[0] if len(files) == 1 else Path(os.path.commonpath([path.parent for path in files]))
