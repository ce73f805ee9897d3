# Copyright (C) 2026 anomalib-fewshot contributors
# SPDX-License-Identifier: Apache-2.0

"""Carries out runs of a benchmark, in this process or wherever a runner puts it."""

import inspect
import io
import json
import logging
import time
import warnings
from collections.abc import Generator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, cast

import numpy as np
import torch
from anomalib.data import AnomalibDataModule
from anomalib.engine import Engine
from anomalib.models import AnomalibModule
from lightning.pytorch import seed_everything
from lightning.pytorch.trainer.states import TrainerFn
from torchvision.transforms.v2 import Resize

from anomalib_fewshot.data import FewShot
from anomalib_fewshot.data.in_memory import InMemoryDataset, ItemCache
from anomalib_fewshot.data.manifest import SupportManifest

from .environment import package_versions
from .examples import example_pictures
from .jobs import Job
from .measures import MIB, PeakMemory, Predictions, Recorder, accuracy, latency, weights_hash
from .specs import instantiate


@dataclass(frozen=True)
class Settings:
    """What is common to all runs and does not change their scores.

    Args:
        accelerator (str): Accelerator of Lightning's trainer. Defaults to ``"auto"``.
        threads (int | None): Threads of torch on the CPU. Defaults to ``None``: as torch chooses.
        latency_runs (int): Forward passes from which the latency is measured. Defaults to ``30``.
        cache_gib (float): GiB of test images that are kept in memory. Defaults to ``2.0``.
    """

    accelerator: str = "auto"
    threads: int | None = None
    latency_runs: int = 30
    cache_gib: float = 2.0


@dataclass
class Outcome:
    """What a run leaves: plain data that can be sent between machines.

    Args:
        rows (list[dict]): Figures, a row for each category that was tested.
        manifest (SupportManifest | None): The support.
        scores (dict): Label and raw score of each test image, by its path.
        pictures (dict): JPEG files of test images beside their heat maps, by name.
    """

    rows: list[dict[str, Any]]
    manifest: SupportManifest | None = None
    scores: dict[str, list[float]] = field(default_factory=dict)
    pictures: dict[str, bytes] = field(default_factory=dict)

    @property
    def ok(self) -> bool:
        """Whether the run has not failed."""
        return all(row["status"] == "ok" for row in self.rows)


def failed(job: Job, error: str) -> Outcome:
    """Return the outcome of a run that failed."""
    return Outcome([_heading(job) | {"status": "failed", "error": error}])


