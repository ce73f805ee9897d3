# Copyright (C) 2026 anomalib-fewshot contributors
# SPDX-License-Identifier: Apache-2.0

"""Documentation: examples run, figures and lists are current, and the example plug-in works."""

import ast
import re
import runpy
import subprocess
import sys
from importlib.metadata import metadata
from pathlib import Path
from xml.etree import ElementTree as ET  # noqa: S405  of files of this repository

import matplotlib as mpl
import matplotlib.pyplot as plt
import pandas as pd
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


def test_tables_are_current() -> None:
    """README and documentation show the committed results."""
    tables = runpy.run_path(str(DOCS / "results" / "make_tables.py"))
    runs = tables["read"](tables["STANDING"])
    pages = tables["pages"]()
    used = {name for page in pages for name in re.findall(r"<!-- table: (.*?) -->", page.read_text(encoding="utf-8"))}
    assert used == set(tables["TABLES"])
    for page in pages:
        text = page.read_text(encoding="utf-8")
        assert tables["fill"](text, runs) == text, "run `make tables`"


def test_results_are_complete() -> None:
    """Each method has five support sets of each category and k, which are the same as those of the other methods."""
    runs = pd.read_csv(DOCS / "results" / "standing.csv", dtype={"support": str})
    assert (runs["status"] == "ok").all()
    assert (runs.groupby(["method", "category", "k_shot"])["seed"].nunique() == 5).all()
    assert runs.groupby(["category", "k_shot", "seed"])["support"].agg(lambda hashes: len(set(hashes)) == 1).all()
    for (method, dataset), block in runs.groupby(["method", "dataset"]):
        shots = set(block["k_shot"])
        is_complete = method in {"CoftAD", "Patchcore", "RegAD", "UniAD"}
        assert shots == {1, 2, 4, 8} if is_complete else 4 in shots, (method, dataset)
        assert (block.groupby("k_shot")["category"].nunique() == block["category"].nunique()).all()


def test_methods_have_the_same_backbone_weights() -> None:
    """RegAD trains its backbone on other categories. The image statistics have no backbone."""
    runs = pd.read_csv(DOCS / "results" / "standing.csv")
    runs = runs[~runs["method"].isin(["RegAD", "CoftAD, random weights"])].dropna(subset="backbone_weights")
    assert len(set(runs["backbone_weights"])) == 1
    assert {"CoftAD", "Patchcore", "UniAD"} <= set(runs["method"])


def test_figures_are_current() -> None:
    figures = runpy.run_path(str(DOCS / "figures" / "draw.py"))["FIGURES"]
    assert {path.stem for path in (DOCS / "figures").glob("*.svg")} == set(figures)
    for name, draw in figures.items():
        text = (DOCS / "figures" / f"{name}.svg").read_text(encoding="utf-8")
        assert text == draw(), "run `python docs/figures/draw.py`"
        assert ET.fromstring(text).get("aria-label")  # noqa: S314


def test_command_line_reference_is_current() -> None:
    render = runpy.run_path(str(DOCS / "make_command_line.py"))["render"]
    text = (DOCS / "command_line.md").read_text(encoding="utf-8")
    assert text == render(), "run `python docs/make_command_line.py`"
    assert re.findall(r"^\|.*\| *\|$", text, flags=re.MULTILINE) == []  # each argument has a meaning


def texts_of_package() -> list[str]:
    """Return all string literals of the package. Placeholders of f-strings are empty."""
    texts = []
    for path in sorted((ROOT / "anomalib_fewshot").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                texts.append(node.value)
            if isinstance(node, ast.JoinedStr):
                parts = [part.value for part in node.values if isinstance(part, ast.Constant)]  # noqa: PD011
                texts.append("".join(map(str, parts)))
    return texts


def test_troubleshooting_lists_messages_of_the_package() -> None:
    page = (DOCS / "troubleshooting.md").read_text(encoding="utf-8")
    texts = texts_of_package()
    for section in re.split(r"^## ", page, flags=re.MULTILINE):
        if section.startswith("Messages: "):
            table = section.split("\n\n")[1]
            for message in re.findall(r"^\| (.+?) \| ", table, flags=re.MULTILINE)[1:]:
                for part in message.split(" ... "):
                    assert any(part in text for text in texts), message


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


@pytest.mark.parametrize("path", sorted((ROOT / ".github" / "workflows").iterdir()), ids=lambda path: path.stem)
def test_actions_are_pinned_by_hash(path: Path) -> None:
    """A tag of an action can be moved to other code, a hash cannot. The comment is the version, for the reader."""
    lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if "uses:" in line]
    assert lines
    for line in lines:
        assert re.fullmatch(r"(- )?uses: [\w-]+/[\w/-]+@[0-9a-f]{40} # v\d+\.\d+\.\d+", line), line
