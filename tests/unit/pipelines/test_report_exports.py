# Copyright (C) 2026 anomalib-fewshot contributors
# SPDX-License-Identifier: Apache-2.0

"""Files next to the report: LaTeX tables, figures, scores of all images and references."""

import re
import shutil
import subprocess
from pathlib import Path
from xml.etree import ElementTree as ET  # noqa: S405  reads only files that the tests wrote

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from report_sweep import METHODS, report, sweep

from anomalib_fewshot.pipelines.plan.job import Job
from anomalib_fewshot.pipelines.report.export import reproduce_command
from anomalib_fewshot.pipelines.report.latex import escape_latex, to_latex
from anomalib_fewshot.pipelines.report.references import find_references
from anomalib_fewshot.pipelines.report.tables import Cell, Table
from anomalib_fewshot.pipelines.results.image_scores import find_category
from anomalib_fewshot.pipelines.results.outcome import Outcome
from anomalib_fewshot.pipelines.results.row import Row
from anomalib_fewshot.pipelines.results.store import Store

NAME = "[A] & B_1 {50 %} $x^2$ #~\\"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the results folder of a report about two methods, one of which has a name full of special characters."""
    folder = tmp_path_factory.mktemp("exports")
    methods = {NAME: METHODS["CoftAD"], "Padim": METHODS["Padim"]}
    report(folder, sweep(methods=methods, shots=(1, 4), seeds=2), "Padim")
    return folder


def check_latex(text: str) -> None:
    """Assert that braces, dollars and environments are balanced, and that all rows have one number of cells."""
    bare = re.sub(r"\\\\$|\\[&%$#_{}]", "", text, flags=re.MULTILINE)
    assert bare.count("{") == bare.count("}")
    assert bare.count("$") % 2 == 0
    assert re.findall(r"\\begin\{(\w+)\}", text) == ["table", "tabular"] * (text.count(r"\begin{table}"))
    assert re.findall(r"\\end\{(\w+)\}", text) == ["tabular", "table"] * (text.count(r"\begin{table}"))
    for part in bare.split(r"\begin{tabular}")[1:]:
        alignment = re.match(r"\{([lr]+)\}", part)
        assert alignment
        rows = [line for line in part.splitlines() if line.startswith("    {}")]
        assert rows
        assert {line.count("&") + 1 for line in rows} == {len(alignment.group(1))}
    for line in bare.splitlines():
        assert "%" not in line or line.startswith("% Requires")
        assert "#" not in line
        assert "_" not in line or r"\label" in line


def test_latex_tables(folder: Path) -> None:
    found = {path.name for path in (folder / "tables").iterdir()}
    categories = {
        f"RealMini-categories-{level}_{name}.tex"
        for level, names in {"image": ("AUROC", "AUPR", "F1Max"), "pixel": ("AUROC", "AUPRO", "AP", "F1Max")}.items()
        for name in names
    }
    means = {"RealMini-means-image_AUROC.tex", "RealMini-means-pixel_AUROC.tex"}
    assert found == categories | means | {f"RealMini-{name}.tex" for name in ("differences", "metrics", "cost")}
    for name in found:
        text = (folder / "tables" / name).read_text(encoding="utf-8")
        check_latex(text)
        assert text.isascii()
        assert escape_latex(NAME) in text
        assert r"\toprule" in text
    by_category = (folder / "tables" / "RealMini-categories-image_AUROC.tex").read_text(encoding="utf-8")
    assert by_category.count(r"\begin{table}") == 2  # k = 1 and k = 4
    assert r"\caption{RealMini, image AUROC by category. k = 4.}" in by_category
    assert r"elpv\_mono" in by_category


TABLE = r"""% Requires \usepackage{booktabs}.
\begin{table}
  \centering
  \caption{100 \% of \_}
  \label{tab:one}
  \begin{tabular}{lr}
    \toprule
    {}a & b \\
    \midrule
    {}[x] & \textbf{$-$0.5} {\scriptsize $\pm$ 1} \\
    \bottomrule
  \end{tabular}
\end{table}
"""


def test_latex_of_a_table() -> None:
    row = [Cell("[x]"), Cell("\N{MINUS SIGN}0.5", "\N{PLUS-MINUS SIGN} 1", best=True)]
    assert to_latex(Table("100 % of _", ["a", "b"], [row]), "one") == TABLE


def has_booktabs() -> bool:
    """Return whether LaTeX and the package booktabs are installed."""
    command = ["kpsewhich", "booktabs.sty"]
    return shutil.which("kpsewhich") is not None and subprocess.run(command, check=False, timeout=60).returncode == 0


@pytest.mark.skipif(not has_booktabs(), reason="LaTeX or booktabs is not installed")
def test_latex_compiles(folder: Path, tmp_path: Path) -> None:
    inputs = "\\clearpage\n".join(path.read_text(encoding="utf-8") for path in sorted((folder / "tables").iterdir()))
    packages = r"\usepackage[T1]{fontenc}\usepackage{booktabs}"
    document = rf"\documentclass{{article}}{packages}\begin{{document}}{inputs}\end{{document}}"
    (tmp_path / "all.tex").write_text(document, encoding="utf-8")
    command = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "all.tex"]
    subprocess.run(command, cwd=tmp_path, check=True, capture_output=True, timeout=120)


def test_files_of_an_earlier_report_are_removed(tmp_path: Path) -> None:
    """A user's own files and changed files stay."""
    report(tmp_path, sweep(shots=(1, 2), seeds=2), "Padim")
    figures, tables = tmp_path / "figures", tmp_path / "tables"
    (figures / "own.png").write_bytes(b"own")
    edited = tables / "RealMini-means-pixel_AUROC.tex"
    edited.write_text("edited", encoding="utf-8")
    earlier = {path.name for path in figures.iterdir()}
    assert "RealMini-pixel_AUROC.svg" in earlier
    report(tmp_path, sweep(shots=(1, 2), seeds=2, masked=()), "Padim")  # no pixel metrics
    assert earlier - {path.name for path in figures.iterdir()} == {
        f"RealMini-pixel_AUROC.{suffix}" for suffix in ("svg", "png")
    }
    assert (figures / "own.png").read_bytes() == b"own"
    assert edited.read_text(encoding="utf-8") == "edited"
    assert not (tables / "RealMini-categories-pixel_AUROC.tex").exists()
    assert (tables / "RealMini-means-image_AUROC.tex").exists()


