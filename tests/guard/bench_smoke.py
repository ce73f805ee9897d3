# Copyright (C) 2026 anomalib-fewshot contributors
# SPDX-License-Identifier: Apache-2.0

"""Compare accuracy and relative cost of six models with the committed values in ``bench_smoke.yaml``.

    python tests/guard/bench_smoke.py [--models NAME ...] [--update]

Each model is fitted to four solar cells and tested on 40. Costs are ratios to the forward pass of the bare backbone,
which is measured before and after each model. All times are CPU times, which other processes hardly change. The exit
code is 0 if all models agree, 1 if one fails, and 2 for a wrong argument.
"""

import argparse
import math
import sys
import time
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace
from typing import Any

import numpy as np
import timm
import torch
import yaml

from anomalib_fewshot import benchmark
from anomalib_fewshot.pipelines.run import resources
from anomalib_fewshot.pipelines.run.resources import latencies, suppress_output

EXPECTED = Path(__file__).with_suffix(".yaml")
PATCHCORE = Path(__file__).parents[2] / "configs" / "model" / "patchcore_lite0.yaml"
BACKBONE_ROUNDS = 20
FLOORS = {"fit_ratio": 20.0, "latency_ratio": 1.0}  # below, the cost is mostly that of the framework, which varies
HEADER = """\
# Expected values of `make bench-smoke`. `python tests/guard/bench_smoke.py --update` rewrites this file.
# Ratios are the CPU time of the fit and of one image, divided by that of a forward pass of the bare backbone at 224 px.
# They were recorded on a busy machine, and another processor changes them, so only a ratio above `ratio_factor` times
# the expected one fails. An expected ratio below the floor in the script counts as the floor.
"""


@dataclass(frozen=True)
class Case:
    """A model with its number of unlabeled images."""

    model: dict[str, Any] | Path
    unlabeled: int = 0


CASES = {
    "CoftAD": Case({"class_path": "CoftAD"}),
    "CoftAD, 40 unlabeled": Case({"class_path": "CoftAD"}, unlabeled=40),
    "RegAD": Case({"class_path": "RegAD", "init_args": {"max_epochs": 2, "seed": 0}}),
    "UniAD": Case({"class_path": "UniAD", "init_args": {"num_steps": 30}}),
    "ImageStatistic": Case({"class_path": "ImageStatistic"}),
    "Patchcore": Case(PATCHCORE),
}


@dataclass(frozen=True)
class Result:
    """Image AUROC, and costs as ratios to the forward pass of the bare backbone."""

    image_AUROC: float  # noqa: N815  the name in the benchmark's table
    fit_ratio: float
    latency_ratio: float


def backbone_ms() -> float:
    """Return the median time of a forward pass of the bare backbone, in milliseconds."""
    model = timm.create_model("tf_efficientnet_lite0")
    return float(np.median(latencies({"": (model, torch.rand(1, 3, 224, 224))}, BACKBONE_ROUNDS)[""]))


@contextmanager
def cpu_clock() -> Generator[None]:
    """Make the benchmark measure CPU time of this process."""
    clock = resources.time
    resources.time = SimpleNamespace(perf_counter=time.process_time)
    try:
        yield
    finally:
        resources.time = clock


def measure(name: str) -> Result:
    """Fit and test a model.

    Raises:
        RuntimeError: If the run fails.
    """
    case = CASES[name]
    data = {"class_path": "ELPV", "init_args": {"num_test": 40}, "categories": ["mono"]}
    with TemporaryDirectory() as folder, cpu_clock(), suppress_output():
        before = backbone_ms()
        table = benchmark(
            {name: case.model},
            {"ELPV": data},
            k_shot=4,
            seeds=[0],
            unlabeled=case.unlabeled,
            results=folder,
            runner="serial",
            threads=1,
            accelerator="cpu",
            latency_runs=10,
        )
        forward = (before + backbone_ms()) / 2
    row = table[table.unlabeled == case.unlabeled].iloc[0]
    if row.status != "ok":
        raise RuntimeError(row.error)
    return Result(
        round(float(row.image_AUROC), 4),
        round(1000 * float(row.fit_seconds) / forward, 1),
        round(float(row.latency_p50_ms) / forward, 2),
    )


