# Copyright (C) 2026 anomalib-fewshot contributors
# SPDX-License-Identifier: Apache-2.0

"""Runs of a benchmark, one after the other, in this process or in any that a runner starts."""

import gc
import inspect
import time
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from anomalib.data import AnomalibDataModule
from anomalib.models import AnomalibModule
from lightning.pytorch import Callback, seed_everything
from torchvision.transforms.v2 import Resize

from anomalib_fewshot._cli.signals import interruptible
from anomalib_fewshot.data import FewShot, MultiCategory
from anomalib_fewshot.pipelines.plan.job import Job
from anomalib_fewshot.pipelines.plan.spec import Spec, instantiate, read_spec, with_arguments
from anomalib_fewshot.pipelines.results.outcome import Outcome, failed
from anomalib_fewshot.pipelines.results.row import Row
from anomalib_fewshot.pipelines.results.store import Training, Trainings

from .environment import package_versions
from .examples import draw_features, make_examples
from .predictions import Recorder, accuracy
from .resources import MIB, PeakMemory, TimedEngine, latencies, make_model, silence, weights_hash
from .sources import Sources

TRAINING_SEED = 2**16  # added to the seed of a training on others, whose support is then that of no run
TRAIN_ON = {
    "support": "the support",
    "other_categories": "other categories",
    "all_categories": "the supports of all categories",
}


@dataclass(frozen=True)
class Settings:
    """Settings of all runs, which do not change their scores.

    Args:
        accelerator (str): Accelerator of Lightning's trainer. Defaults to ``"auto"``.
        threads (int | None): Threads of torch on the CPU. Defaults to ``None``: as torch chooses.
        latency_runs (int): Forward passes that the latency is measured from. Defaults to ``30``.
        cache_gib (float): GiB of test images to keep in memory. Defaults to ``2.0``.
        trainings (Trainings): Trainings on other categories. Defaults to those in the folder ``trainings``.
    """

    accelerator: str = "auto"
    threads: int | None = None
    latency_runs: int = 30
    cache_gib: float = 2.0
    trainings: Trainings = Trainings(Path("trainings"))  # noqa: RUF009  it is frozen


