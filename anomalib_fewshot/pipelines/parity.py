# Copyright (C) 2026 anomalib-fewshot contributors
# SPDX-License-Identifier: Apache-2.0

"""What runtimes and precisions say of the same files, beside what torch says."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pandas as pd
import torch
from anomalib.data import AnomalibDataModule
from anomalib.data.utils import read_image
from anomalib.deploy import CompressionType
from anomalib.models import AnomalibModule
from jsonargparse.typing import Path_fr
from rich.console import Console
from rich.progress import track
from torchmetrics.functional.classification import binary_auroc

from anomalib_fewshot._host import compress_openvino
from anomalib_fewshot.data import FewShot
from anomalib_fewshot.models.components.checks import check_at_least
from anomalib_fewshot.models.components.export import OPENVINO_OPTIONS

from .cost import fit_few_shot
from .plan.spec import check, read_spec
from .run.resources import MIB, onnx_session, silence, times_in_turns

REFERENCE = "torch fp32"
console = Console()

Outputs = dict[str, np.ndarray]
Infer = Callable[[torch.Tensor], Outputs]  # of a picture, shape (1, 3, H, W), RGB from 0 to 1


@dataclass(frozen=True)
class Fitted:
    """A fitted model, its data, the folder of its exports, and the threads of a runtime."""

    model: AnomalibModule
    datamodule: FewShot
    folder: Path
    threads: int | None

    @cached_property
    def onnx(self) -> Path:
        """The model as ONNX, which takes a minute to make."""
        return self.model.to_onnx(self.folder)


def _torch(fitted: Fitted, dtype: torch.dtype | None = None, *, compiled: bool = False) -> tuple[Infer, Path]:
    model = fitted.model.eval()
    device = model.device
    forward = torch.compile(model, dynamic=True) if compiled else model

    @torch.no_grad()
    def infer(picture: torch.Tensor) -> Outputs:
        with torch.autocast(device.type, dtype, enabled=dtype is not None):
            outputs = forward(picture.to(device))._asdict()
        return {name: value.float().cpu().numpy() for name, value in outputs.items() if value is not None}

    return infer, model.to_torch(fitted.folder)


def _onnx(fitted: Fitted) -> tuple[Infer, Path]:
    session = onnx_session(fitted.onnx, fitted.threads)
    names = [output.name for output in session.get_outputs()]
    return lambda picture: dict(zip(names, session.run(names, {"input": picture.numpy()}), strict=True)), fitted.onnx


def _openvino(
    fitted: Fitted,
    compression: CompressionType | None = None,
    *,
    accurate: bool = True,
) -> tuple[Infer, Path]:
    import openvino

    if compression in {CompressionType.INT8, CompressionType.INT8_PTQ}:
        import nncf  # noqa: F401  so that its name is in the error

    model = openvino.convert_model(fitted.onnx)  # as `to_openvino` does, which would export once more
    if compression in {CompressionType.INT8, CompressionType.INT8_PTQ}:
        model = compress_openvino(fitted.model, model, compression, fitted.datamodule)
    path = fitted.folder / str(compression) / "model.xml"
    openvino.save_model(model, path, compress_to_fp16=compression == CompressionType.FP16)
    options: dict[str, Any] = OPENVINO_OPTIONS if accurate else {}
    if fitted.threads:
        options = options | {"INFERENCE_NUM_THREADS": fitted.threads}
    compiled = openvino.Core().compile_model(path, "CPU", options)
    names = [output.any_name for output in compiled.outputs]

    def infer(picture: torch.Tensor) -> Outputs:
        values = compiled(picture.numpy())
        return {name: values[name].copy() for name in names}

    return infer, path


RUNTIMES: dict[str, Callable[[Fitted], tuple[Infer, Path]]] = {
    REFERENCE: _torch,
    "torch.compile fp32": partial(_torch, compiled=True),
    "torch fp16": partial(_torch, dtype=torch.float16),
    "torch bf16": partial(_torch, dtype=torch.bfloat16),
    "ONNX Runtime fp32": _onnx,
    "OpenVINO fp32": _openvino,
    "OpenVINO fp32, no options": partial(_openvino, accurate=False),
    "OpenVINO fp16": partial(_openvino, compression=CompressionType.FP16),
    "OpenVINO int8 weights": partial(_openvino, compression=CompressionType.INT8),
    "OpenVINO int8": partial(_openvino, compression=CompressionType.INT8_PTQ),
}


def measure_parity(
    methods: dict[str, Path_fr | dict[str, Any]],
    data: dict[str, Any],
    k_shot: int = 4,
    seed: int = 0,
    rounds: int = 50,
    threads: int | None = None,
    accelerator: str = "auto",
) -> pd.DataFrame:
    """Compare what runtimes and precisions say of the test pictures, each read from its file in its own size.

    Each method is fitted once. A runtime that is not installed, or that cannot run the model, has a row that says so.
    ONNX Runtime and OpenVINO run on the CPU, the latter with :data:`OPENVINO_OPTIONS` where the row does not say
    otherwise. ``int8 weights`` and ``int8`` are anomalib's ``int8`` and ``int8_ptq``, the latter calibrated on the
    support.

    Args:
        methods (dict): Models by their name in the table: ``class_path`` and ``init_args``, or a YAML file of them.
        data (dict): Datamodule that the support is chosen from: ``class_path`` and ``init_args``.
        k_shot (int): Number of normal images. Defaults to ``4``.
        seed (int): Seed of the support. Defaults to ``0``.
        rounds (int): Times that each runtime scores the first picture, in turns. Defaults to ``50``.
        threads (int | None): Threads of each runtime on the CPU. Defaults to ``None``: as it chooses.
        accelerator (str): Accelerator of torch. Defaults to ``"auto"``.

    Returns:
        pd.DataFrame: A row for each method and runtime: the largest differences of a score and of a map's pixel from
        torch's in single precision, the pictures and how many of them have another verdict, the difference of the
        image AUROC, the median latency of a picture in milliseconds, the size of the exported files in MiB, and why
        there are no figures.

    Raises:
        FileNotFoundError: If the file of a method is not there.
        ValueError: If a method or the data are none, or if ``rounds`` is below 1.
    """
    check_at_least(1, rounds=rounds)
    specs = {name: read_spec(spec) for name, spec in methods.items()}
    for spec in specs.values():
        check(spec, AnomalibModule)
    check(read_spec(data), AnomalibDataModule)
    arguments = (read_spec(data), k_shot, seed, threads, accelerator)
    tables = {}
    for name, spec in specs.items():
        model, datamodule, _ = fit_few_shot(spec, *arguments)
        with TemporaryDirectory() as folder:
            tables[name] = _table(Fitted(model, datamodule, Path(folder), threads), name, rounds)
    return pd.concat(tables, names=["method", "runtime"])


def _table(fitted: Fitted, title: str, rounds: int) -> pd.DataFrame:
    """Return a row for each runtime of one model."""
    samples = fitted.datamodule.test_data.samples
    found: dict[str, list[Outputs]] = {}
    calls: dict[str, Callable[[], object]] = {}
    rows: dict[str, dict[str, Any]] = {}
    first = next(_pictures(samples.image_path))
    for name, start in track(RUNTIMES.items(), title, console=console):
        try:
            with silence():
                infer, path = start(fitted)
                found[name] = [infer(picture) for picture in _pictures(samples.image_path)]
        except (ImportError, RuntimeError) as error:
            rows[name] = {"note": _reason(error)}
            continue
        calls[name] = partial(infer, first)
        rows[name] = _compare(fitted.model, found[name], found[REFERENCE], samples.label_index.to_numpy())
        rows[name] |= {"size_mib": sum(file.stat().st_size for file in path.parent.glob(f"{path.stem}.*")) / MIB}
    for name, milliseconds in times_in_turns(calls, rounds).items():
        rows[name] |= {"latency_p50_ms": np.median(milliseconds), "note": ""}
    return pd.DataFrame.from_dict(rows, orient="index")[COLUMNS]


COLUMNS = [
    "score_difference",
    "map_difference",
    "verdict_flips",
    "pictures",
    "auroc_difference",
    "latency_p50_ms",
    "size_mib",
    "note",
]


def _pictures(paths: pd.Series) -> Iterator[torch.Tensor]:
    """Yield pictures as their files have them, shape ``(1, 3, H, W)``."""
    for path in paths:
        image: Any = read_image(path, as_tensor=True)
        yield image[None].contiguous()


def _compare(model: AnomalibModule, found: list[Outputs], wanted: list[Outputs], labels: np.ndarray) -> dict[str, Any]:
    """Return how the outputs of pictures differ from those of the reference."""
    scores, expected = (np.array([outputs["pred_score"].item() for outputs in part]) for part in (found, wanted))
    maps = [
        np.abs(one["anomaly_map"] - two["anomaly_map"]).max()
        for one, two in zip(found, wanted, strict=True)
        if "anomaly_map" in two
    ]
    flips = [one != two for one, two in zip(_verdicts(model, found), _verdicts(model, wanted), strict=True)]
    return {
        "score_difference": np.abs(scores - expected).max(),
        "map_difference": max(maps, default=float("nan")),
        "verdict_flips": sum(flips),
        "pictures": len(flips),
        "auroc_difference": _auroc(scores, labels) - _auroc(expected, labels),
    }


def _verdicts(model: AnomalibModule, found: list[Outputs]) -> list[tuple[str, bool]]:
    """Return the verdict and the label of each picture."""
    scores = torch.tensor([outputs["pred_score"].item() for outputs in found])
    labels = [bool(outputs["pred_label"].item()) for outputs in found]
    named = getattr(model.post_processor, "verdicts", None)
    return list(zip(named(scores) if named else [""] * len(labels), labels, strict=True))


def _auroc(scores: np.ndarray, labels: np.ndarray) -> float:
    return float(binary_auroc(torch.tensor(scores), torch.tensor(labels)))


def _reason(error: Exception) -> str:
    if isinstance(error, ModuleNotFoundError) and error.name:
        return f"{error.name} is not installed"
    return next(iter(str(error).strip().splitlines()), type(error).__name__)
