# Copyright (C) 2026 anomalib-fewshot contributors
# SPDX-License-Identifier: Apache-2.0

"""The upstream kit, applied to a copy of anomalib in an environment without this package."""

import ast
import sys
from pathlib import Path

import host_copy
import make_kit
import pytest

ROOT = Path(__file__).parents[2]
HERE = Path(__file__).parent
PATCH = ROOT / "docs/upstream/entry_points.patch"
MODELS = {"coft_ad": "CoftAD", "reg_ad": "RegAD", "uni_ad": "UniAD"}


def applied(keys: list[str], tmp_path: Path) -> Path:
    """Return a copy of anomalib with the kits of some pull requests."""
    make_kit.write(make_kit.kit([make_kit.PULL_REQUESTS[key] for key in keys]), tmp_path / "kit")
    copy = host_copy.copy_upstream(tmp_path / "copy")
    host_copy.apply(tmp_path / "kit", copy)
    return copy


@pytest.mark.parametrize("key", [*MODELS, "few_shot"])
def test_kit_is_complete(key: str) -> None:
    files = make_kit.kit([make_kit.PULL_REQUESTS[key]])
    assert not any("anomalib_fewshot" in text or "anomalib-fewshot" in text for text in files.values())
    assert not any("_cli" in Path(path).parts for path in files)  # belongs to the start-up hook
    changed = ["models", "models/image"] if key in MODELS else ["data"]
    assert {f"src/anomalib/{name}/__init__.py" for name in changed} < set(files)
    for name in (path for path in files if path.endswith(".py")):
        for node in ast.walk(ast.parse(files[name])):
            if isinstance(node, ast.ImportFrom) and ".few_shot" in (node.module or "") and not node.level:
                path = f"src/{node.module.replace('.', '/')}"
                assert {f"{path}.py", f"{path}/__init__.py"} & set(files)


def test_all_kits_together_are_imported_on_a_copy_of_anomalib(tmp_path: Path) -> None:
    copy = applied([*MODELS, "few_shot"], tmp_path)
    code = """
import sys
import anomalib.data
from anomalib.models import get_model, list_models
for name in ("coft_ad", "reg_ad", "uni_ad"):
    print(type(get_model(name, pre_trained=False)).__module__)
print({"coft_a_d", "reg_a_d", "uni_a_d"} <= list_models(), anomalib.data.FewShot.__module__)
print(any(name.startswith("anomalib_fewshot") for name in sys.modules))
"""
    printed = host_copy.run(copy, "-c", code).split()
    assert printed[:3] == [f"anomalib.models.image.{key}.lightning_model" for key in MODELS]
    assert printed[3:] == ["True", "anomalib.data.datamodules.few_shot.few_shot", "False"]


@pytest.mark.slow
@pytest.mark.parametrize("key", MODELS)
def test_loop_and_tests_of_upstream_on_a_copy(key: str, mvtec_root: Path, tmp_path: Path) -> None:
    """Each model kit is applied separately, with default arguments."""
    copy = applied([key], tmp_path)
    code = f"""
from pathlib import Path
from stages import every_stage
every_stage({key!r}, Path({str(mvtec_root)!r}), Path({str(tmp_path / "results")!r}))
"""
    host_copy.run(copy, "-c", code, also=[HERE])
    assert "passed" in host_copy.run(copy, "-m", "pytest", "-q", "-c", "/dev/null", str(copy / "tests"))


@pytest.mark.slow
def test_few_shot_trains_a_model_of_anomalib_on_a_copy(mvtec_root: Path, tmp_path: Path) -> None:
    copy = applied(["few_shot"], tmp_path)
    code = f"""
from anomalib.data import FewShot, MVTecAD
from anomalib.engine import Engine
from anomalib.models import Padim
data = FewShot(MVTecAD({str(mvtec_root)!r}, "bolt", num_workers=0), k_shot=2)
model = Padim("resnet10t", ["layer1"], pre_trained=False, n_features=20)
Engine(default_root_dir={str(tmp_path)!r}, accelerator="cpu", logger=False).train(model, datamodule=data)
"""
    assert "image_AUROC" in host_copy.run(copy, "-c", code)
    assert len(list(tmp_path.rglob("support.json"))) == 1


