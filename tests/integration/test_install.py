# Copyright (C) 2026 anomalib-fewshot contributors
# SPDX-License-Identifier: Apache-2.0

"""What pip leaves and takes away: the package as a wheel and as an editable install."""

import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

CHECK = """
import warnings
warnings.simplefilter("ignore", FutureWarning)
from anomalib.models import get_model
from anomalib.cli import AnomalibCLI
model = get_model({"class_path": "CoftAD"}, pre_trained=False)
cli = AnomalibCLI(["train", "--model", "CoftAD", "--data", "FewShot", "--data.source", "ELPV"], run=False)
print(type(cli.model) is type(model) is type(get_model("coft_ad")), type(cli.datamodule.source).__name__)
"""


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the interpreter of an empty environment that sees the packages of this one, but not its start-up files."""
    folder = tmp_path_factory.mktemp("environment")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
    python = folder / "bin" / "python"
    code = "import sysconfig; print(sysconfig.get_path('purelib'))"
    packages = subprocess.run([python, "-c", code], capture_output=True, text=True, check=True).stdout.strip()
    (Path(packages) / "outer.pth").write_text(sysconfig.get_path("purelib"), encoding="utf-8")
    return python


def pip(python: Path, *arguments: str) -> None:
    command = [sys.executable, "-m", "pip", "--python", str(python), "--quiet", *arguments]
    subprocess.run(command, check=True, cwd=python.parent)


def left_behind(python: Path) -> set[str]:
    found = python.parents[1].glob("lib/python*/site-packages/**/*fewshot*")
    return {path.name for path in found}


@pytest.mark.parametrize("kind", ["wheel", pytest.param("editable", marks=pytest.mark.slow)])
def test_names_are_known_after_installation_and_nothing_is_left_after_removal(python: Path, kind: str) -> None:
    flags = ["--editable"] if kind == "editable" else []
    pip(python, "install", "--no-deps", "--force-reinstall", *flags, str(ROOT))
    assert {"anomalib_fewshot.pth", "anomalib_fewshot.start"} <= left_behind(python)
    result = subprocess.run([python, "-c", CHECK], capture_output=True, text=True, check=False, cwd=python.parent)
    assert result.stdout.split() == ["True", "ELPV"], result.stderr
    pip(python, "uninstall", "--yes", "anomalib-fewshot")
    assert left_behind(python) == set()
