# Copyright (C) 2026 anomalib-fewshot contributors
# SPDX-License-Identifier: Apache-2.0

"""Worker that executes the runs of a benchmark, in this process or in one that a runner starts."""

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
from anomalib_fewshot.pipelines.results.outcome import Outcome, failed_outcome
from anomalib_fewshot.pipelines.results.row import Row
from anomalib_fewshot.pipelines.results.store import Training, Trainings

from .environment import package_versions
from .examples import draw_features, make_common_examples, make_examples
from .predictions import Recorder, compute_metrics
from .resources import MIB, PeakMemory, TimedEngine, backbone_hash, latencies, make_model, suppress_output, weights_hash
from .sources import Sources

TRAINING_SEED = 2**16  # seed offset of a training on other categories, so that no run has the same support set


@dataclass(frozen=True)
class Settings:
    """Settings of all runs that do not affect the scores.

    Args:
        accelerator (str): Accelerator of Lightning's trainer. Defaults to ``"auto"``.
        threads (int | None): CPU threads of torch. Defaults to ``None``: torch's default.
        latency_runs (int): Number of forward passes for the latency. Defaults to ``30``.
        cache_gib (float): Maximum size of cached test images in GiB. Defaults to ``2.0``.
        trainings (Trainings): Trainings on other categories. Defaults to the folder ``trainings``.
    """

    accelerator: str = "auto"
    threads: int | None = None
    latency_runs: int = 30
    cache_gib: float = 2.0
    trainings: Trainings = Trainings(Path("trainings"))  # noqa: RUF009  a frozen dataclass


