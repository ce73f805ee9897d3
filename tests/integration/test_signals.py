# Copyright (C) 2026 anomalib-fewshot contributors
# SPDX-License-Identifier: Apache-2.0

"""Ctrl-C and SIGTERM end each command in each phase: soon, with one line, and what was finished is kept."""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import yaml
from anomalib.cli import AnomalibCLI
from PIL import Image

pytestmark = pytest.mark.skipif(os.name != "posix", reason="it sends signals")

LIMIT = 5.0  # seconds until a command has ended
PATIENCE = 300.0  # seconds until a phase has begun, on a busy machine
NUM_NEW = 40
BOTH = (signal.SIGINT, signal.SIGTERM)
WORDS = {signal.SIGINT: "interrupted", signal.SIGTERM: "terminated"}

# The entry point of anomalib's console script, and the start-up hook where the package is not installed.
PROGRAM = """
from anomalib_fewshot._autoload import install

if __name__ == "__main__":
    install()
    print("started", flush=True)
    from anomalib.cli.cli import main

    main()
"""

# Models whose phases last until a signal comes. Each leaves a file when its phase begins.
SLOW = """
import hashlib
import time
from pathlib import Path

from anomalib_fewshot import CoftAD, ImageStatistic, UniAD


def wait(phase):
    Path(phase).touch()
    end = time.monotonic() + 600
    while time.monotonic() < end:
        time.sleep(0.01)


class SlowFit(ImageStatistic):
    def fit(self):
        wait("fit")


class SlowScores(ImageStatistic):
    def test_step(self, *args, **kwargs):
        wait("test")

    def predict_step(self, *args, **kwargs):
        wait("predict")


class SlowEpoch(UniAD):
    def training_step(self, *args, **kwargs):
        if self.current_epoch == 1:
            wait("epoch")
        return super().training_step(*args, **kwargs)


class Stubborn(ImageStatistic):
    "Computes for minutes outside of Python."

    def fit(self):
        Path("fit").touch()
        hashlib.pbkdf2_hmac("sha256", b"", b"", 10**9)


class Swallowing(ImageStatistic):
    "Goes on after an interrupt."

    def fit(self):
        try:
            wait("fit")
        except KeyboardInterrupt:
            time.sleep(600)
"""


class Command:
    """A command in a process group of its own, as in a terminal, with its output in files."""

    def __init__(self, folder: Path, *arguments: str) -> None:
        self.folder = folder
        self.name = arguments[0]
        script = folder / "anomalib"
        script.write_text(PROGRAM, encoding="utf-8")
        (folder / "slow_models.py").write_text(SLOW, encoding="utf-8")
        paths = [str(folder), os.environ.get("PYTHONPATH", ""), str(Path(__file__).parents[2])]
        before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
        with (folder / "out").open("wb") as out, (folder / "err").open("wb") as err:
            self.process = subprocess.Popen(
                [sys.executable, "-W", "ignore", script, *arguments],
                cwd=folder,
                env=os.environ | {"PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"},
                stdout=out,
                stderr=err,
                start_new_session=True,
            )
        signal.signal(signal.SIGINT, before)

    def wait_for(self, is_reached: Callable[[], object]) -> None:
        """Wait until a phase has begun."""
        end = time.monotonic() + PATIENCE
        while not is_reached():
            assert self.process.poll() is None, self.output()
            assert time.monotonic() < end, self.output()
            time.sleep(0.02)

    def wait_for_file(self, pattern: str) -> None:
        """Wait until a file is there."""
        self.wait_for(lambda: [*self.folder.glob(pattern)])

    def output(self) -> str:
        """Return what the command has printed."""
        return (self.folder / "out").read_text(encoding="utf-8") + (self.folder / "err").read_text(encoding="utf-8")

    def end(self, signum: signal.Signals, *, group: bool = False) -> str:
        """Send a signal, check how the command ends, and return what its last line says after the reason."""
        before = (self.folder / "err").stat().st_size
        start = time.monotonic()
        (os.killpg if group else os.kill)(self.process.pid, signum)
        try:
            self.process.wait(timeout=60)
            seconds = time.monotonic() - start
            time.sleep(0.2)  # a process that its parent has killed takes a moment
            left = running(self.process.pid)
        finally:
            for pid in [self.process.pid, *running(self.process.pid)]:
                kill(pid)
        print(f"{self.name}: {seconds:.2f} s")
        assert seconds < LIMIT
        assert self.process.returncode == 128 + signum, self.output()
        lines = (self.folder / "err").read_bytes()[before:].decode().splitlines()
        prefix = f"anomalib {self.name}: {WORDS[signum]}."
        assert len(lines) == 1, lines
        assert lines[0].startswith(prefix)
        assert "Traceback" not in self.output()
        assert not left
        assert not [*self.folder.rglob("*.part")]
        return lines[0][len(prefix) :].strip()