class Worker:
    """Carry out runs, and keep the test images between them.

    Args:
        settings (Settings): Settings of all runs.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        gc.collect()
        gc.freeze()  # what is imported stays: the collections of each run need not look at it again
        self._sources = Sources(int(settings.cache_gib * 2**30))
        if settings.threads is not None:
            torch.set_num_threads(settings.threads)

    def run(self, job: Job, save_examples: bool = False) -> Outcome:
        """Carry out a run. An error is in the outcome.

        Args:
            job (Job): The run.
            save_examples (bool): Make pictures of the best and worst test images. Defaults to ``False``.
        """
        try:
            with silence(), interruptible():
                return self._run(job, save_examples)
        except Exception as error:  # noqa: BLE001  the other runs continue
            return failed(job, f"{type(error).__name__}: {error}".strip())

    def _run(self, job: Job, save_examples: bool) -> Outcome:
        start = time.perf_counter()
        training = self._train_on_others(job) if job.train_on == "other_categories" else None
        datamodule, parts = self._data(job)
        seed_everything(job.seed, workers=True, verbose=False)  # after the data, which several runs share
        model = make_model(_model_spec(job, training))
        weights = weights_hash(model)
        recorder = Recorder()
        cost = self._fit_and_test(job, model, datamodule, recorder)
        first = parts[job.test_categories[0]].test_data
        p50, p95 = self._latency(model, first[0].image)
        if training is not None:
            cost |= {"steps": cost["steps"] + training.steps, "training_seconds": training.seconds}
        row = Row.of(
            job,
            category="",
            **cost,
            latency_p50_ms=p50,
            latency_p95_ms=p95,
            seconds=time.perf_counter() - start,
            backbone=_argument(model, job, "backbone"),
            weights=weights,
            image_size=_image_size(first.augmentations),
            augmentation=_argument(model, job, "augmentation"),
            train_on=TRAIN_ON[job.train_on],
            device=_device(model),
            threads=torch.get_num_threads(),
            **package_versions(),
        )
        outcome = Outcome([])
        for category, part in parts.items():
            _add_category(outcome, row, category, part, model, recorder, save_examples)
        return outcome

    def _data(self, job: Job) -> tuple[AnomalibDataModule, dict[str, FewShot]]:
        """Return the datamodule of a run, and the few-shot datamodule of each category that is tested."""
        sources: list[Any] = self._sources.get([job.source(category) for category in job.test_categories])
        k_shot = job.k_shot if isinstance(job.k_shot, int) else None  # all
        if job.train_on == "all_categories":
            several = MultiCategory(sources, k_shot=k_shot, seed=job.seed)
            self._sources.set_up(several)
            return several, several.parts
        one = FewShot(sources[0], k_shot=k_shot, seed=job.seed)
        self._sources.set_up(one)
        return one, {job.category: one}

    def _fit_and_test(
        self,
        job: Job,
        model: AnomalibModule,
        datamodule: AnomalibDataModule,
        recorder: Recorder,
    ) -> dict[str, Any]:
        """Fit and test a model, and return columns of the cost."""
        with TemporaryDirectory() as folder, PeakMemory() as memory:
            engine = self._engine(job, folder, recorder)
            fit_seconds = engine.timed_fit(model, datamodule)
            steps = engine.num_steps(model)
            checkpoint_mib = sum(path.stat().st_size for path in Path(folder).rglob("*.ckpt")) / MIB
            start = time.perf_counter()
            engine.test(model, datamodule=datamodule, verbose=False)
            test_seconds = time.perf_counter() - start
        model.to(engine.trainer.strategy.root_device)  # Lightning has moved it off a GPU
        return {
            "fit_seconds": fit_seconds,
            "test_seconds": test_seconds,
            "steps": steps,
            "checkpoint_mib": checkpoint_mib,
            "peak_memory_mib": memory.host_mib,
            "gpu_memory_mib": memory.gpu_mib,
        }

    def _latency(self, model: AnomalibModule, image: torch.Tensor) -> tuple[float, float]:
        """Return the median and the 95th percentile of the milliseconds of an image, shape ``(3, H, W)``."""
        runs = self.settings.latency_runs
        if not runs:
            return np.nan, np.nan
        milliseconds = latencies({"": (model, image[None].to(model.device))}, runs)[""]
        return float(np.median(milliseconds)), float(np.percentile(milliseconds, 95))

    def _train_on_others(self, job: Job) -> Training:
        """Return the training on other categories that runs of every k and support share."""

        def train(checkpoint: Path) -> tuple[float, int]:
            seed = job.model["init_args"].get("seed", 0)
            seed_everything(seed, workers=True, verbose=False)
            sources = [instantiate(job.source(category), AnomalibDataModule) for category in job.categories]
            for source in sources:
                source.num_workers = 0
            datamodule = MultiCategory(sources, target=job.category, k_shot=1, seed=seed + TRAINING_SEED)
            model = make_model(job.model)
            engine = self._engine(job, checkpoint.parent.parent)
            seconds = engine.timed_fit(model, datamodule)
            engine.trainer.save_checkpoint(checkpoint)
            return seconds, engine.num_steps(model)

        return self.settings.trainings.get(job.training_key, train)

    def _engine(self, job: Job, folder: str | Path, *callbacks: Callback) -> TimedEngine:
        arguments = {name: value for name, value in job.trainer.items() if name != "callbacks"}
        own = [instantiate(read_spec(spec), Callback) for spec in job.trainer.get("callbacks", [])]
        return TimedEngine(
            folder,
            **{"accelerator": self.settings.accelerator} | arguments,
            callbacks=[*callbacks, *own],
        )


def _add_category(
    outcome: Outcome,
    row: Row,
    category: str,
    part: FewShot,
    model: AnomalibModule,
    recorder: Recorder,
    save_examples: bool,
) -> None:
    """Add a category to an outcome: its row, support, scores and examples."""
    predictions = recorder.predictions(set(part.test_data.samples.image_path))
    threshold = _threshold(model)
    figures: dict[str, Any] = {**accuracy(predictions, threshold)}
    if part.manifest is None:
        msg = "The datamodule must be set up before its support is known."
        raise RuntimeError(msg)
    outcome.rows.append(
        replace(
            row,
            category=category,
            **figures,
            threshold=_threshold_source(threshold, part),
            guaranteed_fpr=_guaranteed_fpr(model),
            support=part.manifest.digest,
            test_normal=int((~predictions.labels).sum()),
            test_anomalous=int(predictions.labels.sum()),
        ),
    )
    outcome.manifests.append(part.manifest)
    outcome.findings += part.findings
    labels, scores = predictions.labels.tolist(), predictions.scores.tolist()
    outcome.scores |= {path: list(values) for path, *values in zip(predictions.paths, labels, scores, strict=True)}
    if save_examples:
        examples = make_examples(part.test_data, predictions) | draw_features(model, part)
        outcome.examples |= {(category, name): picture for name, picture in examples.items()}


def _model_spec(job: Job, training: Training | None) -> Spec:
    """Return the model of a run: one trained on others takes their network, and is trained no more."""
    if training is None:
        return job.model
    arguments = {name: value for name, value in job.model["init_args"].items() if name != "max_epochs"}
    return with_arguments({**job.model, "init_args": arguments}, {"network": str(training.checkpoint)})


def _argument(model: AnomalibModule, job: Job, name: str) -> str:
    """Return an argument of a model as text, empty if it takes none of the name."""
    parameter = inspect.signature(type(model)).parameters.get(name)
    return "" if parameter is None else str(job.model["init_args"].get(name, parameter.default))


def _image_size(augmentations: object) -> str:
    return "x".join(map(str, augmentations.size)) if isinstance(augmentations, Resize) else ""


def _threshold(model: AnomalibModule) -> float:
    threshold = getattr(model.post_processor, "image_threshold", None)
    return float("nan") if threshold is None else float(threshold)


def _guaranteed_fpr(model: AnomalibModule) -> float:
    rate = getattr(model.post_processor, "guaranteed_fpr", None)
    return float("nan") if rate is None else rate


def _threshold_source(threshold: float, datamodule: FewShot) -> str:
    """Return which images the threshold was fitted to."""
    if np.isnan(threshold):
        return "none"
    if not hasattr(datamodule, "val_data"):
        return "normal images"
    shared = set(datamodule.val_data.samples.image_path) & set(datamodule.test_data.samples.image_path)
    return "test images" if shared else "validation images"


def _device(model: AnomalibModule) -> str:
    return torch.cuda.get_device_name(model.device) if model.device.type == "cuda" else str(model.device)
