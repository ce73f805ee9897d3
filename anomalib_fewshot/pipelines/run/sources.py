# Copyright (C) 2026 anomalib-fewshot contributors
# SPDX-License-Identifier: Apache-2.0

"""Datamodules that runs on the same images share, with test images that are decoded once."""

import json
from collections.abc import Sequence

from anomalib.data import AnomalibDataModule
from lightning.pytorch import seed_everything
from lightning.pytorch.trainer.states import TrainerFn

from anomalib_fewshot.pipelines.plan.spec import Spec, instantiate
from anomalib_fewshot.pipelines.run.in_memory import InMemoryDataset, ItemCache


class Sources:
    """The datamodules of the current images: runs on the same images follow one another.

    Args:
        limit (int): Bytes of decoded test images to keep.
    """

    def __init__(self, limit: int) -> None:
        self._cache = ItemCache(limit)
        self._sources: dict[str, AnomalibDataModule] = {}

    def get(self, specs: Sequence[Spec]) -> list[AnomalibDataModule]:
        """Return datamodules, those of the last call again. If others are asked for, the last ones are dropped."""
        keys = [json.dumps(spec, sort_keys=True) for spec in specs]
        if not self._sources.keys() <= set(keys):
            self._sources, self._cache = {}, ItemCache(self._cache.limit)
        for key, spec in zip(keys, specs, strict=True):
            if key not in self._sources:
                source = self._sources[key] = instantiate(spec, AnomalibDataModule)
                source.num_workers = 0  # processes of a loader would not share the cache
        return [self._sources[key] for key in keys]

    def set_up(self, datamodule: AnomalibDataModule) -> None:
        """Set up the datamodule of a run, made of the sources, and keep the test images that are read from now on.

        anomalib sets up a source once if it is told the stage: a later fit or test keeps its data.

        Args:
            datamodule (AnomalibDataModule): :class:`FewShot` or :class:`MultiCategory`.
        """
        seed_everything(0, workers=True, verbose=False)  # splits do not depend on which run comes first
        datamodule.prepare_data()
        datamodule.setup(TrainerFn.FITTING)
        for source in self._sources.values():
            for name in ("val_data", "test_data"):
                data = getattr(source, name, None)
                if data is not None and not isinstance(data, InMemoryDataset):
                    setattr(source, name, InMemoryDataset(data, self._cache))
