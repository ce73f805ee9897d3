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
from filelock import FileLock
from lightning.pytorch import Callback, seed_everything
from lightning.pytorch.trainer.states import TrainerFn
from torchvision.transforms.v2 import Resize

from anomalib_fewshot.data import FewShot, MultiCategory
from anomalib_fewshot.data.in_memory import InMemoryDataset, ItemCache
from anomalib_fewshot.data.manifest import SupportManifest

from .environment import package_versions
from .examples import example_pictures
from .jobs import Job
from .measures import MIB, PeakMemory, Recorder, accuracy, latency, weights_hash
from .specs import Spec, instantiate, read_spec

NO_SUPPORT = 2**16  # added to a training's seed, so that its support is that of no run, and each run takes its own
LEARNS_FROM = {"support": "the support", "others": "other categories", "all": "the supports of all categories"}


@dataclass(frozen=True)
class Settings:
    """What is common to all runs and does not change their scores.

    Args:
        accelerator (str): Accelerator of Lightning's trainer. Defaults to ``"auto"``.
        threads (int | None): Threads of torch on the CPU. Defaults to ``None``: as torch chooses.
        latency_runs (int): Forward passes from which the latency is measured. Defaults to ``30``.
        cache_gib (float): GiB of test images that are kept in memory. Defaults to ``2.0``.
        trainings (Path): Folder that trainings on other categories are kept in. Defaults to ``"trainings"``.
    """

    accelerator: str = "auto"
    threads: int | None = None
    latency_runs: int = 30
    cache_gib: float = 2.0
    trainings: Path = Path("trainings")


@dataclass
class Outcome:
    """What a run leaves: plain data that can be sent between machines.

    Args:
        rows (list[dict]): Figures, a row for each category that was tested.
        manifests (list[SupportManifest]): The support of each category that was tested.
        scores (dict): Label and raw score of each test image, by its path.
        pictures (dict): JPEG files of test images beside their heat maps, by category and name.
    """

    rows: list[dict[str, Any]]
    manifests: list[SupportManifest] = field(default_factory=list)
    scores: dict[str, list[float]] = field(default_factory=dict)
    pictures: dict[tuple[str, str], bytes] = field(default_factory=dict)

    @property
    def ok(self) -> bool:
        """Whether the run has not failed."""
        return all(row["status"] == "ok" for row in self.rows)


def failed(job: Job, error: str) -> Outcome:
    """Return the outcome of a run that failed."""
    return Outcome([_heading(job, category) | {"status": "failed", "error": error} for category in job.tested])


