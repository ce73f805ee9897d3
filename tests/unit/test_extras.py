# Copyright (C) 2026 anomalib-fewshot contributors
# SPDX-License-Identifier: Apache-2.0

"""Packages of extras: the core does without them, and commands name the extra that is missing."""

from importlib.metadata import packages_distributions, requires
from pathlib import Path

import pytest
from fresh_python import FreshPython

from anomalib_fewshot._extras import EXTRAS, extra_required
from anomalib_fewshot.errors import MissingDependencyError

# anomalib and torch import some of these packages, so only the imports of this package fail.
WITHOUT_EXTRAS = """
import builtins, sys, warnings

from anomalib_fewshot._autoload import install

install()
warnings.simplefilter("ignore")
blocked = set(sys.argv.pop(1).split(","))
real_import = builtins.__import__

def blocking_import(name, globals=None, locals=None, fromlist=(), level=0):
    importer = (globals or {}).get("__name__", "")
    if level == 0 and importer.startswith("anomalib_fewshot") and name.partition(".")[0] in blocked:
        raise ModuleNotFoundError(f"No module named {name!r}", name=name)
    return real_import(name, globals, locals, fromlist, level)

builtins.__import__ = blocking_import

from anomalib.cli.cli import AnomalibCLI

import anomalib_fewshot.callbacks, anomalib_fewshot.testing
from anomalib_fewshot._cli.errors import explain

for arguments in (["inspect", "--good", "x"], ["fewshot", "--help"], ["fewshot_features"]):
    try:
        AnomalibCLI(arguments)
    except Exception as error:
        print("explained:", explain(error))
for module, name in (("pipelines", "benchmark"), ("inspection", "inspect"), ("visualization", "draw")):
    try:
        exec(f"from anomalib_fewshot.{module} import {name}")
    except anomalib_fewshot.errors.MissingDependencyError as error:
        print("explained:", error)
AnomalibCLI(["train", *sys.argv[1:]])
print("trained")
"""


def test_core_works_without_extras(fresh_python: FreshPython, mvtec_root: Path, tmp_path: Path) -> None:
    blocked = ",".join(sorted({"ray", *EXTRAS["benchmark"], *EXTRAS["inspect"]}))
    source = ["MVTecFolder", "--data.source.root", str(mvtec_root), "--data.source.category", "bolt"]
    model = ["--model", "ImageStatistic", "--model.image_size", "32", "--trainer.accelerator", "cpu"]
    data = ["--data", "FewShot", "--data.k_shot", "2", "--data.source", *source, "--data.source.num_workers", "0"]
    finished = fresh_python(WITHOUT_EXTRAS, blocked, *model, *data, cwd=tmp_path)
    assert finished.stdout.endswith("trained\n"), finished.stderr
    messages = [line for line in finished.stdout.splitlines() if line.startswith("explained:")]
    subjects = ["`anomalib inspect`", "`anomalib fewshot`", "`anomalib fewshot_features`"]
    subjects += [
        "`anomalib_fewshot.pipelines.benchmark`",
        "`anomalib_fewshot.inspect`",
        "`anomalib_fewshot.visualization`",
    ]
    assert len(messages) == len(subjects)
    for message, subject in zip(messages, subjects, strict=True):
        extra = "inspect" if "inspect" in subject else "benchmark"
        assert message.startswith(f"explained: {subject} requires ")
        assert message.endswith(f"`pip install 'anomalib-fewshot[{extra}]'`.")
    assert list(tmp_path.rglob("*.ckpt"))


def test_missing_package_of_an_extra() -> None:
    with pytest.raises(MissingDependencyError) as error, extra_required("inspect", "`anomalib inspect`"):
        raise ModuleNotFoundError(name="jinja2.ext")
    assert str(error.value) == (
        "`anomalib inspect` requires jinja2, which is not installed. Run `pip install 'anomalib-fewshot[inspect]'`."
    )


@pytest.mark.parametrize("name", ["torch", "anomalib_fewshot.typo", None])
def test_other_missing_modules_are_not_explained(name: str | None) -> None:
    with pytest.raises(ModuleNotFoundError) as error, extra_required("benchmark", "`anomalib fewshot`"):
        raise ModuleNotFoundError(name=name)
    assert not isinstance(error.value, MissingDependencyError)


@pytest.mark.parametrize("extra", EXTRAS)
def test_names_are_those_that_the_extra_installs(extra: str) -> None:
    packages = packages_distributions()
    lines = [line.replace('"', "'") for line in requires("anomalib-fewshot") or []]
    declared = [line for line in lines if line.endswith(f"extra == '{extra}'")]
    assert len(declared) == len(EXTRAS[extra])
    for module in EXTRAS[extra]:
        names = [name.lower() for name in packages[module]]
        assert any(line.startswith(name) for line in declared for name in names)
