# Copyright (C) 2026 anomalib-fewshot contributors
# SPDX-License-Identifier: Apache-2.0

"""What anomalib's command line prints: each message once with this package, and no change without it."""

import difflib
import json
import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml
from fresh_python import FreshPython

PROGRAM = """
import json, os, sys
commands = json.loads(sys.argv.pop())
sys.argv[1:] = sum(reversed(commands), [])  # names of all commands: the first word must be that of the benchmark
if os.environ["ANOMALIB_FEWSHOT_AUTOLOAD"] != "0":
    from anomalib_fewshot._autoload import install
    install()
from anomalib.cli.cli import main
from lightning import seed_everything
for command in commands:
    sys.argv[1:] = command
    seed_everything(0, verbose=False)  # the argument of this name has no effect in anomalib 2.7
    print("COMMAND", flush=True)
    main()
    sys.stdout.flush()
"""
STATISTIC = ["--model", "ImageStatistic", "--model.image_size", "32"]
TIMES = re.compile(r"\[\d\d/\d\d/\d\d [\d:]+\]|\d\d:\d\d:\d\d(,\d+)?|\d+[.:]\d\d+(it/s)?|/(with|without)/")
BAR = re.compile(r"%\||━")  # its lines depend on the speed of the machine
CPU = ["--trainer.accelerator", "cpu"]


@pytest.fixture(scope="module")
def run(fresh_python: FreshPython) -> Callable[..., list[list[str]]]:
    """Return a function that runs commands in one process, and returns the lines that they print to both streams.

    The first item of these is of the start-up.
    """

    def run_commands(
        folder: Path,
        commands: list[list[str]],
        *,
        with_package: bool = True,
        columns: int = 80,
    ) -> list[list[str]]:
        environment = {"COLUMNS": str(columns), "ANOMALIB_FEWSHOT_AUTOLOAD": str(int(with_package))}
        finished = fresh_python(
            PROGRAM,
            json.dumps(commands),
            program=str(folder / "anomalib"),  # as the console script is named
            cwd=folder,
            environment=environment,
            one_stream=True,
        )
        assert finished.returncode == 0, finished.stdout
        return [part.splitlines() for part in finished.stdout.split("COMMAND\n")]

    return run_commands


def messages(lines: list[str]) -> list[str]:
    """Return the lines that are not of a table or a progress bar."""
    words = (line.strip() for line in lines)
    return [line for line in words if re.match(r"[A-Za-z/]", line) and "━" not in line]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder whose path is longer than a line of the console."""
    return tmp_path_factory.mktemp("folder_with_a_name_that_does_not_fit_into_one_line_of_a_console_of_80_columns")


@pytest.fixture(scope="module")
def printed(run: Callable[..., list[list[str]]], folder: Path, mvtec_root: Path) -> dict[str, list[str]]:
    """Return the lines that each command prints."""
    pytest.importorskip("onnxscript")
    source = ["--data.source", "MVTecFolder", "--data.source.root", str(mvtec_root), "--data.source.category", "bolt"]
    data = ["--data", "FewShot", *source, "--data.source.num_workers", "0"]
    checkpoint = str(folder / "results/ImageStatistic" / mvtec_root.name / "bolt/v1/weights/lightning/model.ckpt")
    images = str(mvtec_root / "bolt" / "test" / "hole")
    own = {"class_path": "MVTecFolder", "init_args": {"root": str(mvtec_root)}, "categories": ["bolt"]}
    config = {
        "methods": {"Statistic": {"class_path": "ImageStatistic", "init_args": {"image_size": 32}}},
        "datasets": {"Own": own},
        "k_shot": [2],
        "seeds": 1,
        "results": str(folder / "benchmark"),
    }
    (folder / "benchmark.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
    commands = {
        "train": ["train", *STATISTIC, *CPU, *data, "--trainer.enable_model_summary", "false"],
        "fit": ["fit", *STATISTIC, *CPU, *data],
        "predict": ["predict", *STATISTIC, *CPU, "--data", images, "--ckpt_path", checkpoint],
        "export": ["export", *STATISTIC, *CPU, "--export_type", "onnx", "--ckpt_path", checkpoint],
        "fewshot": ["fewshot", "--config", str(folder / "benchmark.yaml")],
    }
    start, *parts = run(folder, list(commands.values()))
    assert messages(start) == []  # no warning of anomalib's own imports
    return dict(zip(commands, parts, strict=True))


@pytest.mark.parametrize("command", ["train", "fit", "predict", "export", "fewshot"])
def test_each_message_is_printed_once(printed: dict[str, list[str]], command: str) -> None:
    lines = messages(printed[command])
    assert [line for line, count in Counter(lines).items() if count > 1] == []
    assert not [line for line in lines if "Warning" in line or "INFO" in line]
    assert not [line for line in lines if "OpenVINO" in line or "entry point" in line or "experimental" in line]


@pytest.mark.parametrize(
    ("command", "title", "file"),
    [
        ("train", "Checkpoint", "v0/weights/lightning/model.ckpt"),
        ("train", "Support set", "v0/support.json"),
        ("train", "Heat maps", "v0/images"),
        ("fit", "Checkpoint", "v1/weights/lightning/model.ckpt"),
        ("predict", "Heat maps", "images"),
    ],
)
def test_paths_are_unbroken(printed: dict[str, list[str]], command: str, title: str, file: str) -> None:
    """A path is the last thing in its line, and can be copied."""
    (line,) = [line for line in printed[command] if line.startswith(f"{title}: ")]
    path = Path(line.partition(": ")[2])
    assert line.endswith(file)
    assert path.exists()


def test_training_prints_its_figures_in_few_lines(printed: dict[str, list[str]]) -> None:
    assert any("image_AUROC" in line for line in printed["train"])
    assert len(printed["train"]) <= 25


def test_plain_run_is_as_without_this_package(
    run: Callable[..., list[list[str]]],
    mvtec_root: Path,
    tmp_path: Path,
) -> None:
    """Patchcore on MVTec AD: metrics, files, parameters and lines are equal."""
    data = ["--data", "MVTecAD", "--data.root", str(mvtec_root), "--data.category", "bolt", "--data.num_workers", "0"]
    model = ["--model", "Patchcore", "--model.backbone", "resnet18", "--model.layers", "[layer1]"]
    model += ["--model.pre_trained", "false", "--model.pre_processor", "false"]
    command = ["train", *model, *CPU, *data]
    lines, files, states = [], [], []
    for name, with_package in (("with", True), ("without", False)):
        folder = tmp_path / name
        folder.mkdir()
        parts = run(folder, [command], with_package=with_package, columns=400)
        lines.append([" ".join(TIMES.sub("", line).split()) for part in parts for line in part if not BAR.search(line)])
        files.append(sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()))
        (checkpoint,) = folder.rglob("model.ckpt")
        states.append(torch.load(checkpoint, weights_only=False))
    assert files[0] == files[1]
    assert lines[0] == lines[1], "\n".join(difflib.unified_diff(*lines))
    assert states[0]["callbacks"].keys() == states[1]["callbacks"].keys()
    assert states[0]["state_dict"].keys() == states[1]["state_dict"].keys()
    for key, value in states[0]["state_dict"].items():
        torch.testing.assert_close(value, states[1]["state_dict"][key], rtol=0, atol=0, equal_nan=True)
