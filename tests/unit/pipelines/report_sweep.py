# Copyright (C) 2026 anomalib-fewshot contributors
# SPDX-License-Identifier: Apache-2.0

"""A made-up benchmark for tests of the report."""

import hashlib
import io
import itertools
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image

from anomalib_fewshot.data.manifest import SupportManifest
from anomalib_fewshot.pipelines.plan.job import Job, as_number
from anomalib_fewshot.pipelines.report import write_report
from anomalib_fewshot.pipelines.results.row import columns
from anomalib_fewshot.pipelines.results.store import Store

MINUS = "\N{MINUS SIGN}"
METHODS = {  # level at k = 1, gain a doubling of k, seconds to fit, milliseconds an image
    "CoftAD": (0.83, 0.025, 14.0, 21.0),
    "Dfkde": (0.72, 0.020, 0.8, 18.0),
    "NoTraining": (0.78, 0.022, 0.4, 20.0),
    "Padim": (0.74, 0.045, 1.1, 33.0),
    "Patchcore": (0.86, 0.021, 2.6, 52.0),
    "ImageStatistic": (0.63, 0.002, 0.05, 0.6),
}
CATEGORIES = ("magnetic_tile", "elpv_mono", "elpv_poly", "brick_cracks", "cookies")
MASKED = ("magnetic_tile", "cookies")
WITH_FEATURES = ("CoftAD", "NoTraining", "Patchcore")  # of which there are pictures
MEASURED = (
    "false_alarms",
    "recall",
    "guaranteed_fpr",
    "image_AUROC",
    "image_AUPR",
    "image_F1Max",
    "image_F1Score",
    "pixel_AP",
    "pixel_AUROC",
    "pixel_AUPRO",
    "pixel_F1Max",
    "device",
    "fit_seconds",
    "latency_p50_ms",
    "latency_p95_ms",
    "peak_memory_mib",
    "checkpoint_mib",
    "test_seconds",
    "support",
)
ENVIRONMENT = {"python": "3.11.7", "platform": "Linux-x86_64", "processor": "2 cores"}


def sweep(
    *,
    methods: dict[str, tuple[float, float, float, float]] = METHODS,
    categories: tuple[str, ...] = CATEGORIES,
    shots: tuple[int, ...] = (1, 2, 4, 8),
    seeds: int = 5,
    dataset: str = "RealMini",
    masked: tuple[str, ...] = MASKED,
    failures: int = 0,
) -> pd.DataFrame:
    """Return the rows of a made-up benchmark, the last of which failed."""
    generator = np.random.default_rng(0)
    ease = dict(zip(categories, generator.normal(0, 0.05, len(categories)), strict=True))
    rows = []
    for category, k, seed in itertools.product(categories, shots, range(seeds)):
        luck = generator.normal(0, 0.02)
        for method, (level, gain, fit, latency) in methods.items():
            image = float(
                np.clip(level + gain * np.log2(k) + ease[category] + luck + generator.normal(0, 0.012), 0.4, 1),
            )
            name = f"{method} {dataset} {category} {k} {seed}"
            maps = category in masked and method != "Dfkde"
            rows.append({
                "method": method, "dataset": dataset, "category": category, "k_shot": k, "seed": seed, "status": "ok",
                "error": np.nan, "image_AUROC": image, "image_AUPR": image**1.2, "image_F1Score": image**1.5,
                "image_F1Max": image**1.1, "pixel_AP": image**3 if maps else np.nan, "pixel_AUPIMO": np.nan,
                "pixel_F1Max": image**2 if maps else np.nan, "backbone_weights": "2f303ace", "commit": "",
                "false_alarms": 0.8 / (k + 1), "recall": image**2,
                "guaranteed_fpr": 1 / (k + 1) if method == "CoftAD" else np.nan,
                "pixel_AUROC": image**0.4 if maps else np.nan, "pixel_AUPRO": image**0.9 if maps else np.nan,
                "threshold": "normal images", "fit_seconds": fit * generator.uniform(0.9, 1.2), "test_seconds": 3.2,
                "latency_p50_ms": latency * generator.uniform(0.95, 1.05), "latency_p95_ms": latency * 1.3,
                "peak_memory_mib": 910.0 + k, "gpu_memory_mib": np.nan, "checkpoint_mib": 17.2, "device": "cpu",
                "threads": 2,
                "augmentation": "", "seconds": 9.0, "training_seconds": np.nan,
                "backbone": "tf_efficientnet_lite0_packaged", "weights": "57934424", "image_size": "256",
                "steps": 30 if method == "CoftAD" else 0, "support": f"{category} {k} {seed}", "test_normal": 60,
                "test_anomalous": 60, "train_on": "support", "python": "3.11.7", "torch": "2.9.1",
                "anomalib": "2.7.0", "anomalib_fewshot": "0.1.0", "finished": "2026-01-05T12:00:00",
                "key": hashlib.sha256(name.encode()).hexdigest()[:16],
            })  # fmt: skip
    for row in rows[len(rows) - failures :]:
        row.update(dict.fromkeys(MEASURED, np.nan), status="failed", error="RuntimeError: <memory> | line 1\nline 2")
    others = [name for name in columns() if name not in rows[0]]
    text = pd.DataFrame(rows).reindex(columns=[*rows[0], *others]).to_csv(index=False)
    return pd.read_csv(io.StringIO(text), dtype=dict.fromkeys(("key", "support", "weights"), str))


def add_files(folder: Path, rows: pd.DataFrame) -> pd.DataFrame:
    """Write a support of every cell, and examples for the first seed and the largest k. Return rows that know them."""
    store = Store(folder)
    for (dataset, category, k, seed), cell in rows.groupby(["dataset", "category", "k_shot", "seed"]):
        count = 100 if k == "all" else int(k)
        images = {f"{(seed * 7 + number * 13) % 100:03}.png": "0" * 64 for number in range(count)}
        manifest = SupportManifest(dataset, category, count, seed, images)
        manifest.write(store.support_file(Job("", dataset, category, k, seed, {}, {}, {}), category))
        rows.loc[cell.index, "support"] = manifest.digest
    generator = np.random.default_rng(0)
    largest = max(rows["k_shot"], key=as_number)
    for row in rows[(rows["k_shot"] == largest) & (rows["seed"] == 0) & (rows["status"] == "ok")].itertuples():
        (folder / "examples" / row.key / row.category).mkdir(parents=True)
        for name in ("hit", "miss", "false_alarm"):
            picture = generator.integers(60, 200, (6, 12, 3)).astype(np.uint8)
            image = Image.fromarray(picture).resize((400, 200), Image.Resampling.BICUBIC)
            image.save(folder / "examples" / row.key / row.category / f"{name}.jpg")
        if row.method in WITH_FEATURES:
            image.save(folder / "examples" / row.key / row.category / "features.jpg")
    return rows


def report(
    folder: Path,
    rows: pd.DataFrame,
    baseline: str = "NoTraining",
    jobs: list[Job] | None = None,
) -> tuple[str, str]:
    """Return the report as HTML and as Markdown."""
    path = write_report(
        Store(folder),
        rows,
        baseline=baseline,
        config={"k_shot": (1, 2), "root": Path("data")},
        environment=ENVIRONMENT,
        jobs=jobs,
    )
    return path.read_text(encoding="utf-8"), (folder / "report.md").read_text(encoding="utf-8")
