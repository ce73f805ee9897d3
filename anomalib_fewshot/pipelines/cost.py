# Copyright (C) 2026 anomalib-fewshot contributors
# SPDX-License-Identifier: Apache-2.0

"""What methods cost beside each other: fitting in a process of its own, and latencies taken in turns."""

import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pandas as pd
import timm
import torch
from anomalib.data import AnomalibDataModule
from anomalib.engine import Engine
from anomalib.models import AnomalibModule
from jsonargparse.typing import Path_fr
from rich.console import Console
from rich.progress import track
from rich.table import Table

from anomalib_fewshot.data import FewShot

from .command import Command
from .measures import WARM_UP, PeakMemory
from .runners import end_with_parent
from .specs import Spec, check, instantiate, read_spec
from .worker import silence

BARE = "the backbone alone"
console = Console()


def measure_cost(
    methods: dict[str, Path_fr | dict[str, Any]],
    data: dict[str, Any],
    k_shot: int = 4,
    seed: int = 0,
    backbone: str = "tf_efficientnet_lite0",
    repeats: int = 3,
    rounds: int = 50,
    threads: int | None = None,
    accelerator: str = "auto",
) -> pd.DataFrame:
    """Measure what methods cost: seconds and memory of fitting, and the latency of an image.

    Each method is fitted several times, in turns, each time in a new process: from the start of the training to the
    model that scores, without a validation. Then all are fitted in one process and score an image in turns, a method
    a time, so that what else the machine does falls on all alike. Compare the ratios.

    Args:
        methods (dict): Models by their name in the table: ``class_path`` and ``init_args``, or a YAML file of them.
        data (dict): Datamodule that the support is chosen from: ``class_path`` and ``init_args``.
        k_shot (int): Number of normal images. Defaults to ``4``.
        seed (int): Seed of the support. Defaults to ``0``.
        backbone (str): timm model whose whole forward pass the latencies are compared with. Defaults to
            ``"tf_efficientnet_lite0"``.
        repeats (int): Times that each method is fitted. Defaults to ``3``.
        rounds (int): Times that each method scores. Defaults to ``50``.
        threads (int | None): Threads of torch on the CPU. Defaults to ``None``: as torch chooses.
        accelerator (str): Accelerator of Lightning's trainer. Defaults to ``"auto"``.

    Returns:
        pd.DataFrame: A row for each method: medians of the seconds of a fit and of the MiB by which the process grows
        in it, median and 95th percentile of the milliseconds of an image, and the ratio to the backbone's median.

    Raises:
        FileNotFoundError: If the file of a method is not there.
        ValueError: If a method or the data are none, or if ``repeats`` or ``rounds`` is below 1.
    """
    for name, value in (("repeats", repeats), ("rounds", rounds)):
        if value < 1:
            msg = f"`{name}` must be at least 1, got {value}."
            raise ValueError(msg)
    specs = {name: read_spec(spec) for name, spec in methods.items()}
    for spec in specs.values():
        check(spec, AnomalibModule)
    check(read_spec(data), AnomalibDataModule)
    arguments = (read_spec(data), k_shot, seed, threads, accelerator)
    turns = [name for _ in range(repeats) for name in specs]
    fits = [_elsewhere(_fit_cost, specs[name], *arguments) for name in track(turns, "Fitting", console=console)]
    medians = pd.DataFrame(fits, index=turns).groupby(level=0).median()
    latencies = pd.DataFrame(_elsewhere(_latencies, specs, backbone, rounds, *arguments))
    table = medians.reindex(latencies.columns)
    table["latency_p50_ms"], table["latency_p95_ms"] = latencies.median(), latencies.quantile(0.95)
    table["times_backbone"] = table["latency_p50_ms"] / table.loc[BARE, "latency_p50_ms"]
    return table.rename_axis("method")


def _elsewhere(function: Any, *arguments: Any) -> Any:  # noqa: ANN401
    """Call a function in a new process."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn"), initializer=end_with_parent) as pool:
        return pool.submit(function, *arguments).result()


def _fit(
    spec: Spec,
    data: Spec,
    k_shot: int,
    seed: int,
    threads: int | None,
    accelerator: str,
) -> tuple[AnomalibModule, torch.Tensor, dict[str, float]]:
    """Return a fitted model, a test image of the size that it takes, and what the fit cost."""
    if threads is not None:
        torch.set_num_threads(threads)
    source = instantiate(data, AnomalibDataModule)
    source.num_workers = 0
    datamodule = FewShot(source, k_shot, seed)
    model = instantiate(spec, AnomalibModule)
    model.evaluator = model.visualizer = None
    with silence(), TemporaryDirectory() as folder:
        quiet: dict[str, Any] = dict.fromkeys(("logger", "enable_progress_bar", "enable_model_summary"), False)
        engine = Engine(default_root_dir=folder, accelerator=accelerator, devices=1, limit_val_batches=0, **quiet)
        with PeakMemory() as memory:
            start = time.perf_counter()
            engine.fit(model, datamodule=datamodule)
            seconds = time.perf_counter() - start
    model.to(engine.trainer.strategy.root_device)  # Lightning has moved it off a GPU
    cost = {"fit_seconds": seconds, "memory_mib": memory.host_mib, "gpu_memory_mib": memory.gpu_mib}
    return model.eval(), datamodule.test_data[0].image, cost


def _fit_cost(*arguments: Any) -> dict[str, float]:  # noqa: ANN401
    return _fit(*arguments)[2]


@torch.no_grad()
def _latencies(specs: dict[str, Spec], backbone: str, rounds: int, *arguments: Any) -> dict[str, list[float]]:  # noqa: ANN401
    """Return the milliseconds of an image of each method and of the backbone alone."""
    fitted = {name: _fit(spec, *arguments)[:2] for name, spec in specs.items()}
    models: dict[str, tuple[torch.nn.Module, torch.Tensor]] = {
        name: (model, image[None].to(model.device)) for name, (model, image) in fitted.items()
    }
    _, image = next(iter(models.values()))
    models[BARE] = timm.create_model(backbone).eval().to(image.device), image
    seconds: dict[str, list[float]] = {name: [] for name in models}
    for _ in range(WARM_UP + rounds):
        for name, (model, batch) in models.items():
            start = time.perf_counter()
            model(batch)
            if batch.is_cuda:
                torch.cuda.synchronize()
            seconds[name].append(1000 * (time.perf_counter() - start))
    return {name: np.array(values[WARM_UP:]).tolist() for name, values in seconds.items()}


class FewShotCost(Command):
    """Measure what methods cost beside each other: seconds and memory of fitting, latency against the backbone's."""

    name = "fewshot_cost"
    function = staticmethod(measure_cost)

    def show(self, result: pd.DataFrame) -> None:
        """Print the table."""
        table = result.dropna(axis="columns", how="all")  # without a GPU there is no memory of one
        shown = Table("method", *(name.replace("_", " ") for name in table))
        for method, values in table.iterrows():
            shown.add_row(str(method), *("" if pd.isna(value) else f"{value:.2f}" for value in values))
        console.print(shown)
