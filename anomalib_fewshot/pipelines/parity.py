# Copyright (C) 2026 anomalib-fewshot contributors
# SPDX-License-Identifier: Apache-2.0

"""Parity of runtimes and precisions with torch on the same images."""

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
from .plan.spec import check_spec, read_spec
from .run.resources import MIB, measure_interleaved, onnx_session, suppress_output

REFERENCE = "torch fp32"
console = Console()

Outputs = dict[str, np.ndarray]
Infer = Callable[[torch.Tensor], Outputs]  # input: RGB image in [0, 1], shape (1, 3, H, W)


@dataclass(frozen=True)
class FittedModel:
    """A fitted model, its datamodule, the folder for exports, and the number of threads of each runtime."""

    model: AnomalibModule
    datamodule: FewShot
    folder: Path
    threads: int | None

    @cached_property
    def onnx(self) -> Path:
        """Path of the ONNX export, which takes about a minute."""
        return self.model.to_onnx(self.folder)


def _torch(fitted: FittedModel, dtype: torch.dtype | None = None, *, compiled: bool = False) -> tuple[Infer, Path]:
    model = fitted.model.eval()
    device = model.device
    forward = torch.compile(model, dynamic=True) if compiled else model

    @torch.no_grad()
    def infer(image: torch.Tensor) -> Outputs:
        with torch.autocast(device.type, dtype, enabled=dtype is not None):
            outputs = forward(image.to(device))._asdict()
        return {name: value.float().cpu().numpy() for name, value in outputs.items() if value is not None}

    return infer, model.to_torch(fitted.folder)


def _onnx(fitted: FittedModel) -> tuple[Infer, Path]:
    session = onnx_session(fitted.onnx, fitted.threads)
    names = [output.name for output in session.get_outputs()]
    return lambda image: dict(zip(names, session.run(names, {"input": image.numpy()}), strict=True)), fitted.onnx


def _openvino(
    fitted: FittedModel,
    compression: CompressionType | None = None,
    *,
    accurate: bool = True,
) -> tuple[Infer, Path]:
    import openvino

    if compression in {CompressionType.INT8, CompressionType.INT8_PTQ}:
        import nncf  # noqa: F401  fail early if it is not installed

    model = openvino.convert_model(fitted.onnx)  # `to_openvino` would export to ONNX again
    if compression in {CompressionType.INT8, CompressionType.INT8_PTQ}:
        model = compress_openvino(fitted.model, model, compression, fitted.datamodule)
    path = fitted.folder / str(compression) / "model.xml"
    openvino.save_model(model, path, compress_to_fp16=compression == CompressionType.FP16)
    options: dict[str, Any] = OPENVINO_OPTIONS if accurate else {}
    if fitted.threads:
        options = options | {"INFERENCE_NUM_THREADS": fitted.threads}
    compiled = openvino.Core().compile_model(path, "CPU", options)
    names = [output.any_name for output in compiled.outputs]

    def infer(image: torch.Tensor) -> Outputs:
        values = compiled(image.numpy())
        return {name: values[name].copy() for name in names}

    return infer, path