class Worker:
    """Carries out one run after the other, and keeps the test images between them.

    Args:
        settings (Settings): What is common to all runs.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self._sources: dict[str, AnomalibDataModule] = {}
        if settings.threads is not None:
            torch.set_num_threads(settings.threads)

    def run(self, job: Job, with_pictures: bool = False) -> Outcome:
        """Carry out a run. Whatever fails in it is in the outcome.

        Args:
            job (Job): The run.
            with_pictures (bool): Make pictures of the best and worst cases. Defaults to ``False``.
        """
        try:
            with _silence():
                return self._run(job, with_pictures)
        except Exception as error:  # noqa: BLE001  the other runs go on
            return failed(job, f"{type(error).__name__}: {error}".strip())

    def _run(self, job: Job, with_pictures: bool) -> Outcome:
        start = time.perf_counter()
        seed_everything(job.seed, workers=True, verbose=False)
        datamodule = FewShot(self._source(job), k_shot=job.k_shot, seed=job.seed)
        model = instantiate(job.model, AnomalibModule)
        model.evaluator = model.visualizer = None  # figures are of raw scores, and pictures take time
        row = _heading(job) | {"status": "ok", "error": ""}
        description = {"weights": weights_hash(model), **package_versions()}
        predictions, cost = self._train_and_test(job, model, datamodule)
        row |= accuracy(predictions, _threshold(model))
        row |= {"threshold": _threshold_source(model, datamodule)} | cost
        row |= latency(model, datamodule.test_data[0].image, self.settings.latency_runs)
        row |= {"device": _device(model), "threads": torch.get_num_threads()}
        manifest = cast("SupportManifest", datamodule.manifest)  # it was made at the training
        row |= _settings_of(model, datamodule, job) | description | {"support": manifest.digest}
        row |= {"test_normal": int((~predictions.labels).sum()), "test_anomalous": int(predictions.labels.sum())}
        row |= {"seconds": time.perf_counter() - start}
        pictures = example_pictures(datamodule.test_data, predictions) if with_pictures else {}
        scores = zip(predictions.paths, predictions.labels.tolist(), predictions.scores.tolist(), strict=True)
        return Outcome([row], manifest, {path: values for path, *values in scores}, pictures)

    def _train_and_test(
        self,
        job: Job,
        model: AnomalibModule,
        datamodule: FewShot,
    ) -> tuple[Predictions, dict[str, float]]:
        """Return the raw predictions on the test images, and what training and test cost."""
        recorder = Recorder()
        arguments: dict[str, Any] = {"accelerator": self.settings.accelerator, "devices": 1, "callbacks": [recorder]}
        arguments |= dict.fromkeys(("logger", "enable_progress_bar", "enable_model_summary"), False) | job.trainer
        with TemporaryDirectory() as folder, PeakMemory() as memory:
            engine = Engine(default_root_dir=folder, **arguments)
            start = time.perf_counter()
            engine.fit(model, datamodule=datamodule)
            fit_seconds = time.perf_counter() - start - recorder.validation_seconds
            steps = engine.trainer.global_step
            checkpoint_mib = sum(path.stat().st_size for path in Path(folder).rglob("*.ckpt")) / MIB
            start = time.perf_counter()
            engine.test(model, datamodule=datamodule, verbose=False)
            test_seconds = time.perf_counter() - start
        model.to(engine.trainer.strategy.root_device)  # Lightning has moved it off a GPU
        return recorder.predictions, {
            "fit_seconds": fit_seconds,
            "test_seconds": test_seconds,
            "steps": steps,
            "checkpoint_mib": checkpoint_mib,
            "peak_memory_mib": memory.host_mib,
            "gpu_memory_mib": memory.gpu_mib,
        }

    def _source(self, job: Job) -> AnomalibDataModule:
        """Return the datamodule of a job, set up once, with test images that are read once."""
        key = json.dumps(job.data, sort_keys=True)
        if key not in self._sources:
            self._sources.clear()  # jobs on the same images come one after the other
            source = instantiate(job.data, AnomalibDataModule)
            source.num_workers = 0  # processes of a loader would not see what is kept
            first = FewShot(source, k_shot=1)
            first.prepare_data()
            first.setup(TrainerFn.FITTING)
            cache = ItemCache(int(self.settings.cache_gib * 2**30))
            for name in ("val_data", "test_data"):
                if hasattr(source, name):
                    setattr(source, name, InMemoryDataset(getattr(source, name), cache))
            self._sources[key] = source
        return self._sources[key]


@contextmanager
def _silence() -> Generator[None, None, None]:
    """Keep the lines that anomalib and Lightning print for one run out of a sweep of hundreds."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def _heading(job: Job) -> dict[str, Any]:
    names = ("method", "dataset", "category", "k_shot", "seed")
    return {name: getattr(job, name) for name in names} | {
        "key": job.key,
        "finished": datetime.now(tz=timezone.utc).isoformat(timespec="seconds"),
    }


def _threshold(model: AnomalibModule) -> float:
    threshold = getattr(model.post_processor, "image_threshold", None)
    return float("nan") if threshold is None else float(threshold)


def _threshold_source(model: AnomalibModule, datamodule: FewShot) -> str:
    """Return which images the threshold was fitted to."""
    if np.isnan(_threshold(model)):
        return "none"
    if not hasattr(datamodule, "val_data"):
        return "normal images"
    shared = set(datamodule.val_data.samples.image_path) & set(datamodule.test_data.samples.image_path)
    return "test images" if shared else "validation images"


def _settings_of(model: AnomalibModule, datamodule: FewShot, job: Job) -> dict[str, Any]:
    """Return what a reader must know to compare figures."""
    defaults = {name: parameter.default for name, parameter in inspect.signature(type(model)).parameters.items()}
    arguments = defaults | job.model["init_args"]
    resize = datamodule.test_data.augmentations
    return {
        "backbone": str(arguments.get("backbone", "")),
        "image_size": "x".join(map(str, resize.size)) if isinstance(resize, Resize) else "",
        "augmentation": str(arguments.get("augmentation", "")),
        "learns_from": "the support",
    }


def _device(model: AnomalibModule) -> str:
    return torch.cuda.get_device_name(model.device) if model.device.type == "cuda" else str(model.device)
