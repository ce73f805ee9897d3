# Copyright (C) 2026 anomalib-fewshot contributors
# SPDX-License-Identifier: Apache-2.0

"""What a prediction is told before it, and says after it: no datamodule sees its pictures."""

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

from anomalib_fewshot.data.validation.image_check import check_pictures, find_skipped_files
from anomalib_fewshot.data.validation.issue import report
from anomalib_fewshot.post_processing import UNKNOWN, VERDICTS

logger = logging.getLogger(__name__)

NUM_SHOWN = 3  # names in a line


class PredictCheck(Callback):
    """Check the pictures that ``anomalib predict`` is given, and say what was found when they are scored.

    Lightning adds it to every trainer of anomalib's engine: the package has an entry point for that.
    """

    def __init__(self) -> None:
        self.files: list[Path] = []
        self._counts: Counter[str] = Counter()
        self._last: Any = None  # a batch, which post-processors complete after this callback

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Warn of pictures that are perhaps not as they are meant, and of heat maps that are lost.

        Raises:
            ValueError: If anomalib cannot read one, or would read it as something else.
        """
        del pl_module
        self.files, self._counts = [], Counter()
        loaders = trainer.predict_dataloaders
        for loader in loaders if isinstance(loaders, list) else [loaders]:
            dataset = getattr(loader, "dataset", None)
            if isinstance(dataset, PredictDataset):
                files = dataset.image_filenames
                folders = dict.fromkeys(path.parent for path in files) if len(files) > 1 else ()
                report([*check_pictures((), files, decode=False), *find_skipped_files(folders)])
                self.files += files
        if (folder := _map_folder(trainer)) is not None:
            _warn_of_lost_maps(self.files, folder)

    def on_predict_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,  # noqa: ANN401
        *args: Any,  # noqa: ANN401
        **kwargs: Any,  # noqa: ANN401
    ) -> None:
        """Count the verdicts of the batch before."""
        del trainer, pl_module, args, kwargs
        self._count()
        self._last = outputs

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Say how many pictures are good, and where the heat maps are."""
        self._count()
        if not self.files:
            return
        explained = set(self._counts) <= {UNKNOWN, *VERDICTS}
        kinds = VERDICTS[::-1] if explained else ("anomalous", "normal")
        if self._counts[UNKNOWN]:
            kinds = (UNKNOWN, *kinds)
        verdicts = ", ".join(f"{self._counts[kind]} {kind}" for kind in kinds) if self._counts else "no labels"
        logger.info("%d pictures: %s.", len(self.files), verdicts)
        if (folder := _map_folder(trainer)) is not None:
            logger.info("Heat maps: %s", folder)
        if type(pl_module).__name__ == "CoftAD" and trainer.ckpt_path:
            model, new = (shlex.quote(str(path)) for path in (trainer.ckpt_path, _common_folder(self.files)))
            command = f"anomalib inspect --model {model} --new {new}"
            logger.info("Scores in a table, a page, and heat maps at the photos' own size: %s", command)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Say of a checkpoint that does not exist which others do: `latest` is also that of a failed run."""
        del pl_module
        path = Path(trainer.ckpt_path or "")
        if isinstance(exception, FileNotFoundError) and path.suffix == ".ckpt" and not path.exists():
            runs = path.parents[3].glob(f"v*/{'/'.join(path.parts[-3:])}") if len(path.parents) > 3 else ()
            others = [str(run) for run in sorted(runs, key=lambda run: run.stat().st_mtime, reverse=True)]
            words = f"The latest of other runs is {others[0]}." if others else "Train a model first."
            exception.args = (f"`ckpt_path` must exist, got {path}: a run that failed leaves none. {words}",)

    def _count(self) -> None:
        last, self._last = self._last, None
        if getattr(last, "explanation", None) is not None:
            self._counts.update(words.partition(",")[0] for words in last.explanation)
        elif getattr(last, "pred_label", None) is not None:
            self._counts.update("anomalous" if label else "normal" for label in last.pred_label.flatten().tolist())


def _map_folder(trainer: Trainer) -> Path | None:
    """Return the folder of heat maps, if there are any."""
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if isinstance(callback, ImageVisualizer):
            return Path(callback.output_dir or Path(trainer.default_root_dir) / "images")
    return None


def _warn_of_lost_maps(files: Sequence[Path], folder: Path) -> None:
    """Warn where anomalib's visualizer gives two pictures one file, or the file of an earlier run."""
    names = defaultdict(list)
    for path in files:
        names[generate_output_filename(path, folder, mkdir=False)].append(str(path))
    shared = [path for paths in names.values() if len(paths) > 1 for path in paths]
    if shared:
        shown = ", ".join(shared[:NUM_SHOWN]) + (", ..." if len(shared) > NUM_SHOWN else "")
        logger.warning(
            "%d pictures have a name and a folder's name in common with others, and one heat map for all: %s. Rename "
            "them, or use `anomalib inspect`, which keeps all.",
            len(shared),
            shown,
        )
    if earlier := sum(name.exists() for name in names):
        logger.warning("%d heat maps of an earlier run in %s are replaced.", earlier, folder)


def _common_folder(files: Sequence[Path]) -> Path:
    return files[0] if len(files) == 1 else Path(os.path.commonpath([path.parent for path in files]))
