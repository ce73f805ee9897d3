# Copyright (C) 2026 anomalib-fewshot contributors
# SPDX-License-Identifier: Apache-2.0

"""Time and memory of fits and forward passes, measured alike by both pipelines."""

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

from anomalib_fewshot.pipelines.plan.spec import Spec, instantiate

MIB = 2**20
WARM_UP = 5  # forward passes before latencies are measured


def make_model(spec: Spec) -> AnomalibModule:
    """Return a model without metrics and pictures, which take time: figures are of raw scores."""
    model = instantiate(spec, AnomalibModule)
    model.evaluator = model.visualizer = None
    return model


class ValidationClock(Callback):
    """Time the batches of validations. Before the first batch, a model may still be fitted.

    Attributes:
        seconds (float): Seconds from the first batch of each validation to its end.
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
    """anomalib's engine on one device, which prints nothing and times its fits.

    Args:
        folder (str | Path): Folder of checkpoints.
        accelerator (str): Accelerator of Lightning's trainer.
        callbacks (Sequence[Callback]): Callbacks. Defaults to ``()``.
        **arguments: Other arguments of the trainer.
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
        """Fit a model, and return the seconds without those of validation batches."""
        start = time.perf_counter()
        self.fit(model, datamodule=datamodule)
        return time.perf_counter() - start - self._clock.seconds

    def num_steps(self, model: AnomalibModule) -> int:
        """Return the optimiser steps of a fit: Lightning's, or those that a model without an optimiser takes itself."""
        groups = [group for optimizer in self.trainer.optimizers for group in optimizer.param_groups]
        trained = {parameter for group in groups for parameter in group["params"]}
        if trained.isdisjoint(model.parameters()):  # Lightning counts the steps of a stand-in
            return int(getattr(model, "num_steps", 0))
        return self.trainer.global_step


@torch.no_grad()
def latencies(models: Mapping[str, tuple[nn.Module, torch.Tensor]], rounds: int) -> dict[str, np.ndarray]:
    """Return the milliseconds of each forward pass, after a warm-up.

    The models take turns, so that other work of the machine falls on all alike.

    Args:
        models (Mapping[str, tuple[nn.Module, torch.Tensor]]): Models and their batches by name, on one device each.
        rounds (int): Number of passes that are measured.

    Returns:
        dict[str, np.ndarray]: Milliseconds by name, shape ``(rounds,)``.
    """
    for model, _ in models.values():
        model.eval()
    return times_in_turns({name: partial(_forward, *pair) for name, pair in models.items()}, rounds)


def times_in_turns(calls: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, np.ndarray]:
    """Return the milliseconds of each call, after a warm-up: calls by name -> arrays of shape ``(rounds,)``."""
    seconds = np.empty((WARM_UP + rounds, len(calls)))
    for turn in range(WARM_UP + rounds):
        for number, call in enumerate(calls.values()):
            start = time.perf_counter()
            call()
            seconds[turn, number] = time.perf_counter() - start
    return dict(zip(calls, 1000 * seconds[WARM_UP:].T, strict=True))


def onnx_session(path: Path, threads: int | None) -> Any:  # noqa: ANN401  onnxruntime has no types
    """Return a session of ONNX Runtime on the CPU, by default with as many threads as it chooses."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads or 0
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def _forward(model: nn.Module, batch: torch.Tensor) -> None:
    model(batch)
    if batch.is_cuda:
        torch.cuda.synchronize()


@contextmanager
def silence() -> Generator[None, None, None]:
    """Hide the lines that anomalib and Lightning print for each of hundreds of runs."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def weights_hash(module: nn.Module) -> str:
    """Return eight digits of the SHA-256 of a module's tensors: equal for equal weights."""
    digest = hashlib.sha256()
    for name, value in sorted(module.state_dict().items()):
        if not isinstance(value, torch.Tensor):  # the state of an optimiser
            continue
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:8]


class PeakMemory:
    """Measure the largest growth of this process's memory and the largest memory on the GPU, in MiB.

    The system keeps the peak of a process. Linux lets a process reset it; elsewhere the figure is NaN.

    Attributes:
        host_mib (float): Growth of the memory in use, after the context was left.
        gpu_mib (float): Peak of torch's memory on the GPU. NaN without one.
    """

    def __enter__(self) -> "PeakMemory":
        """Reset the peak."""
        self.host_mib = self.gpu_mib = float("nan")
        gc.collect()
        with suppress(AttributeError, OSError):  # glibc returns to the system what earlier runs have freed
            ctypes.CDLL(None).malloc_trim(0)
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()
        try:
            Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
            self._start = _status("VmRSS")
        except OSError:  # another system, or not allowed here
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
            self.host_mib = _status("VmHWM") - self._start
        if torch.cuda.is_available():
            self.gpu_mib = torch.cuda.max_memory_allocated() / MIB


def _status(field: str) -> float:
    """Return a figure that Linux keeps of this process, in MiB."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{field}:")) / 1024
