# Copyright (C) 2026 anomalib-fewshot contributors
# SPDX-License-Identifier: Apache-2.0

"""`anomalib fewshot` from the command line to the report, and what can happen to it on the way."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
import yaml
from anomalib.cli import AnomalibCLI
from small_models import SMALL

from anomalib_fewshot import CoftAD, benchmark
from anomalib_fewshot.data.manifest import SupportManifest
from anomalib_fewshot.pipelines.plan.grid import make_jobs
from anomalib_fewshot.pipelines.plan.job import Job
from anomalib_fewshot.pipelines.results.outcome import Outcome
from anomalib_fewshot.pipelines.results.row import Row
from anomalib_fewshot.pipelines.results.store import Store
from anomalib_fewshot.pipelines.run.worker import Worker

CONFIGS = Path(__file__).parents[2] / "configs"
PLAIN = {"class_path": "ImageStatistic", "init_args": {"statistic": "std", "image_size": 64}}
PADIM = {"backbone": "resnet10t", "layers": ["layer1"], "pre_trained": False, "n_features": 20}
COST = ["fit_seconds", "test_seconds", "latency_p50_ms", "latency_p95_ms", "peak_memory_mib", "seconds", "finished"]
REG_AD = SMALL["RegAD"] | {"max_epochs": 1, "augment_support": False, "seed": 0}

BREAKING = """
import os
import time
from pathlib import Path
import torch
from anomalib_fewshot import ImageStatistic

class Breaking(ImageStatistic):
    "Fails, or ends its process, when it is asked to learn."

    def __init__(self, how: str) -> None:
        super().__init__("mean", image_size=64)
        self.how = how

    def training_step(self, *args, **kwargs):
        if self.how == "exits":
            os._exit(9)
        if self.how == "waits":
            Path("waiting").touch()
            time.sleep(600)
        raise RuntimeError("it is broken")

class WithNetwork(ImageStatistic):
    "Learns the mean brightness of other categories, and adds it to its scores."

    def __init__(self, network: str | None = None, max_epochs: int = 2, seed: int = 0) -> None:
        super().__init__("std", image_size=64)
        self.max_epochs = max_epochs if network is None else 0
        self.register_buffer("others", torch.zeros(1))
        if network is not None:
            self.others = torch.load(network, weights_only=False)["state_dict"]["others"]

    def training_step(self, batch, *args, **kwargs):
        if self.max_epochs:
            self.others += batch.image.mean()
        return super().training_step(batch, *args, **kwargs)

    def test_step(self, *args, **kwargs):
        batch = super().test_step(*args, **kwargs)
        return batch.update(pred_score=batch.pred_score + self.others)
"""


@pytest.fixture
def breaking(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], dict[str, Any]]:
    """Return a function that gives a model that fails. Other processes find it too."""
    (tmp_path / "breaking.py").write_text(BREAKING, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=os.pathsep)
    return lambda how: {"class_path": "breaking.Breaking", "init_args": {"how": how}}


@pytest.fixture
def with_network(breaking: Callable[[str], dict[str, Any]]) -> dict[str, Any]:
    """Return a model that takes what was trained on other categories."""
    del breaking  # which makes its file
    return {"class_path": "breaking.WithNetwork", "init_args": {"seed": 0, "max_epochs": 2}}


@pytest.fixture
def config(mvtec_root: Path, tmp_path: Path) -> dict[str, Any]:
    return {
        "methods": {"CoftAD": {"class_path": "CoftAD", "init_args": SMALL["CoftAD"]}, "plain": PLAIN},
        "datasets": {"parts": {"class_path": "MVTecFolder", "init_args": {"root": str(mvtec_root)}}},
        "k_shot": [1, 2],
        "seeds": 2,
        "results": str(tmp_path / "sweep"),
        "accelerator": "cpu",
        "threads": 1,
        "latency_runs": 2,
    }


@pytest.fixture
def quick_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Replace the fit and test of each run by numbers that follow from its settings."""

    def run(_: Worker, job: Job, save_examples: bool = False) -> Outcome:
        del save_examples
        outcome = Outcome([])
        for category in job.test_categories:
            manifest = SupportManifest(job.dataset, category, int(job.k_shot), job.seed, {f"{job.seed}.png": "0" * 64})
            values = {"image_AUROC": int(job.key[:4], 16) / 2**16, "seconds": 1.0, "device": "cpu", "threads": 1}
            outcome.rows.append(Row.from_job(job, category, **values, support=manifest.digest))
            outcome.manifests.append(manifest)
        return outcome

    monkeypatch.setattr(Worker, "run", run)


