# Copyright (C) 2026 anomalib-fewshot contributors
# SPDX-License-Identifier: Apache-2.0

"""The cost of methods side by side: fits in processes of their own, and latencies taken in turns."""

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

from .plan.spec import Spec, check, instantiate, read_spec
from .run.resources import PeakMemory, TimedEngine, latencies, make_model, onnx_session, silence, times_in_turns
from .run.subprocess import Subprocess

BARE = "the backbone alone"
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
    """Measure the cost of methods: seconds and memory of a fit, and the latency of an image.

    Each method is fitted several times, in turns, each time in a new process: from the start of the training to the
    model that scores, without a validation. Then all are fitted in one process and score an image in turns, one method
    after the other, so that other work of the machine falls on all alike. Compare the ratios.

    Args:
        methods (dict): Models by their name in the table: ``class_path`` and ``init_args``, or a YAML file of them.
        data (dict): Datamodule that the support is chosen from: ``class_path`` and ``init_args``.
        k_shot (int | list[int]): Number of normal images, or several. Defaults to ``4``.
        seed (int): Seed of the support. Defaults to ``0``.
        backbone (str): timm model whose whole forward pass the latencies are compared with. Defaults to
            ``"tf_efficientnet_lite0"``.
        backbone_size (int | None): Height and width of the image in that pass. Defaults to ``None``: what the backbone
            was trained on.
        repeats (int): Times that each method is fitted. Defaults to ``3``.
        rounds (int): Times that each method scores. Defaults to ``50``.
        threads (int | None): Threads of torch on the CPU. Defaults to ``None``: as torch chooses.
        accelerator (str): Accelerator of Lightning's trainer. Defaults to ``"auto"``.
        onnx (bool): Measure the exported models in ONNX Runtime, on the CPU, too. Defaults to ``False``.

    Returns:
        pd.DataFrame: A row for each method and k: medians of the seconds of a fit and of the MiB by which the process
        grows in it, median and 95th percentile of the milliseconds of an image, and the ratio to the backbone's median.

    Raises:
        FileNotFoundError: If the file of a method is not there.
        ValueError: If a method or the data are none, or if ``k_shot``, ``repeats``, ``rounds`` or ``backbone_size``
            is below 1.
    """
    shots = k_shot if isinstance(k_shot, list) else [k_shot]
    check_at_least(1, repeats=repeats, rounds=rounds, k_shot=min(shots, default=0), backbone_size=backbone_size)
    specs = {name: read_spec(spec) for name, spec in methods.items()}
    for spec in specs.values():
        check(spec, AnomalibModule)
    check(read_spec(data), AnomalibDataModule)
    cases = {
        name if len(shots) == 1 else f"{name}, k = {count}": (spec, read_spec(data), count, seed, threads, accelerator)
        for name, spec in specs.items()
        for count in shots
    }
    turns = [name for _ in range(repeats) for name in cases]
    fits = [_in_subprocess(_fit_cost, *cases[name]) for name in track(turns, "Fitting", console=console)]
    medians = pd.DataFrame(fits, index=turns).groupby(level=0).median()
    by_runtime = _in_subprocess(_latencies, cases, backbone, backbone_size, rounds, threads, onnx)
    table = medians.reindex([*cases, BARE])
    for prefix, milliseconds in by_runtime.items():
        latencies = pd.DataFrame(milliseconds)
        table[f"{prefix}latency_p50_ms"] = latencies.median()
        table[f"{prefix}latency_p95_ms"] = latencies.quantile(0.95)
        table[f"{prefix}times_backbone"] = latencies.median() / latencies[BARE].median()
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
    """Return a fitted model, the data that it was fitted to, and the cost of the fit."""
    if threads is not None:
        torch.set_num_threads(threads)
    source = instantiate(data, AnomalibDataModule)
    source.num_workers = 0
    datamodule = FewShot(source, k_shot, seed)
    model = make_model(spec)
    with silence(), TemporaryDirectory() as folder, PeakMemory() as memory:
        engine = TimedEngine(folder, accelerator, limit_val_batches=0)
        seconds = engine.timed_fit(model, datamodule)
    model.to(engine.trainer.strategy.root_device)  # Lightning has moved it off a GPU
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
    """Return the milliseconds of an image of each method and of the backbone alone, in torch and in ONNX Runtime."""
    fits = {name: fit_few_shot(*case) for name, case in cases.items()}
    models: dict[str, tuple[torch.nn.Module, torch.Tensor]] = {
        name: (model, _first_image(datamodule).to(model.device)) for name, (model, datamodule, _) in fits.items()
    }
    _, image = next(iter(models.values()))
    bare = timm.create_model(backbone).eval().to(image.device)
    channels, *size = bare.pretrained_cfg["input_size"]
    if backbone_size is not None:
        size = [backbone_size, backbone_size]
    models[BARE] = bare, torch.rand(1, channels, *size, device=image.device)
    found = {"": latencies(models, rounds)}
    if onnx:
        with silence(), TemporaryDirectory() as folder:
            calls = {
                name: _in_onnx(*pair, Path(folder) / str(n), threads) for n, (name, pair) in enumerate(models.items())
            }
        found["onnx_"] = times_in_turns(calls, rounds)
    return found


def _in_onnx(model: torch.nn.Module, image: torch.Tensor, folder: Path, threads: int | None) -> Callable[[], object]:
    """Return a forward pass of an exported model in ONNX Runtime."""
    if isinstance(model, AnomalibModule):
        path = model.to_onnx(folder)
    else:
        folder.mkdir()
        path = folder / "model.onnx"
        torch.onnx.export(model, (image,), path, input_names=["input"], dynamo=True, opset_version=18)
    session = onnx_session(path, threads)
    return partial(session.run, None, {"input": image.cpu().numpy()})


def _first_image(datamodule: FewShot) -> torch.Tensor:
    """Return a batch of the first test image, shape ``(1, 3, H, W)``."""
    image: Any = datamodule.test_data[0].image
    return image[None]
