# Copyright (C) 2026 anomalib-fewshot contributors
# SPDX-License-Identifier: Apache-2.0

"""Compare each model on a GPU with the CPU: fit, prediction, checkpoint, mixed precision, export and cost.

    python tests/guard/gpu_check.py [--models NAME ...] [--device cpu --small]

The backbones have random weights, so nothing is downloaded. ``--device cpu --small`` runs the same logic without a GPU.
The exit code is 0 if all checks agree, 1 if one fails, and 2 without a GPU or for a wrong argument.

Scores and anomaly maps are compared before calibration and normalization. The score that CoftAD reports is the
exponential of a logarithm of a distance, which magnifies rounding, and its rank limits it, so that it is not smooth. A
difference is a fraction of the range of the reference values. If these are nearly equal, the check fails.

CUDA figures have not been recorded yet. The tolerances for CUDA are estimates until then.
"""

import argparse
import math
import sys
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from anomalib.data import MVTecAD
from anomalib.engine import Engine
from anomalib.models import AnomalibModule
from PIL import Image
from torch import nn

from anomalib_fewshot import CoftAD, FewShot, ImageStatistic, RegAD, UniAD
from anomalib_fewshot.models.components import RankedScore
from anomalib_fewshot.pipelines.run.resources import MIB, latencies
from anomalib_fewshot.testing import Trial
from anomalib_fewshot.testing.trial import Outputs, suppress_output

SMALL = {"backbone": "resnet10t", "pre_trained": False, "image_size": 64}
FULL = {"backbone": "tf_efficientnet_lite0", "pre_trained": False, "image_size": 224}
SMALL_UNIAD = {"dim": 32, "num_heads": 4, "feedforward_dim": 32, "neighbor_size": 3}
ROUNDS = 10
MIN_RANGE = 1e-3  # of reference values, relative to the largest one
MODELS: dict[str, tuple[type[AnomalibModule], dict[str, Any], int]] = {  # class, arguments, number of unlabeled images
    "CoftAD": (CoftAD, {"num_steps": 2}, 0),
    "CoftAD, pool": (CoftAD, {"num_steps": 2}, 8),
    "CoftAD, published": (CoftAD, {"num_steps": 2, "published": True}, 0),
    "RegAD": (RegAD, {"max_epochs": 2, "augment_support": False, "seed": 0}, 0),
    "UniAD": (UniAD, {"num_steps": 2, "batch_size": 2, "augment_support": False}, 0),
    "ImageStatistic": (ImageStatistic, {}, 0),
}


class DeviceTrial(Trial):
    """Trial on a device, with a precision and unlabeled images."""

    def __init__(self, name: str, device: str, *, small: bool, precision: str = "32-true") -> None:
        model, arguments, self.unlabeled = MODELS[name]
        backbone = SMALL if small else FULL
        if model is ImageStatistic:
            arguments = {"image_size": backbone["image_size"]}
        else:
            arguments = backbone | arguments | (SMALL_UNIAD if small and model is UniAD else {})
        super().__init__(model, **arguments)
        self.device, self.precision = device, precision

    @cached_property
    def folder(self) -> Path:
        """Temporary folder with more training images than that of a trial, for the unlabeled images."""
        folder = super().folder
        for path in sorted((folder / "data" / "stripes" / "train" / "good").glob("*.png")):
            image = np.asarray(Image.open(path))
            Image.fromarray(np.roll(image, 9, axis=1)).save(path.with_name(f"shifted_{path.name}"))
        return folder

    def predict(self, model: AnomalibModule, **options: Any) -> Outputs:  # noqa: ANN401
        """Predict the test images and return raw outputs, see :func:`record_raw`."""
        with record_raw(model) as raw:
            size = super().predict(model, **options).image_size
        return concatenate(raw)._replace(image_size=size)

    def data(self, support: Sequence[str] | None = None) -> FewShot:
        """Return the data module with the unlabeled images."""
        source = MVTecAD(self.folder / "data", "stripes", num_workers=0, train_batch_size=4, eval_batch_size=4)
        return FewShot(source, self.k_shot, support=support, unlabeled=self.unlabeled or None)

    def engine(self) -> Engine:
        """Return an engine on the device."""
        quiet: dict[str, Any] = dict.fromkeys(("logger", "enable_progress_bar", "enable_model_summary"), False)
        folder = self.folder / "results"
        accelerator = "gpu" if self.device == "cuda" else "cpu"
        settings = {"accelerator": accelerator, "devices": 1, "max_epochs": 1, "precision": self.precision}
        return Engine(default_root_dir=folder, **settings, **quiet)