def figures(table: pd.DataFrame) -> pd.DataFrame:
    """Return what does not depend on the clock, in one order."""
    columns = [name for name in table if name not in COST]
    return table[columns].convert_dtypes().sort_values("key", ignore_index=True).astype(str)


def test_unlabeled_images(config: dict[str, Any]) -> None:
    """A memory bank is fitted to them as well. A method without a use for them runs without them."""
    config["datasets"]["parts"]["categories"] = ["bolt"]
    padim = {"class_path": "Padim", "init_args": PADIM}
    config |= {"methods": {"Padim": padim, "plain": PLAIN}, "k_shot": [2], "seeds": 1}
    config |= {"unlabeled": [0, 6], "contamination": [0, 0.34]}
    table = benchmark(**config)
    assert (table.status == "ok").all(), table.error.tolist()
    rows = table.set_index(["method", "unlabeled", "contamination"])
    assert list(rows.index) == [
        ("Padim", 0, 0.0), ("plain", 0, 0.0), ("Padim", 6, 0.0), ("Padim", 6, 0.34),
    ]  # fmt: skip
    assert rows.test_anomalous.tolist() == [4, 4, 4, 2]
    assert rows.support.nunique() == 3
    assert rows.threshold["Padim", 6, 0.0] == "normal images"
    folder = Path(config["results"])
    names = {path.name for path in (folder / "supports").iterdir()}
    name = "parts-bolt-k2-seed0"
    suffixes = ("", "-unlabeled6", "-unlabeled6-contamination0.34")
    assert names == {f"{name}{suffix}.json" for suffix in suffixes}
    pool = SupportManifest.read(folder / "supports" / f"{name}-unlabeled6-contamination0.34.json").unlabeled
    assert sum(path.startswith("../../test/hole") for path in pool) == 2
    assert "## parts: effect of unlabeled images" in (folder / "report.md").read_text(encoding="utf-8")
    without = benchmark(**config | {"unlabeled": 0, "contamination": 0.0})
    assert without.key.tolist() == table.key.tolist()[:2]  # the same runs, which are not run again


def test_command_line(config: dict[str, Any], tmp_path: Path) -> None:
    config |= {"methods": config["methods"] | {"Padim": {"class_path": "Padim", "init_args": PADIM}}}
    config |= {"baseline": "plain", "controls": "CoftAD"}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
    AnomalibCLI(["fewshot", "--config", str(tmp_path / "config.yaml"), "--k_shot", "[1]", "--seeds", "1"])
    folder = tmp_path / "sweep"
    table = pd.read_csv(folder / "results.csv", dtype={"support": str})
    assert set(table.method) == {
        *("CoftAD", "plain", "Padim", "CoftAD, no fine-tuning", "CoftAD, random weights"),
        *("mean brightness", "standard deviation of gray values", "brightness of the border"),
    }
    assert len(table) == 16
    good = table[table.method != "Padim"]
    assert (good.status == "ok").all()
    assert good.groupby("category").support.nunique().tolist() == [1, 1]  # one support for all methods
    assert good[[*COST[:-1], "checkpoint_mib", "image_AUROC", "image_AUPR", "image_F1Score"]].notna().all(axis=None)
    assert table[table.method == "CoftAD"][["pixel_AUROC", "pixel_AUPRO"]].notna().all(axis=None)
    assert set(good.threshold) == {"normal images"}
    # anomalib's Padim has no covariance of one image: a row says so, and the others went on.
    assert table[table.method == "Padim"].error.str.contains("not finite").all()
    assert {path.name for path in folder.iterdir()} >= {"environment.json", "report.html", "report.md", "config.yaml"}
    assert len(list((folder / "supports").iterdir())) == 2
    page = (folder / "report.html").read_text(encoding="utf-8")
    assert "CoftAD, no fine-tuning" in page
    assert "data:image/jpeg" in page
    keys = good.drop_duplicates(["method", "category"]).set_index("key").method
    with_features = {keys[path.parts[-3]] for path in (folder / "examples").glob("*/*/features.jpg")}
    assert with_features == {"CoftAD", "CoftAD, no fine-tuning", "CoftAD, random weights"}
    assert "not finite" in page