def compare(name: str, result: Result | str, expected: Mapping[str, Any]) -> tuple[list[str], bool]:
    """Compare a result with the expected one.

    Args:
        name (str): Name of the model.
        result (Result | str): The result, or the error of the run.
        expected (Mapping): Content of ``bench_smoke.yaml``.

    Returns:
        tuple[list[str], bool]: Failures, and whether the AUROC is better than expected.
    """
    if isinstance(result, str):
        return [f"{name}: {result}"], False
    if name not in expected["models"]:
        return [f"{name}: no expected value, run --update"], False
    values = expected["models"][name]
    failures = []
    change = result.image_AUROC - values["image_AUROC"]
    tolerance = expected["auroc_tolerance"] + 1e-9  # a change of exactly the tolerance agrees
    if not change >= -tolerance:  # also true for NaN
        failures.append(f"{name}: image_AUROC expected {values['image_AUROC']}, got {result.image_AUROC}")
    for key, floor in FLOORS.items():
        limit, got = expected["ratio_factor"] * max(values[key], floor), getattr(result, key)
        if not got <= limit:
            failures.append(f"{name}: {key} expected {values[key]}, at most {limit:.4g}, got {got}")
    return failures, change > tolerance


def updated(expected: Mapping[str, Any], results: Mapping[str, Result]) -> dict[str, Any]:
    """Return the expected values with new results, in the order of :data:`CASES`. Other models keep their values."""
    models = dict(expected["models"]) | {name: asdict(result) for name, result in results.items()}
    return dict(expected) | {"models": {name: models[name] for name in CASES if name in models}}


def write(expected: Mapping[str, Any], path: Path) -> None:
    """Write the expected values with the comment that explains them."""
    text = yaml.safe_dump(dict(expected), sort_keys=False, default_flow_style=False)
    path.write_text(HEADER + text, encoding="utf-8")


def main(arguments: Sequence[str] | None = None, path: Path = EXPECTED) -> int:
    """Run the comparison, print a table and return the exit code."""
    parser = argparse.ArgumentParser(description="Compare accuracy and relative cost with the committed values.")
    parser.add_argument("--models", nargs="+", default=list(CASES), metavar="NAME")
    parser.add_argument("--update", action="store_true", help="write the measured values")
    options = parser.parse_args(arguments)
    unknown = [name for name in options.models if name not in CASES]
    if unknown:
        print(f"`--models` must be names of {list(CASES)}, got {unknown}.", file=sys.stderr)
        return 2
    expected = yaml.safe_load(path.read_text(encoding="utf-8"))
    torch.set_num_threads(1)
    failures: list[str] = []
    results: dict[str, Result] = {}
    failed = set()
    print(f"{'model':22}{'image AUROC':>12}{'fit ratio':>11}{'latency ratio':>15}  result", flush=True)
    for name in options.models:
        try:
            result: Result | str = measure(name)
        except Exception as error:  # noqa: BLE001  one failed model must not stop the others
            result = f"{type(error).__name__}: {error}"
        if isinstance(result, Result):
            results[name] = result
        is_measured = options.update and isinstance(result, Result)
        found, better = ([], False) if is_measured else compare(name, result, expected)
        failures += found
        failed.update([name] if found else [])
        if is_measured:
            write(updated(expected, results), path)  # after each model, so that an interrupted update keeps its results
        verdict = "updated" if is_measured else "FAILED" if found else "better: run --update" if better else "ok"
        shown = result if isinstance(result, Result) else Result(math.nan, math.nan, math.nan)
        figures = f"{shown.image_AUROC:12.4f}{shown.fit_ratio:11.1f}{shown.latency_ratio:15.2f}"
        print(f"{name:22}{figures}  {verdict}", flush=True)
    if failures:
        print("Failed: " + "; ".join(failures))
        return 1
    agree = "updated" if options.update else "agree"
    print(f"{len(options.models) - len(failed)} of {len(options.models)} models {agree}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
