# Copyright (C) 2026 anomalib-fewshot contributors
# SPDX-License-Identifier: Apache-2.0

"""The check of the pictures of a prediction, which no datamodule sees."""

from anomalib.data import PredictDataset
from lightning.pytorch import Callback, LightningModule, Trainer

from anomalib_fewshot.data.picture_check import check_left_out, check_pictures, report


class PredictCheck(Callback):
    """Check the pictures that ``anomalib predict`` is given, before the first is scored.

    Lightning adds it to every trainer of anomalib's engine: the package has an entry point for that.
    """

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Warn of pictures that are perhaps not as they are meant.

        Raises:
            ValueError: If anomalib cannot read one, or would read it as something else.
        """
        del pl_module
        loaders = trainer.predict_dataloaders
        for loader in loaders if isinstance(loaders, list) else [loaders]:
            dataset = getattr(loader, "dataset", None)
            if isinstance(dataset, PredictDataset):
                files = dataset.image_filenames
                folders = dict.fromkeys(path.parent for path in files) if len(files) > 1 else ()
                report([*check_pictures((), files, decode=False), *check_left_out(folders)])