def test_stored_config_resumes(
    config: dict[str, Any],
    quick_runs: None,
    tmp_path: Path,
    capsys: pytest.CaptureFixture,
) -> None:
    """The command line lists the defaults of nested specifications. The runs are the same."""
    del quick_runs
    pre_processor = {"class_path": "anomalib_fewshot.AutoSizePreProcessor", "init_args": {"image_size": 64}}
    pre_processor["init_args"] |= {"mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5]}
    spec = {"class_path": "Padim", "init_args": PADIM | {"pre_processor": pre_processor}}
    (tmp_path / "padim.yaml").write_text(yaml.safe_dump(spec), encoding="utf-8")
    config["methods"] = {"file": str(tmp_path / "padim.yaml"), "plain": PLAIN}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
    AnomalibCLI(["fewshot", "--config", str(tmp_path / "config.yaml")])
    AnomalibCLI(["fewshot", "--config", str(tmp_path / "sweep" / "config.yaml")])
    output = " ".join(capsys.readouterr().out.split())
    assert "16 of 16 runs are already finished" in output
    assert "of other configurations" not in output
    assert len(list((tmp_path / "sweep" / "runs").glob("*.json"))) == 16


def test_all_images_beside_one(
    config: dict[str, Any],
    with_network: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
    tmp_path: Path,
) -> None:
    """Train on the support set, on all categories, and on the other categories."""
    config["methods"] = {"plain": PLAIN, "one for all": PLAIN, "others": with_network}
    config["overrides"] = {
        "one for all": {"train_on": "all_categories"},
        "others": {"train_on": "other_categories", "k_shot": "all"},
    }
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
    command = ["fewshot", "--config", str(tmp_path / "config.yaml"), "--k_shot", "[all, 1]", "--seeds", "1"]
    AnomalibCLI([*command, "--dry_run"])
    assert "parts bolt: k = 1, all; seeds 0" in capsys.readouterr().out
    AnomalibCLI(command)
    folder = tmp_path / "sweep"
    table = pd.read_csv(folder / "results.csv", dtype={"support": str})
    assert (table.status == "ok").all()
    assert table.groupby(["method", "k_shot"]).size().to_dict() == {
        ("others", "all"): 2,
        **{(method, k): 2 for method in ("one for all", "plain") for k in ("1", "all")},
    }
    assert table.groupby(["category", "k_shot"]).support.nunique().eq(1).all()  # the same images for all methods
    assert "runs without an image AUROC" not in (folder / "report.md").read_text(encoding="utf-8")  # by an override
    supports = {path.name: len(json.loads(path.read_text())["images"]) for path in (folder / "supports").iterdir()}
    assert supports == {f"parts-{c}-k{k}-seed0.json": n for c in ("bolt", "cloth") for k, n in ((1, 1), ("all", 10))}
    assert len(list((folder / "trainings").glob("*/model.ckpt"))) == 2
    assert "| method | k = 1 | k = all |" in (folder / "report.md").read_text(encoding="utf-8")
    assert "k = 1, all (10)" in (folder / "report.html").read_text(encoding="utf-8")
    monkeypatch.setattr(Worker, "run", None)  # nothing is run again
    AnomalibCLI(command)
    with pytest.raises(SystemExit, match=r"anomalib fewshot: `k_shot` must be .* or 'all', got \[1, 'every'\]"):
        AnomalibCLI([*command, "--k_shot", "[1, every]"])


def test_callbacks_of_a_method(config: dict[str, Any], tmp_path: Path) -> None:
    """They are beside those of the benchmark, which records the scores."""
    packaged = {"backbone": "tf_efficientnet_lite0_packaged", "layers": ["blocks.1"]}
    stfpm = {"class_path": "Stfpm", "init_args": packaged}
    callback = {"class_path": "anomalib_fewshot.AdversarialCallback", "init_args": {"weight": 5.0}}
    config["methods"] = {"plain": stfpm, "adversarial": stfpm}
    config["overrides"] = {
        "plain": {"trainer": {"max_epochs": 2}},
        "adversarial": {"trainer": {"max_epochs": 2, "callbacks": [callback]}},
    }
    config["datasets"]["parts"] |= {"categories": ["bolt"]}
    table = benchmark(**config | {"baseline": "plain", "k_shot": 2, "seeds": 1})
    assert (table.status == "ok").all()
    runs = tmp_path / "sweep" / "runs"
    scores = [json.loads((runs / f"{key}.json").read_text(encoding="utf-8"))["scores"] for key in table.key]
    assert len({str(of_run) for of_run in scores}) == 2


def test_learning_from_several_categories(
    config: dict[str, Any],
    with_network: dict[str, Any],
    tmp_path: Path,
) -> None:
    """A network of the others serves all k and supports of a target; a model of all gives a row for each category."""
    config["methods"] = {"others": with_network, "one for all": PLAIN, "plain": PLAIN}
    config["overrides"] = {"others": {"train_on": "other_categories"}, "one for all": {"train_on": "all_categories"}}
    table = benchmark(**config)
    assert (table.status == "ok").all()
    assert table.groupby("method").size().tolist() == [8, 8, 8]
    assert table.groupby("method").key.nunique().to_dict() == {"others": 8, "one for all": 4, "plain": 8}
    assert table.groupby(["category", "k_shot", "seed"]).support.nunique().eq(1).all()
    assert table.train_on.unique().tolist() == ["other_categories", "support", "all_categories"]
    own = table[table.method == "others"]
    assert own.groupby("category")[["weights", "training_seconds"]].nunique().eq(1).all(axis=None)
    assert own.weights.nunique() == 2  # of each target
    assert (own.fit_seconds > 0).all()  # each was fitted to its own support
    assert table[table.method != "others"].training_seconds.isna().all()
    trained = {path.parent.name: torch.load(path, weights_only=False)["state_dict"]["others"].item()
               for path in (tmp_path / "sweep" / "trainings").glob("*/model.ckpt")}  # fmt: skip
    assert len(set(trained.values())) == 2
    scores = {
        category: pd.Series({path: score for path, (_, score) in Store(tmp_path / "sweep").scores(job).items()})
        for category, job in zip(("bolt", "cloth"), _jobs(config, "others"), strict=True)
    }
    assert min(scores["bolt"].min(), scores["cloth"].min()) > 0.9 * min(trained.values())  # they took the network
    plain = table[table.method == "plain"].set_index(["category", "k_shot", "seed"])
    one = table[table.method == "one for all"].set_index(["category", "k_shot", "seed"])
    assert one.loc["bolt"].test_normal.unique().tolist() == plain.loc["bolt"].test_normal.unique().tolist() == [4]


def _jobs(config: dict[str, Any], method: str) -> list[Job]:
    """Return the first job of each category of a method."""
    arguments = [config[name] for name in ("methods", "datasets", "k_shot", "seeds")]
    jobs = [job for job in make_jobs(*arguments, overrides=config["overrides"]) if job.method == method]
    return list({job.category: job for job in reversed(jobs)}.values())[::-1]


def test_reg_ad_learns_from_others(config: dict[str, Any], tmp_path: Path) -> None:
    """The network is trained once for each target, and each run fits it to its support."""
    config["methods"] = {"RegAD": {"class_path": "RegAD", "init_args": REG_AD}}
    table = benchmark(**config | {"seeds": 1, "overrides": {"RegAD": {"train_on": "other_categories"}}})
    assert (table.status == "ok").all()
    assert table.groupby("category")[["weights", "training_seconds"]].nunique().eq(1).all(axis=None)
    assert (table.steps > 0).all()  # those of the network
    assert (table.fit_seconds > 0.01).all()
    assert len(list((tmp_path / "sweep" / "trainings").glob("*/model.ckpt"))) == 2
    assert {path.parent.name for path in tmp_path.glob("sweep/examples/*/*/hit.jpg")} == {"bolt", "cloth"}


def test_failed_run_of_all_categories_is_a_row_of_each(
    config: dict[str, Any],
    breaking: Callable[[str], dict[str, Any]],
) -> None:
    config |= {
        "methods": {"bad": breaking("raises")},
        "overrides": {"bad": {"train_on": "all_categories"}},
        "k_shot": 1,
    }
    table = benchmark(**config | {"seeds": 1})
    assert table.set_index("category").error.to_dict() == dict.fromkeys(("bolt", "cloth"), "RuntimeError: it is broken")


@pytest.mark.parametrize(
    "name",
    sorted({path.stem for path in (CONFIGS / "benchmark").iterdir()} - {"cost", "cost_of_shots", "features", "parity"}),
)
def test_files(name: str, mvtec_root: Path, capsys: pytest.CaptureFixture, tmp_path: Path) -> None:
    """The files parse and plan; the first run of the smallest is carried out with the real data and weights."""
    path = CONFIGS / "benchmark" / f"{name}.yaml"
    flags = ["fewshot", "--config", str(path), "--results", str(tmp_path / "sweep")]
    with_root = ("controlled", "dino", "realmini", "standing", "unlabeled")
    flags += ["--root", str(mvtec_root)] if name.startswith(with_root) else []
    AnomalibCLI([*flags, "--dry_run"])
    runs = {
        "smoke": 8,
        "realmini": 9 * 2 * 4 * 5,
        "dino": 6 * 2 * 4 * 5,
        "realmini_reg_ad": 8 * 2 * 4 * 5,
        "realmini_coft_ad": 9 * 2 * 2 * 5,
    }
    runs |= {
        "realmini_adversarial": 2 * 2 * 5,
        "realmini_uni_ad": (4 + 2 * 2) * 4 * 5,
        "realmini_uni_ad_pairs": 5 * 3,
    }
    pools = 5  # no unlabeled images, and 60 with four contaminations
    runs["unlabeled"] = (pools + (pools if getattr(CoftAD, "uses_unlabeled", False) else 1)) * 2 * 4 * 5
    runs |= {"controlled_digits": 4 * 2 * 3, "paper_coft_ad": 4 * 15 * 4 * 5}
    runs["standing"] = (10 * (2 + 2) + 2) * 4 * 5  # UniAD has one training for each of the two datasets
    runs |= {"mvtec": 8 * 15 * 4 * 5, "visa": 8 * 12 * 4 * 5}
    runs |= {"paper_reg_ad_mvtec": 5 * 15 * 3 * 10, "paper_reg_ad_mpdd": 5 * 6 * 3 * 10}
    runs |= {"paper_uni_ad_mvtec": (3 + 2 * 15) * 5 * 5, "paper_uni_ad_dagm": (3 + 2 * 10) * 5 * 5}
    assert f"{runs[name]} runs" in capsys.readouterr().out
    assert not (tmp_path / "sweep").exists()


@pytest.mark.slow
def test_smoke(tmp_path: Path) -> None:
    config = yaml.safe_load((CONFIGS / "benchmark" / "smoke.yaml").read_text(encoding="utf-8"))
    config["methods"]["Patchcore"] = str(CONFIGS / "model" / "patchcore_lite0.yaml")
    table = benchmark(**config | {"k_shot": 1, "seeds": 1, "results": str(tmp_path / "sweep"), "latency_runs": 1})
    assert (table.image_AUROC > 0.6).all()
    assert (tmp_path / "sweep" / "report.html").is_file()


@pytest.mark.usefixtures("quick_runs")
def test_same_command_again_changes_nothing(config: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    first = benchmark(**config)
    monkeypatch.setattr(Worker, "run", None)  # nothing is run again
    pd.testing.assert_frame_equal(benchmark(**config), first)


@pytest.mark.usefixtures("quick_runs")
def test_interrupted_benchmark_continues(
    config: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    """Interrupted at its fifth run, it gives the rows of a sweep that was not, in another process order."""
    expected = benchmark(**config | {"results": str(tmp_path / "whole")})
    run, count = Worker.run, []

    def interrupted(self: Worker, *args: Any) -> Any:  # noqa: ANN401
        count.append(1)
        if len(count) == 5:
            raise KeyboardInterrupt
        return run(self, *args)

    monkeypatch.setattr(Worker, "run", interrupted)
    with pytest.raises(KeyboardInterrupt):
        benchmark(**config)
    assert len(pd.read_csv(tmp_path / "sweep" / "results.csv")) == 4
    assert (tmp_path / "sweep" / "report.html").is_file()  # of what there is
    table = benchmark(**config)
    assert len(count) == 5 + 12
    pd.testing.assert_frame_equal(figures(table), figures(expected))


@pytest.mark.usefixtures("quick_runs")
def test_interrupted_before_the_baseline_has_run(config: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    run = Worker.run

    def interrupted(self: Worker, job: Job, *args: Any) -> Any:  # noqa: ANN401
        if job.method == "plain":
            raise KeyboardInterrupt
        return run(self, job, *args)

    monkeypatch.setattr(Worker, "run", interrupted)
    with pytest.raises(KeyboardInterrupt):
        benchmark(**config, baseline="plain")
    report = Path(config["results"], "report.md").read_text(encoding="utf-8")
    assert "the baseline plain has no runs" in report


@pytest.mark.usefixtures("quick_runs")
def test_full_disk_is_what_is_told(config: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Not that the table cannot be written either."""

    def full(message: str) -> None:
        monkeypatch.setattr(Store, "write_table", lambda *_: full("no table"))
        raise OSError(message)

    monkeypatch.setattr(Store, "save", lambda *_: full("make room"))
    with pytest.raises(OSError, match="make room"):
        benchmark(**config)


def test_result_does_not_depend_on_the_runs_before(config: dict[str, Any], tmp_path: Path) -> None:
    """Images are read once for several runs, and a validation made of them draws from the global generators."""
    config |= {"methods": {"Padim": {"class_path": "Padim", "init_args": PADIM}}, "k_shot": 2}
    config["datasets"]["parts"] |= {"categories": ["bolt"]}
    config["datasets"]["parts"]["init_args"] |= {"val_split_mode": "synthetic"}
    both, one = (
        benchmark(**config | {"seeds": [0, 1]}),
        benchmark(**config | {"seeds": [1], "results": str(tmp_path / "b")}),
    )
    assert (both.status == "ok").all()
    pd.testing.assert_frame_equal(figures(both[both["seed"] == 1]), figures(one))


@pytest.mark.usefixtures("quick_runs")
def test_names_may_look_like_markup(config: dict[str, Any], capsys: pytest.CaptureFixture) -> None:
    config |= {"methods": {"plain [/b4]": PLAIN}, "k_shot": [1, 11], "seeds": 1}
    benchmark(**config, dry_run=True)
    benchmark(**config)
    assert capsys.readouterr().out.count("plain [/b4]") >= 2


def test_failing_model_is_a_row_and_the_others_go_on(
    config: dict[str, Any],
    breaking: Callable[[str], dict[str, Any]],
    capsys: pytest.CaptureFixture,
) -> None:
    config["methods"] = {"bad": breaking("raises"), "plain": PLAIN}
    table = benchmark(**config).set_index("method")
    assert set(table.loc["bad"].error) == {"RuntimeError: it is broken"}
    assert set(table.loc["bad"].train_on) == {"support"}  # the settings of a failed run are known
    assert set(table.loc["bad"].torch) == {torch.__version__}
    assert (table.loc["plain"].status == "ok").all()
    assert "Failed: bad on parts bolt, k = 1, seed 0" in capsys.readouterr().out.replace("\n", " ")


def test_faults_of_pictures_are_printed_once_or_fail_the_run(
    config: dict[str, Any],
    mvtec_root: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture,
) -> None:
    root = shutil.copytree(mvtec_root, tmp_path / "mine")
    shutil.copy(root / "bolt/train/good/000.png", root / "bolt/test/good/copy.png")
    (root / "cloth/test/good").rename(root / "cloth/test/OK")
    config["datasets"]["parts"]["init_args"]["root"] = str(root)
    config |= {"methods": {"plain": PLAIN, "other": PLAIN}, "k_shot": "all", "seeds": 1}
    table = benchmark(**config).set_index("category")
    assert set(table.loc["bolt", "status"]) == {"ok"}
    assert table.loc["cloth", "error"].str.contains("test/OK: would be tested as a defect").all()
    printed = capsys.readouterr().out.replace("\n", " ")
    assert printed.count("Warning: ") == printed.count("copy.png: is a copy of the support image") == 1


def test_test_images_of_one_kind_fail_the_run(config: dict[str, Any], mvtec_root: Path, tmp_path: Path) -> None:
    root = shutil.copytree(mvtec_root, tmp_path / "mine")
    shutil.rmtree(root / "cloth/test/hole")
    shutil.rmtree(root / "cloth/ground_truth")
    config["datasets"]["parts"]["init_args"]["root"] = str(root)
    table = benchmark(**config | {"methods": {"plain": PLAIN}, "k_shot": 1, "seeds": 1}).set_index("category")
    assert "must have normal and anomalous images, got 4 normal and 0 anomalous" in table.loc["cloth", "error"]
    assert table["image_AUROC"].isna().to_dict() == {"bolt": False, "cloth": True}


def test_k_above_the_images_of_a_category_is_a_row(config: dict[str, Any]) -> None:
    config |= {"methods": {"plain": PLAIN}, "k_shot": [2, 11], "seeds": 1}
    table = benchmark(**config).set_index(["category", "k_shot"])
    assert table.loc[("bolt", 2), "status"] == "ok"
    assert "got 11, but" in table.loc[("bolt", 11), "error"]
    assert "has 10. Lower `k_shot` or add images" in table.loc[("cloth", 11), "error"]


@pytest.mark.usefixtures("quick_runs")
def test_changed_configuration_is_not_mixed(config: dict[str, Any], capsys: pytest.CaptureFixture) -> None:
    config |= {"methods": {"plain": PLAIN}, "k_shot": 1, "seeds": 1}
    first = benchmark(**config)
    changed = PLAIN | {"init_args": PLAIN["init_args"] | {"statistic": "mean"}}
    second = benchmark(**config | {"methods": {"plain": changed}})
    assert len(second) == 2
    assert not set(first.key) & set(second.key)
    assert "2 runs of other configurations" in capsys.readouterr().out


@pytest.mark.usefixtures("quick_processes")
def test_processes_give_the_same_figures_and_outlive_one_that_dies(
    config: dict[str, Any],
    breaking: Callable[[str], dict[str, Any]],
    tmp_path: Path,
) -> None:
    config |= {"seeds": 1, "k_shot": 1}
    serial = benchmark(**config)
    methods = config["methods"] | {"dying": breaking("exits")}
    parallel = benchmark(**config | {"methods": methods, "results": str(tmp_path / "parallel"), "workers": 2})
    died = parallel.method == "dying"
    assert parallel[died].error.str.contains("ran out of memory").all()
    columns = [name for name in figures(parallel[~died]) if name in serial]
    pd.testing.assert_frame_equal(figures(parallel[~died])[columns], figures(serial)[columns])


@pytest.mark.slow
def test_ray_gives_the_same_figures(config: dict[str, Any], tmp_path: Path) -> None:
    ray = pytest.importorskip("ray")
    config |= {"seeds": 1, "k_shot": 1}
    serial = benchmark(**config)
    try:
        there = benchmark(**config | {"results": str(tmp_path / "ray"), "runner": "ray", "workers": 2})
    finally:
        ray.shutdown()
    pd.testing.assert_frame_equal(figures(there), figures(serial))


def test_ray_that_is_not_installed(config: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'anomalib-fewshot\[ray\]'"):
        benchmark(**config, runner="ray")


def test_serial_runs_have_no_workers(config: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="`workers` must not be set with `runner: serial`, got 4"):
        benchmark(**config, runner="serial", workers=4)


@pytest.mark.parametrize(("name", "value"), [("workers", 0), ("threads", 0), ("latency_runs", -1)])
def test_wrong_numbers(name: str, value: int, config: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=f"`{name}` must be at least {value + 1}, got {value}"):
        benchmark(**config | {name: value})


def test_configuration_of_the_docs(mvtec_root: Path) -> None:
    page = (CONFIGS.parent / "docs" / "benchmark.md").read_text(encoding="utf-8")
    text = page.split("## Configuration")[1].split("```yaml")[1].split("```")[0]
    text = text.replace("../model", str(CONFIGS / "model")).replace("./datasets/mine", str(mvtec_root))
    plan = benchmark(**yaml.safe_load(text.replace("screw, nut", "bolt, cloth")), dry_run=True)
    assert set(plan["method"]) >= {"Patchcore", "CoftAD", "CoftAD long num_steps=60", "CoftAD, no fine-tuning"}


def test_wrong_baseline(config: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"`baseline` must be the name of a method, got 'X'. Choose one of \['CoftAD'"):
        benchmark(**config, baseline="X")


def test_command_line_says_in_a_line_what_is_wrong(config: dict[str, Any], tmp_path: Path) -> None:
    config["methods"] = {"A": {"class_path": "CoftADD"}}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
    with pytest.raises(SystemExit, match="anomalib fewshot: The method 'A': .* Similar names: .'CoftAD'"):
        AnomalibCLI(["fewshot", "--config", str(tmp_path / "config.yaml")])


@pytest.mark.usefixtures("quick_runs")
def test_dry_run_estimates_by_what_was_measured(config: dict[str, Any], capsys: pytest.CaptureFixture) -> None:
    config["methods"] = {"plain": PLAIN}
    plan = benchmark(**config, dry_run=True)
    assert len(plan) == 8
    assert "No run is measured yet" in capsys.readouterr().out.replace("\n", " ")
    benchmark(**config)
    benchmark(**config, dry_run=True)
    assert "based on the median of finished runs" in capsys.readouterr().out.replace("\n", " ")


@pytest.mark.usefixtures("quick_runs")
def test_dry_run_leaves_the_table_as_it_is(config: dict[str, Any], mvtec_root: Path) -> None:
    config |= {"methods": {"plain": PLAIN}, "k_shot": 1, "seeds": 1, "root": mvtec_root}
    benchmark(**config)
    before = {path: path.read_bytes() for path in Path(config["results"]).rglob("*") if path.is_file()}
    benchmark(**config | {"methods": {"other": PLAIN}}, dry_run=True)
    assert {path: path.read_bytes() for path in Path(config["results"]).rglob("*") if path.is_file()} == before


def start(config: Path, **arguments: Any) -> subprocess.Popen:  # noqa: ANN401
    code = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); "  # a job of a shell ignores it
    code += "from anomalib.cli.cli import main; main()"
    command = [sys.executable, "-X", "faulthandler", "-W", "ignore", "-c", code, "fewshot", "--config", str(config)]
    return subprocess.Popen(command, **{"stdout": subprocess.DEVNULL} | arguments)


@pytest.mark.skipif(os.name != "posix", reason="it sends signals")
@pytest.mark.parametrize("workers", [None, pytest.param(2, marks=pytest.mark.slow)])
def test_ctrl_c_ends_with_a_line_and_the_report(
    config: dict[str, Any],
    breaking: Callable[[str], dict[str, Any]],
    tmp_path: Path,
    workers: int | None,
) -> None:
    """A terminal sends it to all processes of the command. Here it comes in the middle of a fit."""
    config |= {"methods": {"plain": PLAIN, "waits": breaking("waits")}, "k_shot": 1, "seeds": 1, "workers": workers}
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(config), encoding="utf-8")
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "start_new_session": True}
    process = start(path, cwd=tmp_path, **pipes)
    end = time.monotonic() + 240
    while not (list(Path(config["results"]).glob("runs/*.json")) and (tmp_path / "waiting").exists()):
        if time.monotonic() > end:
            process.send_signal(signal.SIGABRT)  # its fault handler prints the stack of each thread
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.1)
    os.killpg(process.pid, signal.SIGINT)
    try:
        out, err = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 130
    last = "anomalib fewshot: interrupted. Finished runs are kept. Run the same command to resume."
    assert err.splitlines()[-1] == last
    assert "Traceback" not in out + err
    assert len([line for line in err.splitlines() if " - anomalib." not in line]) == 1  # but for lines of the start
    assert "runs are stored, 0 of them failed. Report: " in out.replace("\n", " ")
    assert (Path(config["results"]) / "report.html").is_file()
    assert set(pd.read_csv(Path(config["results"]) / "results.csv").method) == {"plain"}


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="it looks into /proc")
def test_workers_end_with_a_killed_sweep(config: dict[str, Any], tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(config | {"workers": 2}), encoding="utf-8")
    process = start(path)
    while not list(Path(config["results"]).glob("runs/*.json")):
        time.sleep(0.2)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text(encoding="ascii").split()
    assert len(children) >= 2
    process.send_signal(signal.SIGKILL)
    process.wait()
    end = time.monotonic() + 60
    while any(Path(f"/proc/{child}").exists() for child in children):
        assert time.monotonic() < end
        time.sleep(0.2)


@pytest.mark.slow
def test_killed_three_times_and_two_at_once(config: dict[str, Any], tmp_path: Path) -> None:
    """Killed without warning it continues, and two processes share the runs: the rows are those of one left alone."""
    expected = benchmark(**config | {"results": str(tmp_path / "whole")})
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(config), encoding="utf-8")
    runs = Path(config["results"]) / "runs"
    for finished in (2, 5, 7):
        process = start(path)
        while process.poll() is None and len(list(runs.glob("*.json"))) < finished:
            time.sleep(0.05)
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert len(list(runs.glob("*.json"))) < len(expected)
    both = [start(path), start(path)]
    assert [process.wait(timeout=300) for process in both] == [0, 0]
    table = pd.read_csv(Path(config["results"]) / "results.csv", dtype=str, keep_default_na=False)
    whole = pd.read_csv(tmp_path / "whole" / "results.csv", dtype=str, keep_default_na=False)
    pd.testing.assert_frame_equal(figures(table), figures(whole))
    assert Path(Path(config["results"]) / "report.html").exists()