@pytest.mark.slow
def test_hook_is_unnecessary_with_the_patch(mvtec_root: Path, tmp_path: Path) -> None:
    """With entry points in anomalib, `--model CoftAD` works without the hook."""
    copy = host_copy.copy_upstream(tmp_path / "copy")
    host_copy.apply_patch(PATCH, copy)
    code = f"""
import sys
from anomalib.cli import AnomalibCLI
data = ["--data", "FewShot", "--data.source", "MVTecAD", "--data.source.root", {str(mvtec_root)!r}]
data += ["--data.source.category", "bolt", "--data.source.num_workers", "0", "--data.k_shot", "2"]
model = ["--model", "CoftAD", "--model.num_steps", "2", "--model.image_size", "64"]
AnomalibCLI(["train", *model, *data, "--trainer.accelerator", "cpu", "--default_root_dir", {str(tmp_path)!r}])
import anomalib.data, anomalib.models
from anomalib.cli.pipelines import PIPELINE_REGISTRY
from anomalib_fewshot import _autoload, plugin
hosts = (vars(anomalib.models), vars(anomalib.data), PIPELINE_REGISTRY)
names = lambda: [set(host) for host in hosts] + [list(anomalib.models.__all__)]
before = names()
plugin.register()
print("hook", _autoload._PluginFinder in sys.meta_path, before == names())
"""
    info = next(Path(path) for path in sys.path if list(Path(path).glob("anomalib_fewshot-*.dist-info")))
    (link,) = info.glob("anomalib_fewshot-*.dist-info")
    (copy / "site" / link.name).symlink_to(link)
    printed = host_copy.run(copy, "-c", code, also=[ROOT], ANOMALIB_FEWSHOT_AUTOLOAD="0")
    assert "image_AUROC" in printed
    assert "hook False True" in printed
    assert "passed" in host_copy.run(copy, "-m", "pytest", "-q", "-c", "/dev/null", str(copy / "tests"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("from anomalib_fewshot import Missing\n", "must be rewritten, got .*Missing"),
        ("# pip install anomalib-fewshot\n", "must be rewritten, got .*pip install"),
    ],
)
def test_name_that_cannot_be_rewritten_is_an_error(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_kit.rewrite(text)


def test_upstream_places() -> None:
    assert make_kit.place("anomalib_fewshot.models.coft_ad.folds") == "anomalib.models.image.coft_ad.folds"
    assert make_kit.place("anomalib_fewshot.models.components") == "anomalib.models.components.few_shot"
    assert make_kit.place("anomalib_fewshot.atomic") == "anomalib.utils.few_shot.atomic"


def test_imports_are_followed_to_the_defining_module() -> None:
    found = make_kit.Imports()
    found.follow("anomalib_fewshot.models.coft_ad.published")
    names = ("coft_ad.published", "components.gaussian", "components.moments")
    assert found.modules == {f"anomalib_fewshot.models.{name}" for name in names}
    assert found.packages() == {f"anomalib_fewshot.models.{name}" for name in ("coft_ad", "components")}


def test_function_with_the_name_of_its_module_is_exported() -> None:
    found = make_kit.Imports()
    found.follow("anomalib_fewshot.models.coft_ad.lightning_model")
    components = "anomalib_fewshot.models.components"
    assert "step_progress" in found.exports[components][f"{components}.step_progress"]


def test_callbacks_are_included() -> None:
    files = make_kit.kit([make_kit.PULL_REQUESTS["few_shot"]])
    support = files["src/anomalib/data/datamodules/few_shot/support.py"]
    assert "from anomalib.callbacks.few_shot import FewShotRun, SupportThreshold" in support
    assert "entry_point" not in support


def test_every_test_gets_a_docstring() -> None:
    text = 'def test_one_is_one() -> None:\n    assert 1\n\n\ndef test_b() -> None:\n    """Keep."""\n'
    assert '    """One is one."""\n    assert 1' in make_kit.with_docstrings(text)
    assert make_kit.with_docstrings(text).count('"""') == 4


@pytest.mark.parametrize("key", MODELS)
def test_results_agree_with_the_model_page(key: str) -> None:
    text = make_kit.measured(key)
    assert "configs/benchmark/" in text
    assert "make tables" not in text
    assert "<!--" not in text
    assert "](" not in text
    page = (ROOT / f"docs/{key}.md").read_text(encoding="utf-8")
    assert {line for line in text.splitlines() if line.startswith("|")} <= set(page.splitlines())
