# Copyright (C) 2026 anomalib-fewshot contributors
# SPDX-License-Identifier: Apache-2.0

"""Commands and code of the README and the pages work, and their links exist."""

import re
import shlex
import shutil
from pathlib import Path

import pytest
from anomalib.cli import AnomalibCLI
from anomalib.engine import Engine
from anomalib.models import AnomalibModule
from small_models import SMALL

from anomalib_fewshot import CoftAD, FewShot, MVTecFolder, RegAD

ROOT = Path(__file__).parents[2]
PAGES = [
    *(ROOT / f"{name}.md" for name in ("README", "CONTRIBUTING", "CHANGELOG", "SECURITY", "CODE_OF_CONDUCT")),
    *sorted((ROOT / "docs").glob("*.md")),
    *sorted((ROOT / "docs" / "decisions").glob("*.md")),
    *sorted((ROOT / "docs" / "api").glob("*.md")),
    *sorted(ROOT.glob("anomalib_fewshot/**/README.md")),
]
LOGS = sorted((ROOT / "docs" / "research").glob("*.md"))  # their commands are those of earlier versions


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", page.read_text(encoding="utf-8"), flags=re.DOTALL)


def commands() -> list[str]:
    """Return the commands that train or fit, without those that leave something out (`...`)."""
    lines = [
        re.sub(r"\s#.*", "", line)
        for page in PAGES
        for block in blocks(page, "bash")
        for line in block.replace("\\\n", " ").splitlines()
    ]
    return sorted({line for line in lines if re.match(r"anomalib (train|fit)", line) and "..." not in line})


def run(code: str, capsys: pytest.CaptureFixture[str], *, small: bool) -> str:
    """Run code of a page in the current folder, as it is or with small models and few images. Return what it prints."""
    if small:
        for name in ("CoftAD", "RegAD"):
            arguments = ", ".join(f"{key}={value!r}" for key, value in SMALL[name].items())
            code = code.replace(f"{name}(", f"{name}({arguments}, ")
        code = code.replace('ELPV(category="mono"', 'ELPV(category="mono", num_test=20')
        code = code.replace('export_type="onnx"', 'export_type="torch"')  # test_contract.py has one to ONNX
    capsys.readouterr()
    exec(compile(code, "page", "exec"), {"__name__": "__main__"})  # noqa: S102
    return capsys.readouterr().out


SMALL_AND_AS_IT_IS = pytest.mark.parametrize("small", [True, pytest.param(False, marks=pytest.mark.slow)])


@SMALL_AND_AS_IT_IS
def test_python_of_getting_started(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    small: bool,
) -> None:
    monkeypatch.chdir(tmp_path)
    (code,) = blocks(ROOT / "docs" / "start.md", "python")
    run(code, capsys, small=small)
    assert list(tmp_path.rglob("model.pt" if small else "model.onnx"))
    assert list(tmp_path.rglob("support.json"))


@SMALL_AND_AS_IT_IS
@pytest.mark.parametrize(("page", "model"), [("own_data", CoftAD), ("reg_ad", RegAD)])
def test_python_of_the_docs(
    page: str,
    model: type[AnomalibModule],
    mvtec_root: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    small: bool,
) -> None:
    """It finds the checkpoint, the data and the new pictures that it names."""
    mine = tmp_path / "datasets" / "mine"
    shutil.copytree(mvtec_root / "bolt", mine / "screw")
    shutil.copytree(mine / "screw" / "train" / "good", tmp_path / "good")
    shutil.copytree(mine / "screw" / "test" / "hole", tmp_path / "new_images")
    engine = Engine(default_root_dir=tmp_path / "trained", enable_progress_bar=False, max_epochs=1)
    arguments = SMALL[model.__name__] if small else {}
    engine.fit(model(**arguments), datamodule=FewShot(MVTecFolder(mine, "screw", num_workers=0), k_shot=2))
    Path(engine.best_model_path).rename(tmp_path / "model.ckpt")
    monkeypatch.chdir(tmp_path)
    printed = [run(code, capsys, small=small) for code in blocks(ROOT / "docs" / f"{page}.md", "python")]
    if page == "own_data":
        scores, issues = printed
        assert sum("new_images" in line for line in scores.splitlines()) == 4
        assert not issues
    else:
        assert list(tmp_path.rglob("model.pt" if small else "model.onnx"))


@pytest.fixture(scope="module")
def checkpoint(mvtec_root: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """Return a RegAD's checkpoint: `MODEL.ckpt` of the pages."""
    engine = Engine(default_root_dir=tmp_path_factory.mktemp("network"), enable_progress_bar=False)
    model = RegAD(max_epochs=0, augment_support=False)
    engine.fit(model, datamodule=FewShot(MVTecFolder(mvtec_root, "bolt", num_workers=0), k_shot=1))
    return engine.best_model_path


@pytest.mark.parametrize("command", commands())
def test_command_is_understood(command: str, checkpoint: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every flag is known and every class is made; nothing is run."""
    monkeypatch.chdir(ROOT)
    command = command.replace("MODEL.ckpt", checkpoint)
    backbone = ["--model.pre_trained", "false"] if "Patchcore" in command else []  # there is no network
    cli = AnomalibCLI([*shlex.split(command)[1:], *backbone], run=False)
    assert cli.model is not None
    assert cli.datamodule is not None


def anchors(page: Path) -> set[str]:
    """Return the anchors of a page's headings, as hosts of repositories and MyST make them."""
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    headings = re.findall(r"^#+ (.*)$", text, flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", [*PAGES, *LOGS], ids=lambda page: str(page.relative_to(ROOT)))
def test_links_between_pages(page: Path) -> None:
    """Files and headings that a page links to exist. What the site alone makes is checked by its build."""
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    for target in re.findall(r"\]\((?!http)([^)]+)\)", text):
        path, _, anchor = target.partition("#")
        linked = page.parent / path if path else page
        assert linked.exists(), f"{page.name}: {target}"
        assert not anchor or anchor in anchors(linked), f"{page.name}: {target}"