class Worker:
    """Execute runs, and cache the test images between runs.

    Args:
        settings (Settings): Settings of all runs.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        gc.collect()
        gc.freeze()  # speeds up garbage collection: imported modules never need to be scanned again
        self._sources = Sources(int(settings.cache_gib * 2**30))
        if settings.threads is not None:
            torch.set_num_threads(settings.threads)

    def run(self, job: Job, save_examples: bool = False) -> Outcome:
        """Execute a run. An exception becomes a failed outcome.

        Args:
            job (Job): The run.
            save_examples (bool): Save heat maps of the best and worst test images. Defaults to ``False``.
        """
        try:
            with suppress_output(), interruptible():
                return self._run(job, save_examples)
        except Exception as error:  # noqa: BLE001  a failed run must not stop the others
            message = f"{type(error).__name__}: {error}".strip()
            return failed_outcome(job, message, threads=torch.get_num_threads(), **package_versions())

    def _run(self, job: Job, save_examples: bool) -> Outcome:
        start = time.perf_counter()
        training = self._train_on_other_categories(job) if job.train_on == "other_categories" else None
        datamodule, parts = self._data(job)
        seed_everything(job.seed, workers=True, verbose=False)  # after the data setup, which several runs share
        model = make_model(_model_spec(job, training))
        weights, backbone_weights = weights_hash(model), backbone_hash(model)
        recorder = Recorder()
        cost = self._fit_and_test(job, model, datamodule, recorder)
        first = parts[job.test_categories[0]].test_data
        p50, p95 = self._latency(model, first[0].image)  # type: ignore[arg-type]
        if training is not None:
            cost |= {"steps": cost["steps"] + training.steps, "training_seconds": training.seconds}
        row = Row.from_job(
            job,
            category="",
            **cost,
            latency_p50_ms=p50,
            latency_p95_ms=p95,
            seconds=time.perf_counter() - start,
            backbone=_argument(model, job, "backbone"),
            backbone_weights=backbone_weights,
            weights=weights,
            image_size=_image_size(first.augmentations),
            augmentation=_argument(model, job, "augmentation"),
            train_on=job.train_on,
            device=_device(model),
            threads=torch.get_num_threads(),
            **package_versions(),
        )
        outcome = Outcome([])
        for category, part in parts.items():
            _add_category(outcome, row, category, part, model, recorder, save_examples)
        return outcome

    def _data(self, job: Job) -> tuple[AnomalibDataModule, dict[str, FewShot]]:
        """Return the datamodule of a run, and the few-shot datamodule of each tested category."""
        sources: list[Any] = self._sources.get([job.source(category) for category in job.test_categories])
        k_shot = job.k_shot if isinstance(job.k_shot, int) else None  # `None` means all images
        if job.train_on == "all_categories":
            multi_category = MultiCategory(sources, k_shot=k_shot, seed=job.seed)
            self._sources.set_up(multi_category)
            return multi_category, multi_category.parts
        few_shot = FewShot(
            sources[0],
            k_shot=k_shot,
            seed=job.seed,
            unlabeled=job.unlabeled,
            contamination=job.contamination,
            append_unlabeled=job.append_unlabeled,
        )
        self._sources.set_up(few_shot)
        return few_shot, {job.category: few_shot}

    def _fit_and_test(
        self,
        job: Job,
        model: AnomalibModule,
        datamodule: AnomalibDataModule,
        recorder: Recorder,
    ) -> dict[str, Any]:
        """Fit and test a model, and return the cost columns."""
        with TemporaryDirectory() as folder, PeakMemory() as memory:
            engine = self._engine(job, folder, recorder)
            fit_seconds = engine.timed_fit(model, datamodule)
            steps = engine.num_steps(model)
            checkpoint_mib = sum(path.stat().st_size for path in Path(folder).rglob("*.ckpt")) / MIB
            start = time.perf_counter()
            engine.test(model, datamodule=datamodule, verbose=False)
            test_seconds = time.perf_counter() - start
        model.to(engine.trainer.strategy.root_device)  # Lightning moves it to the CPU after the test
        return {
            "fit_seconds": fit_seconds,
            "test_seconds": test_seconds,
            "steps": steps,
            "checkpoint_mib": checkpoint_mib,
            "peak_memory_mib": memory.host_mib,
            "gpu_memory_mib": memory.gpu_mib,
        }

    def _latency(self, model: AnomalibModule, image: torch.Tensor) -> tuple[float, float]:
        """Return the median and 95th percentile of the latency in milliseconds, for an image of shape ``(3, H, W)``."""
        runs = self.settings.latency_runs
        if not runs:
            return np.nan, np.nan
        milliseconds = latencies({"": (model, image[None].to(model.device))}, runs)[""]
        return float(np.median(milliseconds)), float(np.percentile(milliseconds, 95))

    def _train_on_other_categories(self, job: Job) -> Training:
        """Return the training on other categories, which is shared by all k and support sets."""

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
        user_callbacks = [instantiate(read_spec(spec), Callback) for spec in job.trainer.get("callbacks", [])]
        return TimedEngine(
            folder,
            **{"accelerator": self.settings.accelerator} | arguments,
            callbacks=[*callbacks, *user_callbacks],
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
    """Add the row, support manifest, scores and example images of a category to an outcome."""
    predictions = recorder.predictions(set(part.test_data.samples.image_path))
    threshold = _threshold(model)
    metrics: dict[str, Any] = {**compute_metrics(predictions, threshold)}
    if part.manifest is None:
        msg = "The datamodule must be set up before its manifest is available."
        raise RuntimeError(msg)
    outcome.rows.append(
        replace(
            row,
            category=category,
            **metrics,
            threshold=_threshold_source(threshold, part),
            guaranteed_fpr=_guaranteed_fpr(model),
            support=part.manifest.digest,
            test_normal=int((~predictions.labels).sum()),
            test_anomalous=int(predictions.labels.sum()),
        ),
    )
    outcome.manifests.append(part.manifest)
    outcome.issues += part.data_issues
    labels, scores = predictions.labels.tolist(), predictions.scores.tolist()
    for path, label, score in zip(predictions.paths, labels, scores, strict=True):
        outcome.scores[path] = [label, score]
    if save_examples:
        examples = make_examples(part.test_data, predictions) | make_common_examples(part.test_data, predictions)
        examples |= draw_features(model, part)
        outcome.examples |= {(category, name): image for name, image in examples.items()}


def _model_spec(job: Job, training: Training | None) -> Spec:
    """Return the model of a run. With a training on other categories, it loads the network and trains no further."""
    if training is None:
        return job.model
    arguments = {name: value for name, value in job.model["init_args"].items() if name != "max_epochs"}
    return with_arguments({**job.model, "init_args": arguments}, {"network": str(training.checkpoint)})


def _argument(model: AnomalibModule, job: Job, name: str) -> str:
    """Return the value of a model argument as text. Empty if the model has no such argument."""
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
    """Return the kind of images that the threshold was computed from."""
    if np.isnan(threshold):
        return "none"
    if not hasattr(datamodule, "val_data"):
        return "normal images"
    shared = set(datamodule.val_data.samples.image_path) & set(datamodule.test_data.samples.image_path)
    return "test images" if shared else "validation images"


def _device(model: AnomalibModule) -> str:
    return torch.cuda.get_device_name(model.device) if model.device.type == "cuda" else str(model.device)
