# Copyright (C) 2026 anomalib-fewshot contributors
# SPDX-License-Identifier: Apache-2.0

"""The start-up hook, and the entry points of any installed package."""

import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from pkgutil import resolve_name

import anomalib.data
import anomalib.models
import pytest
from anomalib.cli import pipelines
from fresh_python import FreshPython

import anomalib_fewshot
from anomalib_fewshot import plugin
from anomalib_fewshot._autoload import install as install_hook

ROOT = Path(anomalib_fewshot.__file__).parents[1]
STARTUP = ROOT / "anomalib_fewshot" / "startup"

THIRD_PARTY = """
from anomalib.data import MVTecAD
from anomalib.pipelines import Benchmark

class OtherData(MVTecAD): ...
class OtherPipeline(Benchmark):
    "Another pipeline."
class OtherModel: ...
"""


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], None]]:
    """Return a function that installs a package with these entry points. anomalib forgets them afterwards."""
    hosts = (vars(anomalib.models), vars(anomalib.data), pipelines.PIPELINE_REGISTRY)
    saved = [dict(host) for host in hosts]
    listed = [list(anomalib.models.__all__), list(anomalib.data.__all__), set(anomalib.models.ALLOWED_MODULES)]

    def create(entry_points: str) -> None:
        info = tmp_path / "third_party-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text("Name: third-party\nVersion: 1.0\n", encoding="utf-8")
        (info / "entry_points.txt").write_text(entry_points, encoding="utf-8")
        (tmp_path / "third_party.py").write_text(THIRD_PARTY, encoding="utf-8")
        monkeypatch.syspath_prepend(tmp_path)

    yield create
    for host, content in zip(hosts, saved, strict=True):
        for name in set(host) - set(content):
            del host[name]
        host.update(content)
    anomalib.models.__all__[:], anomalib.data.__all__[:] = listed[:2]
    anomalib.models.ALLOWED_MODULES.intersection_update(listed[2])
    sys.modules.pop("third_party", None)


def test_installed_packages_are_registered(install: Callable[[str], None]) -> None:
    install("""
        [anomalib.models]
        OtherModel = third_party:OtherModel
        [anomalib.data]
        OtherData = third_party:OtherData
        [anomalib.pipelines]
        other = third_party:OtherPipeline
    """)
    plugin.register()
    assert anomalib.data.get_datamodule({"class_path": "OtherData"}).name == "OtherData"
    assert type(anomalib.models.get_model({"class_path": "OtherModel"})).__module__ == "third_party"
    assert type(anomalib.models.get_model({"class_path": "third_party.OtherModel"})).__name__ == "OtherModel"
    assert pipelines.pipeline_subcommands()["other"] == {"description": "Another pipeline."}
    assert "OtherModel" in anomalib.models.__all__


def test_registering_again_changes_nothing(recwarn: pytest.WarningsRecorder) -> None:
    before = list(anomalib.models.__all__)
    plugin.register()
    assert anomalib.models.__all__ == before
    assert [str(warning.message) for warning in recwarn] == []


@pytest.mark.parametrize("value", ["third_party:Missing", "no_such_module:Model"])
def test_broken_package_is_one_warning(install: Callable[[str], None], value: str) -> None:
    install(f"[anomalib.models]\nBroken = {value}")
    with pytest.warns(UserWarning, match="`Broken` of the package `third-party` is not registered") as caught:
        plugin.register("anomalib.models")
    assert len(caught) == 1
    assert not hasattr(anomalib.models, "Broken")


@pytest.mark.parametrize("name", ["Padim", "CoftAD", "logger"])
def test_name_of_anomalib_is_not_overwritten(install: Callable[[str], None], name: str) -> None:
    install(f"[anomalib.models]\n{name} = third_party:OtherModel")
    before = getattr(anomalib.models, name)
    with pytest.warns(UserWarning, match=f"`{name}` of the package `third-party` is not registered"):
        plugin.register("anomalib.models")
    assert getattr(anomalib.models, name) is before


def test_unknown_group() -> None:
    with pytest.raises(ValueError, match="`group` must be one of .* got 'anomalib.metrics'"):
        plugin.register("anomalib.metrics")


