# Copyright (C) 2026 anomalib-fewshot contributors
# SPDX-License-Identifier: Apache-2.0

"""Cost of methods: time and memory of fits in separate processes, and interleaved latency measurements."""

from collections.abc import Callable
from contextlib import closing
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TypeVar

import numpy as np
import pandas as pd
import timm
import torch
from anomalib.data import AnomalibDataModule
from anomalib.models import AnomalibModule
from jsonargparse.typing import Path_fr
from rich.console import Console
from rich.progress import track

from anomalib_fewshot.data import FewShot
from anomalib_fewshot.models.components.checks import check_at_least

from .plan.spec import Spec, check_spec, instantiate, read_spec
from .run.resources import (
    PeakMemory,
    TimedEngine,
    latencies,
    make_model,
    measure_interleaved,
    onnx_session,
    suppress_output,
)
from .run.subprocess import Subprocess

BACKBONE_ONLY = "backbone only"
console = Console()
Result = TypeVar("Result")


def measure_cost(
    methods: dict[str, Path_fr | dict[str, Any]],
    data: dict[str, Any],
    k_shot: int | list[int] = 4,
    seed: int = 0,
    backbone: str = "tf_efficientnet_lite0",
    backbone_size: int | None = None,
    repeats: int = 3,
    rounds: int = 50,
    threads: int | None = None,
    accelerator: str = "auto",
    onnx: bool = False,
) -> pd.DataFrame:
    """Measure the cost of methods: time and memory of a fit, and latency per image.

    Each fit runs in a new process, without validation. Then all methods are fitted in one process, and their latencies
    are measured in alternation, so that background load affects all methods equally. Compare the ratios, not the
    absolute times.

    Args:
        methods (dict): Models by their name in the table: ``class_path`` and ``init_args``, or the path of a YAML file
            with them.
        data (dict): Datamodule from which the support set is drawn: ``class_path`` and ``init_args``.
        k_shot (int | list[int]): Size of the support set, or several sizes. Defaults to ``4``.
        seed (int): Seed of the support set. Defaults to ``0``.
        backbone (str): timm model whose forward pass is the reference for the latencies. Defaults to
            ``"tf_efficientnet_lite0"``.
        backbone_size (int | None): Height and width of the input image of ``backbone``. Defaults to ``None``: the
            input size of the pretrained model.
        repeats (int): Number of fits per method. Defaults to ``3``.
        rounds (int): Number of forward passes per method. Defaults to ``50``.
        threads (int | None): CPU threads of torch. Defaults to ``None``: torch's default.
        accelerator (str): Accelerator of Lightning's trainer. Defaults to ``"auto"``.
        onnx (bool): Also measure the exported models in ONNX Runtime, on the CPU. Defaults to ``False``.

    Returns:
        pd.DataFrame: One row per method and k: median fit time in seconds, median memory growth in MiB, median and
        95th percentile of the latency in milliseconds, and ratio of the median latency to the latency of the backbone.

    Raises:
        FileNotFoundError: If the YAML file of a method does not exist.
        ValueError: If a method is not an anomalib model, if ``data`` is not a datamodule, or if ``k_shot``,
            ``repeats``, ``rounds`` or ``backbone_size`` is below 1.
    """
    shots = k_shot if isinstance(k_shot, list) else [k_shot]
    check_at_least(1, repeats=repeats, rounds=rounds, k_shot=min(shots, default=0), backbone_size=backbone_size)
    specs = {name: read_spec(spec) for name, spec in methods.items()}
    for spec in specs.values():
        check_spec(spec, AnomalibModule)
    check_spec(read_spec(data), AnomalibDataModule)
    cases = {}
    for name, spec in specs.items():
        for count in shots:
            label = name if len(shots) == 1 else f"{name}, k = {count}"
            cases[label] = spec, read_spec(data), count, seed, threads, accelerator
    order = list(cases) * repeats
    fits = [_in_subprocess(_fit_cost, *cases[name]) for name in track(order, "Fitting", console=console)]
    medians = pd.DataFrame(fits, index=order).groupby(level=0).median()
    by_runtime = _in_subprocess(_latencies, cases, backbone, backbone_size, rounds, threads, onnx)
    table = medians.reindex([*cases, BACKBONE_ONLY])
    for prefix, milliseconds in by_runtime.items():
        latencies = pd.DataFrame(milliseconds)
        table[f"{prefix}latency_p50_ms"] = latencies.median()
        table[f"{prefix}latency_p95_ms"] = latencies.quantile(0.95)
        table[f"{prefix}times_backbone"] = latencies.median() / latencies[BACKBONE_ONLY].median()
    return table.rename_axis("method")


