# Copyright (C) 2026 anomalib-fewshot contributors
# SPDX-License-Identifier: Apache-2.0

"""Documentation: examples run, figures and lists are current, and the example plug-in works."""

import re
import runpy
import subprocess
import sys
from importlib.metadata import metadata
from pathlib import Path
from xml.etree import ElementTree as ET  # noqa: S405  of files of this repository

import matplotlib as mpl
import matplotlib.pyplot as plt
import pytest
import yaml
from fresh_python import FreshPython

import anomalib_fewshot

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"


@pytest.mark.parametrize("script", sorted((DOCS / "gallery").glob("plot_*.py")), ids=lambda path: path.stem)
def test_example_runs(script: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    mpl.use("agg")
    runpy.run_path(str(script))
    assert plt.get_fignums()
    plt.close("all")
    assert not list(tmp_path.iterdir())  # it writes no files to the working directory


def test_plot_agrees_with_the_model_pages() -> None:
    example = runpy.run_path(str(DOCS / "gallery" / "plot_which_model.py"))
    plt.close("all")
    assert set(example["curves"]) == {"CoftAD", "anomalib's Patchcore", "RegAD", "UniAD"}
    assert all(len(cells) == 4 for cells in example["curves"].values())
    assert len(example["datasets"]) == 5
    assert all(len(values) == 4 for methods in example["datasets"].values() for values in methods.values())
    shown = (DOCS / "which_model.md").read_text(encoding="utf-8")
    for cells in example["curves"].values():  # the table agrees with the model pages
        assert " ".join(f"{example['numbers'](cell)[0]:.3f}"[1:] for cell in cells) in shown


def test_figures_are_current() -> None:
    figures = runpy.run_path(str(DOCS / "figures" / "draw.py"))["FIGURES"]
    assert {path.stem for path in (DOCS / "figures").glob("*.svg")} == set(figures)
    for name, draw in figures.items():
        text = (DOCS / "figures" / f"{name}.svg").read_text(encoding="utf-8")
        assert text == draw(), "run `python docs/figures/draw.py`"
        assert ET.fromstring(text).get("aria-label")  # noqa: S314


def test_boxes_contain_their_text_and_do_not_overlap() -> None:
    """A letter is at most 8 pixels wide in a title and 7 below it."""
    draw = runpy.run_path(str(DOCS / "figures" / "draw.py"))
    for figure in draw["FIGURES"].values():
        svg = ET.fromstring(figure())  # noqa: S314
        space = "{http://www.w3.org/2000/svg}"
        for text in svg.iter(f"{space}text"):
            for number, line in enumerate(text.iter(f"{space}tspan")):
                assert len(line.text or "") * (7 if number else 8) < draw["WIDTH"] + 8, line.text
        corners = [(box.get("x"), box.get("y")) for box in svg.iter(f"{space}rect")]
        assert len(corners) == len(set(corners))


def test_reference_lists_the_public_names() -> None:
    text = (DOCS / "api" / "index.md").read_text(encoding="utf-8")
    listed = dict(re.findall(r":py:obj:`~(anomalib_fewshot\.\w+)\.(\w+)`", text)[::-1])
    names = re.findall(r":py:obj:`~[\w.]+\.(\w+)`", text)
    assert sorted(names) == sorted(anomalib_fewshot.__all__)
    assert all((DOCS / "api" / f"{module.rpartition('.')[2]}.md").exists() for module in listed)


def test_example_package_trains_from_the_command_line(fresh_python: FreshPython, tmp_path: Path) -> None:
    site = tmp_path / "site"
    package = tmp_path / "package"
    source = DOCS / "examples" / "plugin_package"
    for path in [source / "pyproject.toml", *source.glob("*/*.py")]:  # a build writes into the folder
        copy = package / path.relative_to(source)
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes(path.read_bytes())
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(site), str(package)]
    subprocess.run(pip, check=True, cwd=tmp_path)
    command = "train --model MeanImage --data FewShot --data.source Stripes --data.k_shot 4 --model.visualizer false"
    code = f"import sys; sys.path.insert(0, {str(site)!r})\n"
    code += "from anomalib_fewshot._autoload import install; install()\n"
    code += "from anomalib.cli.cli import main; main()"
    result = fresh_python(code, *command.split(), program="anomalib", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert re.findall(r"image_AUROC\W+([\d.]+)", result.stdout) == ["1.0"]
    run = tmp_path / "results" / "MeanImage" / "stripes" / "v0"
    assert (run / "weights" / "lightning" / "model.ckpt").exists()
    assert (run / "support.json").exists()


def test_release_files_agree() -> None:
    project = metadata("anomalib-fewshot")
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["version"] == anomalib_fewshot.__version__
    assert citation["title"] == project["Name"]
    assert citation["license"] == project["License-Expression"]
    test = yaml.safe_load((ROOT / ".github" / "workflows" / "test.yml").read_text(encoding="utf-8"))
    tested = test["jobs"]["test"]["strategy"]["matrix"]["python"]
    classifiers = project.get_all("Classifier")
    assert tested == [name.rpartition(" ")[2] for name in classifiers if "Python :: 3." in name]


@pytest.mark.parametrize("path", sorted((ROOT / ".github").rglob("*.yml")), ids=lambda path: path.stem)
def test_workflow_is_yaml_and_its_targets_exist(path: Path) -> None:
    workflow = yaml.safe_load(path.read_text(encoding="utf-8"))
    targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), flags=re.MULTILINE)
    commands = [step.get("run", "") for job in workflow.get("jobs", {}).values() for step in job.get("steps", [])]
    assert {target for text in commands for target in re.findall(r"\bmake ([\w-]+)", text)} <= set(targets)