def running(session: int) -> list[int]:
    """Return the processes of a session, where the system tells."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _, _, own = path.read_text(encoding="utf-8").rpartition(")")[2].split()[:4]
        except OSError:  # it has ended
            continue
        if int(own) == session and state != "Z":
            found.append(int(path.parent.name))
    return found


def kill(pid: int) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


def few_shot(root: Path, model: str, *, workers: int = 0) -> list[str]:
    """Return the arguments of a model, on few images, that writes into the current folder."""
    statistic = ["--model.statistic", "std", "--model.image_size", "32"]
    network = ["--model.backbone", "resnet10t", "--model.pre_trained", "false", "--model.image_size", "128"]
    network += ["--model.num_steps", "4", "--model.warmup_steps", "1"]
    return [
        *("--model", f"slow_models.{model}", *(network if model == "SlowEpoch" else statistic)),
        *("--data", "FewShot", "--data.source", "MVTecFolder", "--data.source.root", str(root)),
        *("--data.source.category", "bolt", "--data.source.num_workers", str(workers)),
        *("--trainer.accelerator", "cpu", "--trainer.logger", "false"),
    ]


def pictures(folder: Path, root: Path) -> list[str]:
    """Make good and new pictures, and return the arguments that name them."""
    for name in ("good", "new"):
        (folder / name).mkdir()
    for number in range(2):
        shutil.copy(root / "bolt/train/good" / f"{number:03}.png", folder / "good")
    for number in range(NUM_NEW):
        with Image.open(root / "bolt/test/good" / f"{number % 4:03}.png") as image:
            image.resize((600, 600)).save(folder / "new" / f"{number:03}.png")
    return ["--new", "new", "--out", "runs"]


def modified(folder: Path) -> dict[str, int]:
    """Return when the runs in a folder were written."""
    return {path.name: path.stat().st_mtime_ns for path in folder.glob("*.json")}


# What is run by default: one command of each kind.


def test_terminated_inspection_is_resumed(
    mvtec_root: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    command = Command(tmp_path, "inspect", "--good", "good", *pictures(tmp_path, mvtec_root))
    lines = tmp_path / "runs/v0/scored.jsonl"
    command.wait_for(lambda: lines.is_file() and lines.stat().st_size)
    hint = command.end(signal.SIGTERM)
    assert hint.endswith("To resume: anomalib inspect --resume runs/v0")
    scored = pd.read_csv(tmp_path / "runs/v0/scores.csv")
    assert 0 < len(scored) < NUM_NEW
    assert (tmp_path / "runs/v0/index.html").is_file()
    for path in (tmp_path / "new").glob("*.png"):  # leave the resumed run one to score
        if path.name != f"{NUM_NEW - 1:03}.png" and path.name not in set(scored.path):
            path.unlink()
    monkeypatch.chdir(tmp_path)
    AnomalibCLI(["inspect", "--resume", "runs/v0"])
    assert len(pd.read_csv(tmp_path / "runs/v0/scores.csv")) == len(scored) + 1


def test_interrupted_training_is_not_tested(mvtec_root: Path, tmp_path: Path) -> None:
    """Of worker processes, which a terminal interrupts too."""
    command = Command(tmp_path, "train", *few_shot(mvtec_root, "SlowFit", workers=2))
    command.wait_for_file("fit")
    command.end(signal.SIGINT, group=True)
    assert not [*tmp_path.rglob("*.ckpt")]
    assert not [*tmp_path.rglob("support.json")]
    assert "Test metric" not in command.output()


# The other phases, commands and signals.


@pytest.mark.slow
@pytest.mark.parametrize("signum", BOTH)
@pytest.mark.parametrize("name", ["inspect", "fewshot", "fit", "predict"])
def test_imports(name: str, signum: signal.Signals, tmp_path: Path) -> None:
    arguments = ("--good", ".", "--new", ".") if name == "inspect" else ("--model", "CoftAD")
    command = Command(tmp_path, name, *arguments)
    command.wait_for(lambda: "started" in command.output())
    time.sleep(0.5)
    assert command.end(signum) == ""


@pytest.mark.slow
@pytest.mark.parametrize("signum", BOTH)
def test_training_of_inspect(signum: signal.Signals, mvtec_root: Path, tmp_path: Path) -> None:
    command = Command(tmp_path, "inspect", "--good", "good", *pictures(tmp_path, mvtec_root))
    command.wait_for_file("runs/v0/run.json")
    command.end(signum)
    assert not [*(tmp_path / "runs").iterdir()]  # there is nothing to resume


@pytest.mark.slow
def test_watch_ends_as_usual_with_an_interrupt(mvtec_root: Path, tmp_path: Path) -> None:
    arguments = pictures(tmp_path, mvtec_root)
    for path in sorted((tmp_path / "new").glob("*.png"))[2:]:
        path.unlink()
    first = Command(tmp_path, "inspect", "--good", "good", *arguments)
    assert first.process.wait(timeout=PATIENCE) == 0, first.output()
    for signum, status in ((signal.SIGINT, 0), (signal.SIGTERM, 143)):
        command = Command(tmp_path, "inspect", "--model", "runs/v0", *arguments[:-1], f"watch{status}", "--watch")
        lines = tmp_path / f"watch{status}/v0/scored.jsonl"
        command.wait_for(lambda lines=lines: lines.is_file() and lines.read_bytes().count(b"\n") == 2)
        if status:
            command.end(signum)
        else:
            command.process.send_signal(signum)
            assert command.process.wait(timeout=60) == 0
        assert "2 new pictures" in command.output()
        assert len(pd.read_csv(tmp_path / f"watch{status}/v0/scores.csv")) == 2


@pytest.mark.slow
@pytest.mark.parametrize("signum", BOTH)
@pytest.mark.parametrize("model", ["SlowFit", "SlowEpoch"])
def test_fit(model: str, signum: signal.Signals, mvtec_root: Path, tmp_path: Path) -> None:
    command = Command(tmp_path, "fit", *few_shot(mvtec_root, model, workers=2))
    command.wait_for_file("fit" if model == "SlowFit" else "epoch")
    command.end(signum)
    assert not [*tmp_path.rglob("*.ckpt")]


@pytest.mark.slow
@pytest.mark.parametrize("signum", BOTH)
@pytest.mark.parametrize("model", ["Stubborn", "Swallowing"])
def test_fit_that_does_not_end_by_itself(model: str, signum: signal.Signals, mvtec_root: Path, tmp_path: Path) -> None:
    command = Command(tmp_path, "fit", *few_shot(mvtec_root, model))
    command.wait_for_file("fit")
    command.end(signum)
    assert not [*tmp_path.rglob("*.ckpt")]


@pytest.mark.slow
def test_second_interrupt_ends_at_once(mvtec_root: Path, tmp_path: Path) -> None:
    command = Command(tmp_path, "fit", *few_shot(mvtec_root, "Swallowing"))
    command.wait_for_file("fit")
    command.process.send_signal(signal.SIGINT)
    time.sleep(1.5)
    start = time.monotonic()
    command.end(signal.SIGINT)
    assert time.monotonic() - start < 2


@pytest.mark.slow
@pytest.mark.parametrize("signum", BOTH)
def test_finished_fit_is_kept(signum: signal.Signals, mvtec_root: Path, tmp_path: Path) -> None:
    """In the test that follows a fit, and in a prediction by its checkpoint."""
    command = Command(tmp_path, "train", *few_shot(mvtec_root, "SlowScores", workers=2))
    command.wait_for_file("test")
    command.end(signum)
    (checkpoint,) = (path for path in tmp_path.rglob("*.ckpt") if not path.parent.parent.is_symlink())
    model = few_shot(mvtec_root, "SlowScores")[:6]
    arguments = ["--data", str(mvtec_root / "bolt/test/good"), "--ckpt_path", str(checkpoint)]
    command = Command(tmp_path, "predict", *model, *arguments, "--trainer.logger", "false")
    command.wait_for_file("predict")
    command.end(signum)
    assert checkpoint.is_file()


@pytest.fixture
def sweep(mvtec_root: Path, tmp_path: Path) -> dict[str, Any]:
    """Return a benchmark of a method that finishes and of one that waits."""
    statistic = {"statistic": "std", "image_size": 64}
    return {
        "methods": {
            "plain": {"class_path": "ImageStatistic", "init_args": statistic},
            "waits": {"class_path": "slow_models.SlowFit", "init_args": statistic},
        },
        "datasets": {"parts": {"class_path": "MVTecFolder", "init_args": {"root": str(mvtec_root)}}},
        "k_shot": [1],
        "seeds": 1,
        "results": str(tmp_path / "sweep"),
        "accelerator": "cpu",
        "latency_runs": 0,
    }


@pytest.mark.slow
@pytest.mark.parametrize("signum", BOTH)
@pytest.mark.parametrize("runner", ["serial", "processes", "ray"])
def test_benchmark_is_resumed(runner: str, signum: signal.Signals, sweep: dict[str, Any], tmp_path: Path) -> None:
    if runner == "ray":
        pytest.importorskip("ray")
    if runner != "serial":
        sweep["workers"] = 2
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(sweep | {"runner": runner}), encoding="utf-8")
    command = Command(tmp_path, "fewshot", "--config", "config.yaml")
    command.wait_for_file("fit")
    command.wait_for_file("sweep/runs/*.json")
    hint = command.end(signum)
    assert hint == "Finished runs are kept. Run the same command to resume."
    before = modified(tmp_path / "sweep/runs")
    assert before
    (tmp_path / "fit").unlink()
    command = Command(tmp_path, "fewshot", "--config", "config.yaml")
    command.wait_for_file("fit")
    command.end(signum)
    assert f"{len(before)} of 4 runs are already finished." in command.output()
    assert before.items() <= modified(tmp_path / "sweep/runs").items()


@pytest.mark.slow
def test_other_runs_are_left_alone() -> None:
    """A model and a data module of anomalib."""
    code = """
import signal, sys
from anomalib_fewshot._autoload import install
before = [signal.getsignal(signum) for signum in (signal.SIGINT, signal.SIGTERM)]
sys.argv = ["anomalib", "train", "--model", "Padim", "--data", "MVTecAD"]
install()
import anomalib.cli.cli
print(before == [signal.getsignal(signum) for signum in (signal.SIGINT, signal.SIGTERM)], signal.set_wakeup_fd(-1))
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.split() == ["True", "-1"]