class Worker:
    """Carries out one run after the other, and keeps the test images between them.

    Args:
        settings (Settings): What is common to all runs.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self._sources: dict[str, AnomalibDataModule] = {}
        self._cache = ItemCache(int(settings.cache_gib * 2**30))
        if settings.threads is not None:
            torch.set_num_threads(settings.threads)

    def run(self, job: Job, with_pictures: bool = False) -> Outcome:
        """Carry out a run. Whatever fails in it is in the outcome.

        Args:
            job (Job): The run.
            with_pictures (bool): Make pictures of the best and worst cases. Defaults to ``False``.
        """
        try:
            with silence():
                return self._run(job, with_pictures)
        except Exception as error:  # noqa: BLE001  the other runs go on
            return failed(job, f"{type(error).__name__}: {error}".strip())

    def _run(self, job: Job, with_pictures: bool) -> Outcome:
        start = time.perf_counter()
        trained = self._train_on_others(job) if job.learns_from == "others" else None
        datamodule, parts = self._data(job)
        seed_everything(job.seed, workers=True, verbose=False)  # after data, which are made once for several runs
        model = _model(job)
        description = {"weights": weights_hash(model), **package_versions()}
        recorder, cost = self._train_and_test(job, model, datamodule, trained)
        first = parts[job.tested[0]]
        common = cost | latency(model, first.test_data[0].image, self.settings.latency_runs)
        common |= {"training_seconds": trained.seconds} if trained else {}
        common |= {"device": _device(model), "threads": torch.get_num_threads()}
        common |= _settings_of(model, first, job) | description | {"seconds": time.perf_counter() - start}
        outcome = Outcome([])
        for category, part in parts.items():
            predictions = recorder.predictions(set(part.test_data.samples.image_path))
            manifest = cast("SupportManifest", part.manifest)  # it was made at the training
            row = _heading(job, category) | {"status": "ok", "error": ""} | accuracy(predictions, _threshold(model))
            row |= {"threshold": _threshold_source(model, part)} | common | {"support": manifest.digest}
            row |= {"test_normal": int((~predictions.labels).sum()), "test_anomalous": int(predictions.labels.sum())}
            outcome.rows.append(row)
            outcome.manifests.append(manifest)
            scores = zip(predictions.paths, predictions.labels.tolist(), predictions.scores.tolist(), strict=True)
            outcome.scores |= {path: values for path, *values in scores}
            pictures = example_pictures(part.test_data, predictions) if with_pictures else {}
            outcome.pictures |= {(category, name): picture for name, picture in pictures.items()}
        return outcome

    def _data(self, job: Job) -> tuple[AnomalibDataModule, dict[str, FewShot]]:
        """Return the datamodule of a run, and the few-shot datamodule of each category that is tested."""
        specs = [job.source(category) for category in job.tested]
        self._forget_others(specs)
        sources: list[Any] = [self._source(spec) for spec in specs]
        k_shot = job.k_shot if isinstance(job.k_shot, int) else None  # all
        if job.learns_from == "all":
            several = MultiCategory(sources, k_shot=k_shot, seed=job.seed)
            return several, several.parts
        one = FewShot(sources[0], k_shot=k_shot, seed=job.seed)
        return one, {job.category: one}

    def _train_and_test(
        self,
        job: Job,
        model: AnomalibModule,
        datamodule: AnomalibDataModule,
        trained: "_Trained | None",
    ) -> tuple[Recorder, dict[str, float]]:
        """Return the raw predictions on the test images, and what training and test cost."""
        recorder, fit_seconds = Recorder(), 0.0
        with TemporaryDirectory() as folder, PeakMemory() as memory:
            engine = self._engine(job, folder, recorder)
            if trained is None:
                start = time.perf_counter()
                engine.fit(model, datamodule=datamodule)
                fit_seconds = time.perf_counter() - start - recorder.validation_seconds
                trained = _Trained(None, engine.trainer.global_step, 0.0, _checkpoint_mib(Path(folder)))
            start = time.perf_counter()
            engine.test(model, datamodule=datamodule, ckpt_path=trained.checkpoint, verbose=False)
            prepared = recorder.preparation_seconds if job.learns_from == "others" else 0.0  # takes the support there
            test_seconds = time.perf_counter() - start - prepared
        model.to(engine.trainer.strategy.root_device)  # Lightning has moved it off a GPU
        return recorder, {
            "fit_seconds": fit_seconds + prepared,
            "test_seconds": test_seconds,
            "steps": trained.steps,
            "checkpoint_mib": trained.mib,
            "peak_memory_mib": memory.host_mib,
            "gpu_memory_mib": memory.gpu_mib,
        }

    def _train_on_others(self, job: Job) -> "_Trained":
        """Return the training on other categories that a run shares with those of other k and supports.

        It is done by the first of them; others wait for it. It is kept, so that a sweep that was ended has it still.
        """
        folder = self.settings.trainings / job.training_key
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(folder.with_suffix(".lock")):
            if not folder.exists():
                with TemporaryDirectory(dir=folder.parent, prefix=".part-") as part:
                    self._train(job, Path(part) / folder.name)
                    (Path(part) / folder.name).replace(folder)
        return _Trained(folder / "model.ckpt", **json.loads((folder / "cost.json").read_text(encoding="utf-8")))

    def _train(self, job: Job, folder: Path) -> None:
        seed = job.model["init_args"].get("seed", 0)
        seed_everything(seed, workers=True, verbose=False)
        sources = [instantiate(job.source(category), AnomalibDataModule) for category in job.categories]
        for source in sources:
            source.num_workers = 0
        model = _model(job)
        engine = self._engine(job, str(folder.parent))
        start = time.perf_counter()
        engine.fit(model, datamodule=MultiCategory(sources, target=job.category, k_shot=1, seed=seed + NO_SUPPORT))
        seconds = time.perf_counter() - start
        engine.trainer.save_checkpoint(folder / "model.ckpt")
        cost = {"steps": engine.trainer.global_step, "seconds": seconds, "mib": _checkpoint_mib(folder)}
        folder.joinpath("cost.json").write_text(json.dumps(cost), encoding="utf-8")

    def _engine(self, job: Job, folder: str, *callbacks: Callback) -> Engine:
        arguments: dict[str, Any] = {"accelerator": self.settings.accelerator, "devices": 1}
        arguments |= dict.fromkeys(("logger", "enable_progress_bar", "enable_model_summary"), False) | job.trainer
        own = [instantiate(read_spec(spec), Callback) for spec in job.trainer.get("callbacks", [])]
        return Engine(default_root_dir=folder, **arguments | {"callbacks": [*callbacks, *own]})

    def _forget_others(self, specs: list[Spec]) -> None:
        """Forget the images of runs on others: runs on the same images come one after the other."""
        if not self._sources.keys() <= {_key(spec) for spec in specs}:
            self._sources, self._cache = {}, ItemCache(self._cache.limit)

    def _source(self, spec: Spec) -> AnomalibDataModule:
        """Return a datamodule, set up once, with test images that are read once."""
        key = _key(spec)
        if key not in self._sources:
            seed_everything(0, workers=True, verbose=False)  # whichever run comes first
            source = instantiate(spec, AnomalibDataModule)
            source.num_workers = 0  # processes of a loader would not see what is kept
            first = FewShot(source, k_shot=1)
            first.prepare_data()
            first.setup(TrainerFn.FITTING)
            for name in ("val_data", "test_data"):
                if hasattr(source, name):
                    setattr(source, name, InMemoryDataset(getattr(source, name), self._cache))
            self._sources[key] = source
        return self._sources[key]


@dataclass(frozen=True)
class _Trained:
    """What is left of a training: a checkpoint, if runs share it, the steps, the seconds and the checkpoint's MiB."""

    checkpoint: Path | None
    steps: int
    seconds: float
    mib: float


def _key(spec: Spec) -> str:
    return json.dumps(spec, sort_keys=True)


def _model(job: Job) -> AnomalibModule:
    """Return the model, without what a sweep does not need: figures are of raw scores, and pictures take time."""
    model = instantiate(job.model, AnomalibModule)
    model.evaluator = model.visualizer = None
    return model


def _checkpoint_mib(folder: Path) -> float:
    return sum(path.stat().st_size for path in folder.rglob("*.ckpt")) / MIB


@contextmanager
def silence() -> Generator[None, None, None]:
    """Keep the lines that anomalib and Lightning print for one run out of a sweep of hundreds."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def _heading(job: Job, category: str) -> dict[str, Any]:
    names = ("method", "dataset", "k_shot", "seed")
    return {name: getattr(job, name) for name in names} | {
        "category": category,
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
        "learns_from": LEARNS_FROM[job.learns_from],
    }


def _device(model: AnomalibModule) -> str:
    return torch.cuda.get_device_name(model.device) if model.device.type == "cuda" else str(model.device)
