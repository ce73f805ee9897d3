# Copyright (C) 2026 anomalib-fewshot contributors
# SPDX-License-Identifier: Apache-2.0

"""Datamodules that are shared by runs on the same images, with cached test and unlabeled images."""

import json
from collections.abc import Sequence

from anomalib.data import AnomalibDataModule
from lightning.pytorch import seed_everything
from lightning.pytorch.trainer.states import TrainerFn

from anomalib_fewshot.pipelines.plan.spec import Spec, instantiate
from anomalib_fewshot.pipelines.run.in_memory import InMemoryDataset, ItemCache


class Sources:
    """Datamodules of the current images, reused while consecutive runs need the same images.

    Args:
        limit (int): Maximum size of the cached images, in bytes.
    """

    def __init__(self, limit: int) -> None:
        self._cache = ItemCache(limit)
        self._sources: dict[str, AnomalibDataModule] = {}

    def get(self, specs: Sequence[Spec]) -> list[AnomalibDataModule]:
        """Return the datamodules of specifications. They are reused if possible; unused ones are discarded."""
        keys = [json.dumps(spec, sort_keys=True) for spec in specs]
        if not self._sources.keys() <= set(keys):
            self._sources, self._cache = {}, ItemCache(self._cache.limit)
        for key, spec in zip(keys, specs, strict=True):
            if key not in self._sources:
                source = self._sources[key] = instantiate(spec, AnomalibDataModule)
                source.num_workers = 0  # worker processes would not share the cache
        return [self._sources[key] for key in keys]

    def set_up(self, datamodule: AnomalibDataModule) -> None:
        """Set up the datamodule of a run, and cache the test images of its sources.

        With unlabeled images, the training images are cached, too, unless they have random augmentations.

        The explicit stage prevents anomalib from setting up the sources again in a later fit or test.

        Args:
            datamodule (AnomalibDataModule): :class:`FewShot` or :class:`MultiCategory` with these sources.
        """
        seed_everything(0, workers=True, verbose=False)  # random splits must not depend on the order of the runs
        datamodule.prepare_data()
        datamodule.setup(TrainerFn.FITTING)
        has_pool = getattr(datamodule, "unlabeled_data", None) is not None
        for source in self._sources.values():
            names = ["val_data", "test_data"]
            if has_pool and source.train_augmentations is None:
                names.append("train_data")
            for name in names:
                data = getattr(source, name, None)
                if data is not None and not isinstance(data, InMemoryDataset):
                    setattr(source, name, InMemoryDataset(data, self._cache))