RUNTIMES: dict[str, Callable[[FittedModel], tuple[Infer, Path]]] = {
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
    """Compare the outputs of runtimes and precisions on the test images, read from file at their original size.

    Each method is fitted once. If a runtime is not installed or cannot run the model, its row contains the reason.
    ONNX Runtime and OpenVINO run on the CPU. OpenVINO uses :data:`OPENVINO_OPTIONS`, except in the row "no options".
    ``int8 weights`` and ``int8`` are anomalib's ``int8`` and ``int8_ptq``. The support set is the calibration data of
    ``int8``.

    Args:
        methods (dict): Models by their name in the table: ``class_path`` and ``init_args``, or the path of a YAML file
            with them.
        data (dict): Datamodule from which the support set is drawn: ``class_path`` and ``init_args``.
        k_shot (int): Size of the support set. Defaults to ``4``.
        seed (int): Seed of the support set. Defaults to ``0``.
        rounds (int): Number of forward passes per runtime for the latency. Defaults to ``50``.
        threads (int | None): CPU threads of each runtime. Defaults to ``None``: the default of the runtime.
        accelerator (str): Accelerator of torch. Defaults to ``"auto"``.

    Returns:
        pd.DataFrame: One row per method and runtime, compared with torch in single precision: the largest absolute
        difference of a score and of a map pixel; the number of images and of changed verdicts; the difference of the
        image AUROC; the median latency per image in milliseconds; the size of the exported files in MiB; and a note
        if the runtime failed.

    Raises:
        FileNotFoundError: If the YAML file of a method does not exist.
        ValueError: If a method is not an anomalib model, if ``data`` is not a datamodule, or if ``rounds`` is below 1.
    """
    check_at_least(1, rounds=rounds)
    specs = {name: read_spec(spec) for name, spec in methods.items()}
    for spec in specs.values():
        check_spec(spec, AnomalibModule)
    check_spec(read_spec(data), AnomalibDataModule)
    arguments = (read_spec(data), k_shot, seed, threads, accelerator)
    tables = {}
    for name, spec in specs.items():
        model, datamodule, _ = fit_few_shot(spec, *arguments)
        with TemporaryDirectory() as folder:
            tables[name] = _table(FittedModel(model, datamodule, Path(folder), threads), name, rounds)
    return pd.concat(tables, names=["method", "runtime"])


def _table(fitted: FittedModel, title: str, rounds: int) -> pd.DataFrame:
    """Return one row per runtime for a model."""
    samples = fitted.datamodule.test_data.samples
    outputs: dict[str, list[Outputs]] = {}
    calls: dict[str, Callable[[], object]] = {}
    rows: dict[str, dict[str, Any]] = {}
    first = next(_read_images(samples.image_path))
    for name, start in track(RUNTIMES.items(), title, console=console):
        try:
            with suppress_output():
                infer, path = start(fitted)
                outputs[name] = [infer(image) for image in _read_images(samples.image_path)]
        except (ImportError, RuntimeError) as error:
            rows[name] = {"note": _error_summary(error)}
            continue
        calls[name] = partial(infer, first)
        rows[name] = _compare(fitted.model, outputs[name], outputs[REFERENCE], samples.label_index.to_numpy())
        rows[name] |= {"size_mib": sum(file.stat().st_size for file in path.parent.glob(f"{path.stem}.*")) / MIB}
    for name, milliseconds in measure_interleaved(calls, rounds).items():
        rows[name] |= {"latency_p50_ms": np.median(milliseconds), "note": ""}
    return pd.DataFrame.from_dict(rows, orient="index")[COLUMNS]


COLUMNS = [
    "score_difference",
    "map_difference",
    "verdict_flips",
    "images",
    "auroc_difference",
    "latency_p50_ms",
    "size_mib",
    "note",
]


def _read_images(paths: pd.Series) -> Iterator[torch.Tensor]:
    """Yield images at their original size, shape ``(1, 3, H, W)``."""
    for path in paths:
        image: Any = read_image(path, as_tensor=True)
        yield image[None].contiguous()


def _compare(
    model: AnomalibModule,
    outputs: list[Outputs],
    reference: list[Outputs],
    labels: np.ndarray,
) -> dict[str, Any]:
    """Return the differences between the outputs of a runtime and of the reference."""
    scores, reference_scores = _scores(outputs), _scores(reference)
    map_differences = []
    for one, two in zip(outputs, reference, strict=True):
        if "anomaly_map" in two:
            map_differences.append(np.abs(one["anomaly_map"] - two["anomaly_map"]).max())
    verdicts = zip(_verdicts(model, outputs), _verdicts(model, reference), strict=True)
    return {
        "score_difference": np.abs(scores - reference_scores).max(),
        "map_difference": max(map_differences, default=float("nan")),
        "verdict_flips": sum(one != two for one, two in verdicts),
        "images": len(outputs),
        "auroc_difference": _auroc(scores, labels) - _auroc(reference_scores, labels),
    }


def _scores(outputs: list[Outputs]) -> np.ndarray:
    """Return the score of each image, shape ``(N,)``."""
    return np.array([output["pred_score"].item() for output in outputs])


def _verdicts(model: AnomalibModule, outputs: list[Outputs]) -> list[tuple[str, bool]]:
    """Return the verdict and the predicted label of each image. The verdict is empty if the model has none."""
    labels = [bool(output["pred_label"].item()) for output in outputs]
    to_verdicts = getattr(model.post_processor, "verdicts", None)
    verdicts = [""] * len(labels)
    if to_verdicts is not None:
        verdicts = to_verdicts(torch.tensor([output["pred_score"].item() for output in outputs]))
    return list(zip(verdicts, labels, strict=True))


def _auroc(scores: np.ndarray, labels: np.ndarray) -> float:
    return float(binary_auroc(torch.tensor(scores), torch.tensor(labels)))


def _error_summary(error: Exception) -> str:
    if isinstance(error, ModuleNotFoundError) and error.name:
        return f"{error.name} is not installed"
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