@pytest.fixture
def run(fresh_python: FreshPython, tmp_path: Path) -> Callable[..., str]:
    """Return a function that runs code with the start-up files read as from site-packages, and returns the output."""

    def run_code(code: str, **environment: str) -> str:
        shutil.copy(STARTUP / "hook.txt", tmp_path / "anomalib_fewshot.pth")
        start = "import site, warnings; warnings.filterwarnings('ignore', category=FutureWarning)\n"
        start += f"site.addsitedir({str(tmp_path)!r})\n"
        finished = fresh_python(start + code, cwd=ROOT, environment=environment)
        assert not finished.stderr
        assert finished.returncode == 0
        return finished.stdout

    return run_code


def test_hook_imports_nothing_where_anomalib_is_not_used() -> None:
    """Two small files of this package, and not one module beyond those that every interpreter has at its start."""
    code = f"""
import os, sys
sys.path.insert(0, {str(ROOT)!r})
before = set(sys.modules)
import anomalib_fewshot._autoload
anomalib_fewshot._autoload.install()
print(*sorted(set(sys.modules) - before), len(sys.meta_path))
"""
    command = [sys.executable, "-I", "-S", "-c", code]  # without site, and so without any start-up file
    loaded = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    assert loaded[:-1] == ["anomalib_fewshot", "anomalib_fewshot._autoload"]
    assert int(loaded[-1]) == 4  # the finder beside Python's own three


def test_both_start_up_files_call_the_hook() -> None:
    assert resolve_name((STARTUP / "anomalib_fewshot.start").read_text(encoding="utf-8").strip()) is install_hook
    line = (STARTUP / "hook.txt").read_text(encoding="utf-8").strip()
    assert line == "import anomalib_fewshot._autoload; anomalib_fewshot._autoload.install()"


def test_names_are_known_for_any_import_order(run: Callable[..., str]) -> None:
    code = """
from anomalib_fewshot.models.coft_ad.lightning_model import CoftAD
from anomalib.models import get_model, list_models
from anomalib.data import get_datamodule
for name in ("coft_ad", {"class_path": "CoftAD"}, {"class_path": "anomalib_fewshot.models.CoftAD"}):
    print(type(get_model(name, pre_trained=False)) is CoftAD)
print("coft_a_d" in list_models(), "CoftAD" in list_models("pascal"))
print(get_datamodule({"class_path": "FewShot", "init_args": {"source": {"class_path": "ELPV"}}}).name)
"""
    assert run(code).split() == ["True"] * 5 + ["ELPV"]


def test_public_names_are_lazy() -> None:
    code = 'import sys, anomalib_fewshot as a; print("torch" in sys.modules, *dir(a))'
    command = [sys.executable, "-c", code]
    printed = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT).stdout.split()
    assert printed[0] == "False"
    assert set(anomalib_fewshot.__all__) <= set(printed)


def test_hook_can_be_disabled(run: Callable[..., str]) -> None:
    code = """
import anomalib_fewshot as a, anomalib.models as m, anomalib.data as d
print(hasattr(m, "CoftAD"), hasattr(d, "ELPV"), a.FewShot.__name__, *dir(a))
"""
    printed = run(code, ANOMALIB_FEWSHOT_AUTOLOAD="0").split()
    assert printed[:3] == ["False", "False", "FewShot"]
    assert set(anomalib_fewshot.__all__) <= set(printed)
    with pytest.raises(AttributeError, match="has no attribute 'Missing'"):
        _ = anomalib_fewshot.Missing


def test_anomalib_is_imported_even_if_the_plugin_is_broken(run: Callable[..., str]) -> None:
    code = """
import sys, warnings
sys.modules["anomalib_fewshot.plugin"] = None  # importing it raises
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    import anomalib.data
print(sum("cannot register" in str(warning.message) for warning in caught), anomalib.data.MVTecAD.__name__)
"""
    assert run(code).split() == ["1", "MVTecAD"]


@pytest.mark.parametrize(
    ("first", "program", "command", "seen"),
    [
        ("anomalib.data", "anomalib", "inspect", "[]"),
        ("anomalib.models", "anomalib", "fit", "['said']"),
        ("anomalib.post_processing", "other.py", "inspect", "['said']"),
    ],
)
def test_any_part_of_anomalib_can_be_imported_first(
    run: Callable[..., str],
    first: str,
    program: str,
    command: str,
    seen: str,
) -> None:
    code = f"""
import sys, warnings
sys.argv = ["{program}", "{command}"]
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("default")
    import {first}
    warnings.warn("said", FutureWarning)
print([str(each.message) for each in caught if str(each.message) == "said"])
import anomalib.data as d, anomalib.models as m
print(d.FewShot.__name__, m.CoftAD.__name__)
"""
    assert run(code).split() == [seen, "FewShot", "CoftAD"]