def test_figures(folder: Path) -> None:
    """Each figure of the page is a readable SVG file and a PNG file that is transparent and not empty."""
    html = (folder / "report.html").read_text(encoding="utf-8")
    names = {path.stem for path in (folder / "figures").iterdir()}
    assert len(names) == html.count('<svg role="img"') == 6
    for name in names:
        svg = (folder / "figures" / f"{name}.svg").read_text(encoding="utf-8")
        assert "currentColor" not in svg
        assert "var(--" not in svg
        ET.fromstring(svg)  # noqa: S314
        image = np.asarray(Image.open(folder / "figures" / f"{name}.png").convert("RGBA"))
        assert image[0, 0, 3] == 0
        assert image[..., 3].max() == 255
    assert "[A] &amp; B_1" in (folder / "figures" / "RealMini-image_AUROC.svg").read_text(encoding="utf-8")


def test_scores_of_all_images(tmp_path: Path) -> None:
    """One row per image of the succeeded runs, in the order of the runs."""
    store = Store(tmp_path)
    single = Job("A", "parts", "bolt", 1, 0, {}, {}, {})
    both = Job("B", "parts", "", "all", 3, {}, {}, {}, unlabeled=4)
    rows = [
        Row.from_job(single, "bolt", image_AUROC=0.5),
        Row.from_job(both, "bolt", image_AUROC=0.5),
        Row.from_job(both, "nut", image_AUROC=0.5),
    ]
    store.save(single, Outcome(rows[:1], scores={"x, 1.png": [True, 0.1 + 0.2], "y.png": [False, -1.0]}))
    store.save(both, Outcome(rows[1:], scores={"d/nut/test/0.png": [False, 0.0], "d/bolt/test/0.png": [True, 1.0]}))
    table = pd.DataFrame([row.to_json() for row in rows])
    store.write_scores(table)
    scores = pd.read_csv(tmp_path / "scores.csv", float_precision="round_trip")
    assert list(scores["path"]) == ["x, 1.png", "y.png", "d/nut/test/0.png", "d/bolt/test/0.png"]
    assert list(scores["category"]) == ["bolt", "bolt", "nut", "bolt"]
    assert list(scores["label"]) == [1, 0, 0, 1]
    assert list(scores["score"]) == [0.1 + 0.2, -1.0, 0.0, 1.0]
    assert list(scores["k_shot"]) == ["1", "1", "all", "all"]
    assert list(scores["unlabeled"]) == [0, 0, 4, 4]
    store.write_scores(table.assign(status="failed"))
    assert len(pd.read_csv(tmp_path / "scores.csv")) == 0


def test_category_of_a_path() -> None:
    assert find_category("/nut/data/bolt/test/0.png", ["bolt", "nut"]) == "bolt"  # the root contains another name
    assert find_category("/data/other/0.png", ["bolt", "nut"]) == ""


def test_references(folder: Path) -> None:
    assert [reference.key for reference in find_references({})] == ["anomalib"]
    methods = {
        "A": {"class_path": "anomalib.models.Patchcore"},
        "B": {"class_path": "CoftAD"},
        "C": {"class_path": "CoftAD"},
        "D": {"class_path": "RegAD", "init_args": {"adversarial_weight": 0.1}},
        "E": {"class_path": "Stfpm"},
    }
    references = find_references({"methods": methods})
    assert [reference.key for reference in references] == [
        "anomalib",
        "patchcore",
        "coftad",
        "regad",
        "adversarial_loss",
    ]
    assert "  journal = {IEEE Transactions on Image Processing},\n  year = {2024}" in references[2].to_bibtex()
    assert "  eprint = {2402.18998},\n" in references[2].to_bibtex()
    assert references[1].to_bibtex().startswith("@inproceedings{patchcore,")
    for reference in references:
        text = reference.to_bibtex()
        assert text.count("{") == text.count("}")
    assert (folder / "references.bib").read_text(encoding="utf-8") == find_references({})[0].to_bibtex()


def test_command_to_reproduce(tmp_path: Path) -> None:
    assert reproduce_command({"results": "my results/a/"}) == "anomalib fewshot --config 'my results/a/config.yaml'"
    html, markdown = report(tmp_path, sweep(shots=(1,), seeds=2))
    for page in (html, markdown):
        assert "anomalib fewshot --config RESULTS/config.yaml" in page