@contextmanager
def record_raw(model: AnomalibModule) -> Generator[list[Outputs]]:
    """Record scores before the ranking and the normalization, and maps before the normalization, of each forward."""
    raw: list[Outputs] = []

    def record(_module: nn.Module, _inputs: tuple, output: Any) -> None:  # noqa: ANN401
        maps = None if output.anomaly_map is None else output.anomaly_map.float().cpu()
        raw.append(Outputs(output.pred_score.float().cpu(), maps, (0, 0)))

    def skip_ranks(_module: nn.Module, inputs: tuple[torch.Tensor, ...], _output: torch.Tensor) -> torch.Tensor:
        return inputs[0]

    hooks = [model.model.register_forward_hook(record)]
    ranked = [module for module in model.modules() if isinstance(module, RankedScore)]
    hooks += [module.register_forward_hook(skip_ranks) for module in ranked]
    try:
        yield raw
    finally:
        for hook in hooks:
            hook.remove()


def concatenate(parts: Sequence[Outputs]) -> Outputs:
    """Return the outputs of all parts as one."""
    maps = [part.maps for part in parts if part.maps is not None]
    return Outputs(torch.cat([part.scores for part in parts]), torch.cat(maps) if maps else None, (0, 0))


def difference(values: Outputs, reference: Outputs) -> float:
    """Return the largest difference of a score or of a map pixel, as a fraction of the range of the reference.

    Raises:
        ValueError: If all scores or all map pixels of the reference are nearly equal.
    """
    pairs = [("scores", values.scores, reference.scores)]
    if reference.maps is not None:
        pairs.append(("maps", values.maps, reference.maps))
    largest = 0.0
    for name, found, expected in pairs:
        width = float(expected.max() - expected.min())
        if width <= MIN_RANGE * float(expected.abs().max()):
            msg = f"The {name} to compare with must vary, got a range of {width:.3g}."
            raise ValueError(msg)
        change = float((found - expected).abs().max()) / width
        largest = change if math.isnan(change) else max(largest, change)
    return largest


