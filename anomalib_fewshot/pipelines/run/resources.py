# Copyright (C) 2026 anomalib-fewshot contributors
# SPDX-License-Identifier: Apache-2.0

"""Time and memory of fits and forward passes, shared by all pipelines."""

import ctypes
import gc
import hashlib
import io
import logging
import time
import warnings
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout, suppress
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import torch
from anomalib.data import AnomalibDataModule
from anomalib.engine import Engine
from anomalib.models import AnomalibModule
from lightning.pytorch import Callback
from torch import nn

from anomalib_fewshot.models.components.backbone import Backbone
from anomalib_fewshot.models.components.weights import first_weights_hash
from anomalib_fewshot.pipelines.plan.spec import Spec, instantiate

MIB = 2**20
WARM_UP = 5  # forward passes before latencies are measured


def make_model(spec: Spec) -> AnomalibModule:
    """Return a model without evaluator and visualizer. The benchmark computes its metrics from raw scores."""
    model = instantiate(spec, AnomalibModule)
    model.evaluator = model.visualizer = None
    return model


class ValidationClock(Callback):
    """Callback that measures the time of validation, starting at the first batch.

    The time before the first batch belongs to the fit, because some models fit at the start of validation.

    Attributes:
        seconds (float): Total time of all validations.
    """

    def __init__(self) -> None:
        self.seconds = 0.0
        self._start: float | None = None

    def on_validation_batch_start(self, *_args: Any, **_kwargs: Any) -> None:  # noqa: ANN401
        """Start the clock at the first batch."""
        self._start = time.perf_counter() if self._start is None else self._start

    def on_validation_end(self, *_args: Any, **_kwargs: Any) -> None:  # noqa: ANN401
        """Stop the clock."""
        if self._start is not None:
            self.seconds += time.perf_counter() - self._start
        self._start = None


class TimedEngine(Engine):
    """Silent engine on one device that measures the time of a fit.

    Args:
        folder (str | Path): Folder for checkpoints.
        accelerator (str): Accelerator of Lightning's trainer.
        callbacks (Sequence[Callback]): Callbacks. Defaults to ``()``.
        **arguments: Further arguments of the trainer.
    """

    def __init__(
        self,
        folder: str | Path,
        accelerator: str,
        callbacks: Sequence[Callback] = (),
        **arguments: Any,  # noqa: ANN401
    ) -> None:
        self._clock = ValidationClock()
        quiet: dict[str, Any] = dict.fromkeys(("logger", "enable_progress_bar", "enable_model_summary"), False)
        settings = quiet | {"accelerator": accelerator, "devices": 1} | arguments
        super().__init__(default_root_dir=folder, callbacks=[*callbacks, self._clock], **settings)

    def timed_fit(self, model: AnomalibModule, datamodule: AnomalibDataModule) -> float:
        """Fit a model, and return the duration in seconds without validation."""
        start = time.perf_counter()
        self.fit(model, datamodule=datamodule)
        return time.perf_counter() - start - self._clock.seconds

    def num_steps(self, model: AnomalibModule) -> int:
        """Return the number of optimizer steps, also for models that train without Lightning's optimizer."""
        optimized = set()
        for optimizer in self.trainer.optimizers:
            for group in optimizer.param_groups:
                optimized.update(group["params"])
        if optimized.isdisjoint(model.parameters()):  # a dummy optimizer, whose steps do not count
            return int(getattr(model, "num_steps", 0))
        return self.trainer.global_step


@torch.no_grad()
def latencies(models: Mapping[str, tuple[nn.Module, torch.Tensor]], rounds: int) -> dict[str, np.ndarray]:
    """Return the latency of each forward pass after a warm-up.

    The measurements alternate between the models, so that background load affects all of them equally.

    Args:
        models (Mapping[str, tuple[nn.Module, torch.Tensor]]): Model and input batch by name, on the same device.
        rounds (int): Number of measured forward passes per model.

    Returns:
        dict[str, np.ndarray]: Latencies in milliseconds by name, shape ``(rounds,)``.
    """
    for model, _ in models.values():
        model.eval()
    return measure_interleaved({name: partial(_forward, *pair) for name, pair in models.items()}, rounds)


def measure_interleaved(calls: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, np.ndarray]:
    """Measure several functions in alternation, after a warm-up.

    Args:
        calls (Mapping[str, Callable]): Functions by name.
        rounds (int): Number of measured calls per function.

    Returns:
        dict[str, np.ndarray]: Durations in milliseconds by name, shape ``(rounds,)``.
    """
    milliseconds = {name: np.empty(WARM_UP + rounds) for name in calls}
    for index in range(WARM_UP + rounds):
        for name, call in calls.items():
            start = time.perf_counter()
            call()
            milliseconds[name][index] = 1000 * (time.perf_counter() - start)
    return {name: values[WARM_UP:] for name, values in milliseconds.items()}


def onnx_session(path: Path, threads: int | None) -> Any:  # noqa: ANN401  onnxruntime has no types
    """Return an ONNX Runtime session on the CPU. ``None`` threads uses the default of ONNX Runtime."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads or 0
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def _forward(model: nn.Module, batch: torch.Tensor) -> None:
    model(batch)
    if batch.is_cuda:
        torch.cuda.synchronize()


@contextmanager
def suppress_output() -> Generator[None, None, None]:
    """Suppress logs, warnings and prints of anomalib and Lightning, which repeat for each run."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def weights_hash(module: nn.Module) -> str:
    """Return the first eight hex digits of the SHA-256 hash of a module's state."""
    digest = hashlib.sha256()
    for name, value in sorted(module.state_dict().items()):
        if not isinstance(value, torch.Tensor):  # for example the state of an optimizer
            continue
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:8]


def backbone_hash(model: AnomalibModule) -> str:
    """Return a hash that is equal for all models with the same backbone weights. Empty if the model has no weights.

    Methods use different layers of a backbone, under different names. Therefore the hash has only the values of the
    first weights, which all methods use.
    """
    for module in model.modules():
        if isinstance(module, Backbone):  # its weights may contain those of batch normalization
            return module.weights_hash
    return first_weights_hash(model.model)


class PeakMemory:
    """Context manager that measures peak memory in MiB.

    The operating system records the peak memory of a process. Only Linux can reset it.

    Attributes:
        host_mib (float): Peak growth of the process memory. Available after the context exits. NaN except on Linux.
        gpu_mib (float): Peak memory of torch on the GPU. NaN without a GPU.
    """

    def __enter__(self) -> "PeakMemory":
        """Reset the peak."""
        self.host_mib = self.gpu_mib = float("nan")
        gc.collect()
        with suppress(AttributeError, OSError):  # return freed memory of earlier runs to the system (glibc)
            ctypes.CDLL(None).malloc_trim(0)
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()
        try:
            Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
            self._start = _process_memory("VmRSS")
        except OSError:  # not Linux, or no permission
            self._start = float("nan")
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Read the peak."""
        del kind, value, trace
        if not np.isnan(self._start):
            self.host_mib = _process_memory("VmHWM") - self._start
        if torch.cuda.is_available():
            self.gpu_mib = torch.cuda.max_memory_allocated() / MIB


def _process_memory(field: str) -> float:
    """Return a memory field of ``/proc/self/status``, in MiB."""
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) / 1024
    return float("nan")