def _in_subprocess(function: Callable[..., Result], *arguments: Any) -> Result:  # noqa: ANN401
    """Call a function in a new process."""
    with closing(Subprocess()) as process:
        return process.submit(function, *arguments).result()


def fit_few_shot(
    spec: Spec,
    data: Spec,
    k_shot: int,
    seed: int,
    threads: int | None,
    accelerator: str,
) -> tuple[AnomalibModule, FewShot, dict[str, float]]:
    """Return a fitted model, its datamodule, and the cost of the fit."""
    if threads is not None:
        torch.set_num_threads(threads)
    source = instantiate(data, AnomalibDataModule)
    source.num_workers = 0
    datamodule = FewShot(source, k_shot, seed)
    model = make_model(spec)
    with suppress_output(), TemporaryDirectory() as folder, PeakMemory() as memory:
        engine = TimedEngine(folder, accelerator, limit_val_batches=0)
        seconds = engine.timed_fit(model, datamodule)
    model.to(engine.trainer.strategy.root_device)  # Lightning moves it to the CPU after the fit
    cost = {"fit_seconds": seconds, "memory_mib": memory.host_mib, "gpu_memory_mib": memory.gpu_mib}
    return model, datamodule, cost


def _fit_cost(*arguments: Any) -> dict[str, float]:  # noqa: ANN401
    return fit_few_shot(*arguments)[2]


def _latencies(
    cases: dict[str, tuple],
    backbone: str,
    backbone_size: int | None,
    rounds: int,
    threads: int | None,
    onnx: bool,
) -> dict[str, dict[str, np.ndarray]]:
    """Return the latencies of each method and of the backbone in milliseconds, in torch and in ONNX Runtime."""
    fits = {name: fit_few_shot(*case) for name, case in cases.items()}
    models: dict[str, tuple[torch.nn.Module, torch.Tensor]] = {
        name: (model, _first_image(datamodule).to(model.device)) for name, (model, datamodule, _) in fits.items()
    }
    _, image = next(iter(models.values()))
    bare: Any = timm.create_model(backbone).eval().to(image.device)
    channels, *size = bare.pretrained_cfg["input_size"]
    if backbone_size is not None:
        size = [backbone_size, backbone_size]
    models[BACKBONE_ONLY] = bare, torch.rand(1, channels, *size, device=image.device)
    by_runtime = {"": latencies(models, rounds)}
    if onnx:
        with suppress_output(), TemporaryDirectory() as folder:
            calls = {}
            for number, (name, (model, image)) in enumerate(models.items()):
                calls[name] = _onnx_forward(model, image, Path(folder) / str(number), threads)
        by_runtime["onnx_"] = measure_interleaved(calls, rounds)
    return by_runtime


def _onnx_forward(
    model: torch.nn.Module,
    image: torch.Tensor,
    folder: Path,
    threads: int | None,
) -> Callable[[], object]:
    """Export a model, and return a function that runs it in ONNX Runtime."""
    if isinstance(model, AnomalibModule):
        path = model.to_onnx(folder)
    else:
        folder.mkdir()
        path = folder / "model.onnx"
        torch.onnx.export(model, (image,), path, input_names=["input"], dynamo=True, opset_version=18)
    session = onnx_session(path, threads)
    return partial(session.run, None, {"input": image.cpu().numpy()})


def _first_image(datamodule: FewShot) -> torch.Tensor:
    """Return the first test image as a batch, shape ``(1, 3, H, W)``."""
    image: Any = datamodule.test_data[0].image
    return image[None]