class Checks:
    """The checks of one model. Each returns a difference or a ratio."""

    def __init__(self, name: str, device: str, *, small: bool) -> None:
        self.name, self.device, self.small = name, device, small
        self.trial, self.cpu = DeviceTrial(name, device, small=small), DeviceTrial(name, "cpu", small=small)

    @property
    def checkpoint(self) -> str:
        """Path of the checkpoint of the fit on the device."""
        return self.trial.trained.engine.best_model_path

    def fit(self) -> float:
        """Compare a fit on the device with a fit on the CPU."""
        return difference(self.trial.outputs, self.cpu.outputs)

    def predict(self) -> float:
        """Compare predictions of the device's checkpoint on the CPU and on the device."""
        return difference(self.cpu.predict(self.cpu.new_model(), checkpoint=self.checkpoint), self.trial.outputs)

    def load(self) -> float:
        """Compare the loaded checkpoint with the fitted model, on the device."""
        return difference(self.trial.predict(self.trial.new_model(), checkpoint=self.checkpoint), self.trial.outputs)

    def mixed(self, precision: str) -> float:
        """Compare a fit and prediction in mixed precision with single precision."""
        trial = DeviceTrial(self.name, self.device, small=self.small, precision=precision)
        return difference(trial.outputs, self.trial.outputs)

    def export(self) -> float:
        """Score the export of the device's checkpoint on the CPU."""
        with suppress_output(), torch.no_grad():
            model = type(self.trial.trained.model).load_from_checkpoint(self.checkpoint, map_location="cpu")
            path = model.to_torch(self.trial.folder)
            loaded = torch.load(path, weights_only=False, map_location="cpu")["model"].eval()
            with record_raw(loaded) as raw:
                loaded(self.trial.images())
        return difference(concatenate(raw), self.trial.outputs)

    @cached_property
    def forwards(self) -> dict[str, tuple[torch.nn.Module, torch.Tensor]]:
        """The fitted model and the bare backbone, each with an image, on the device."""
        settings = SMALL if self.small else FULL
        size = settings["image_size"]
        bare = timm.create_model(settings["backbone"]).to(self.device).eval()
        model = self.trial.trained.model.to(self.device).eval()
        image = self.trial.images()[:1].to(self.device)
        return {"model": (model, image), "bare": (bare, torch.rand(1, 3, size, size, device=self.device))}

    def latency(self) -> float:
        """Return the latency of an image divided by that of the bare backbone."""
        measured = latencies(self.forwards, ROUNDS)
        return float(np.median(measured["model"]) / np.median(measured["bare"]))

    def memory(self) -> float:
        """Return the peak GPU memory of a forward pass in MiB beyond that of the bare backbone."""
        peaks = {}
        for name, (model, image) in self.forwards.items():
            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated()
            with torch.no_grad():
                model(image)
            peaks[name] = (torch.cuda.max_memory_allocated() - before) / MIB
        return peaks["model"] - peaks["bare"]


def list_checks(checks: Checks) -> dict[str, tuple[Callable[[], float], float]]:
    """Return the checks of a model by name, each with its tolerance."""
    listed: dict[str, tuple[Callable[[], float], float]] = {
        "fit": (checks.fit, 2e-2),  # rounding differences grow in the training
        "predict": (checks.predict, 1e-2),  # a GPU may round the inputs of convolutions to 10 bits
        "checkpoint": (checks.load, 1e-5),
        "bf16-mixed": (lambda: checks.mixed("bf16-mixed"), 5e-2),  # 8 bits, in the training too
        "export": (checks.export, 1e-2),
        "latency ratio": (checks.latency, 20.0),
    }
    if checks.device == "cuda":
        listed["16-mixed"] = (lambda: checks.mixed("16-mixed"), 2e-2)
        listed["memory, MiB"] = (checks.memory, 1024.0)
        if not torch.cuda.is_bf16_supported():
            del listed["bf16-mixed"]
    return listed


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the checks, print a table and return the exit code."""
    parser = argparse.ArgumentParser(description="Compare each model on a GPU with the CPU.")
    parser.add_argument("--models", nargs="+", default=list(MODELS), metavar="NAME")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--small", action="store_true", help="small networks and images")
    options = parser.parse_args(arguments)
    unknown = [name for name in options.models if name not in MODELS]
    if unknown:
        print(f"`--models` must be names of {list(MODELS)}, got {unknown}.", file=sys.stderr)
        return 2
    if options.device == "cuda" and not torch.cuda.is_available():
        print("No CUDA device was found. Use a machine with a GPU, or `--device cpu --small`.", file=sys.stderr)
        return 2
    failures, count = [], 0
    print(f"{'model':20}{'check':16}{'difference':>12}{'tolerance':>12}  ok", flush=True)
    for model in options.models:
        for name, (check, tolerance) in list_checks(Checks(model, options.device, small=options.small)).items():
            note, value = "", math.nan
            try:
                value = check()
            except Exception as error:  # noqa: BLE001  one failed check must not stop the others
                note = f" ({type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''})"
            ok = value <= tolerance  # false for NaN
            count += 1
            failures += [] if ok else [f"{model}, {name}"]
            print(f"{model:20}{name:16}{value:12.3g}{tolerance:12.3g}  {'yes' if ok else 'NO'}{note}", flush=True)
    print(f"Failed: {'; '.join(failures)}" if failures else f"{count} of {count} checks agree")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
