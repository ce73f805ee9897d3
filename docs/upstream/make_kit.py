# Copyright (C) 2026 anomalib-fewshot contributors
# SPDX-License-Identifier: Apache-2.0

"""Generate pull requests to anomalib from this package. Run it with `make upstream`.

A kit contains the files of one pull request, at their paths in the upstream repository. The script starts from a
module, follows its imports within this package, and rewrites names, headers and examples. A name that it cannot rewrite
is an error. No list of files has to be maintained. A kit extends the name lists of the installed anomalib version.
"""

import argparse
import ast
import re
import shutil
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from string import Template

from host_copy import upstream_package

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = "anomalib_fewshot"
PAGES = Path("docs/source/markdown/guides/reference")
OWNER, UPSTREAM_OWNER = "anomalib-fewshot contributors", "Intel Corporation"
# Upstream location of each package. The longest matching prefix applies.
PLACES = {
    f"{PACKAGE}.models.components": "anomalib.models.components.few_shot",
    f"{PACKAGE}.models": "anomalib.models.image",
    f"{PACKAGE}.data": "anomalib.data.datamodules.few_shot",
    f"{PACKAGE}.callbacks": "anomalib.callbacks.few_shot",
    f"{PACKAGE}.metrics": "anomalib.metrics.few_shot",
    f"{PACKAGE}.post_processing": "anomalib.post_processing.few_shot",
    f"{PACKAGE}.pre_processing": "anomalib.pre_processing.few_shot",
    PACKAGE: "anomalib.utils.few_shot",
}
LISTS = ("models", "models/image", "data")  # packages of anomalib whose `__init__.py` lists public names
REWRITES = [
    # Examples here use the ELPV dataset, which upstream does not provide.
    (r"( *)>>> from anomalib_fewshot import .*?\b(CoftAD|RegAD|UniAD)\b.*", r"\1>>> from anomalib.models import \2"),
    (r" *>>> datamodule = MultiCategory\(.*\n", ""),
    (r"( *)(>>> Engine\(\)\.train\(\w+\(.*?\), datamodule=).*", r"\1\2MVTecAD())  # doctest: +SKIP"),
    (r"( *)>>> from anomalib.engine import Engine$", r"\1>>> from anomalib.data import MVTecAD\n\g<0>"),
    (r"( *)>>> from anomalib_fewshot import ELPV\n", r"\1>>> from anomalib.data import FewShot, MVTecAD\n"),
    (r'>>> datamodule = FewShot\(ELPV\(category="poly"\), k_shot=2\)', ">>> datamodule = FewShot(MVTecAD(), k_shot=2)"),
    (r"( *)>>> (datamodule\.setup\(\))\n +>>> len.*\n +\(2, 100\)", r"\1>>> \2  # doctest: +SKIP"),
    (r"anomalib-fewshot\[", "anomalib["),
    (r" *\"anomalib_fewshot_version\": .*\n", ""),
]


@dataclass(frozen=True)
class PullRequest:
    """A pull request.

    Attributes:
        title (str): Title in the format of upstream's commit messages.
        module (str): Module from which imports are followed.
        name (str): Name of the class.
        full_name (str): Full name, for lists.
    """

    title: str
    module: str
    name: str
    full_name: str

    @property
    def key(self) -> str:
        """Name of its output folder."""
        return self.module.rpartition(".")[2]

    @property
    def is_model(self) -> bool:
        """Whether it adds a model."""
        return self.module.startswith(f"{PACKAGE}.models")


def _model(key: str, name: str, full_name: str) -> PullRequest:
    return PullRequest(f"feat(model): add {name}", f"{PACKAGE}.models.{key}", name, full_name)


PULL_REQUESTS = {
    request.key: request
    for request in (
        _model("coft_ad", "CoftAD", "Contrastive Fine-Tuning for Few-Shot Anomaly Detection"),
        _model("reg_ad", "RegAD", "Registration-based Few-Shot Anomaly Detection"),
        _model("uni_ad", "UniAD", "Unified Model for Multi-class Anomaly Detection"),
        PullRequest(
            "feat(data): add FewShot",
            f"{PACKAGE}.data.few_shot",
            "FewShot",
            "k normal images of a datamodule",
        ),
    )
}


@dataclass
class Imports:
    """Modules required by a set of modules, and the names imported from packages."""

    modules: set[str] = field(default_factory=set)
    exports: dict[str, dict[str, set[str]]] = field(default_factory=lambda: defaultdict(lambda: defaultdict(set)))

    def follow(self, module: str) -> None:
        """Add a module and everything that it imports from this package."""
        if module in self.modules:
            return
        self.modules.add(module)
        for base, name in imported(module):
            if source(f"{base}.{name}") is not None:  # a submodule
                self.follow(f"{base}.{name}")
                continue
            path = source(base)
            if path is not None and path.name == "__init__.py":  # a name that the package re-exports
                defined = defining_module(base, name)
                self.exports[base][defined].add(name)
                self.follow(defined)
            else:
                self.follow(base)

    def packages(self) -> set[str]:
        """Return the packages whose `__init__.py` is not among the modules."""
        parents = {module.rpartition(".")[0] for module in self.modules}
        return {name for name in parents if source(name) is not None and name not in self.modules}


def source(module: str) -> Path | None:
    """Return the file of a module of this package, or ``None`` if there is no such module."""
    path = ROOT.joinpath(*module.split("."))
    for file in (path.with_suffix(".py"), path / "__init__.py"):
        if file.is_file():
            return file
    return None


def imported(module: str) -> Iterator[tuple[str, str]]:
    """Yield the imports of a module from this package, as pairs of module and name."""
    path = source(module)
    if path is None:
        msg = f"`module` must exist in this package, got {module}. Check its imports."
        raise ValueError(msg)
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom):
            parents = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            base = ".".join([*parents, *filter(None, [node.module])])
            if base.split(".")[0] == PACKAGE:
                yield from ((base, alias.name) for alias in node.names)


def defining_module(package: str, name: str) -> str:
    """Return the module from which a package imports a public name."""
    for base, exported in imported(package):
        if exported == name:
            return base
    msg = f"{package} must import {name} from one of its modules, got none. Import the defining module instead."
    raise ValueError(msg)


def place(module: str) -> str:
    """Return the upstream name of a module."""
    known = max((part for part in PLACES if f"{module}.".startswith(f"{part}.")), key=len)
    return PLACES[known] + module[len(known) :]


def rewrite(text: str) -> str:
    """Rewrite the text of a module for upstream.

    Raises:
        ValueError: If a name of this package remains.
    """
    for pattern, replacement in REWRITES:
        text = re.sub(pattern, replacement, text, flags=re.MULTILINE)
    text = re.sub(rf"\b{PACKAGE}(\.\w+)+", lambda found: place(found[0]), text).replace(OWNER, UPSTREAM_OWNER)
    remaining = [line for line in text.splitlines() if re.search(r"anomalib.fewshot", line)]
    if remaining:
        msg = f"Names of this package must be rewritten, got {remaining}. Add a rule to REWRITES."
        raise ValueError(msg)
    return text


def header(first_line: str) -> str:
    """Return the copyright header and docstring of a module."""
    return f'# Copyright (C) 2026 {UPSTREAM_OWNER}\n# SPDX-License-Identifier: Apache-2.0\n\n"""{first_line}"""\n'


def export_lines(package: str, exports: dict[str, set[str]]) -> str:
    """Return an `__init__.py` with the names that the kit requires."""
    path = source(package)
    docstring = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) if path else ""
    lines = [header((docstring or "").partition("\n")[0])]
    for module, names in sorted(exports.items()):
        lines.append(f"from .{module.rpartition('.')[2]} import {', '.join(sorted(names))}")
    every = sorted({name for names in exports.values() for name in names})
    return "\n".join([*lines, *([f"\n__all__ = {every!r}"] if every else [])]) + "\n"


def with_docstrings(text: str) -> str:
    """Add a docstring to each test, generated from its name, because upstream's ruff settings require one."""
    lines = text.splitlines()
    public = (ast.FunctionDef, ast.ClassDef)
    nodes = [node for node in ast.walk(ast.parse(text)) if isinstance(node, public) and not node.name.startswith("_")]
    for node in sorted(nodes, key=lambda node: -node.body[0].lineno):
        if ast.get_docstring(node) is None:
            sentence = node.name.removeprefix("test_").replace("_", " ").capitalize()
            lines.insert(node.body[0].lineno - 1, f'{" " * node.body[0].col_offset}"""{sentence}."""')
    return "\n".join(lines) + "\n"


def tests_of(request: PullRequest, modules: set[str]) -> dict[str, str]:
    """Return the tests of this package that import only modules of the kit."""
    folder = "models" if request.is_model else "data"
    target = Path("tests/unit", folder, *(["image", request.key] if request.is_model else ["few_shot"]))
    files = {str(target / "__init__.py"): header(f"Tests of {request.name}.")}
    pattern = f"test_{request.key}_*.py" if request.is_model else "test_*.py"
    for path in sorted((ROOT / "tests/unit" / folder).glob(pattern)):
        text = path.read_text(encoding="utf-8")
        needed = set(re.findall(rf"from ({PACKAGE}[\w.]*) import", text))
        packages = {f"{PACKAGE}.models.components"}
        if needed and needed <= modules | packages and "conftest" not in text:
            name = path.name.replace(f"{request.key}_", "")
            files[str(target / name)] = with_docstrings(rewrite(text))
    return files


def measured(key: str) -> str:
    """Return the results tables of a model page, up to the first list item or heading, without links and comments."""
    page = (ROOT / "docs" / f"{key}.md").read_text(encoding="utf-8")
    _, _, section = page.partition("\n## Results\n")
    text = re.sub("<!-- .*? -->\n\n?", "", re.split(r"\n(?:- |#)", section)[0]).strip()
    if "| ---" not in text.replace("|---", "| ---"):
        msg = f"docs/{key}.md must contain a table below `## Results`, got none. Restore the heading and the table."
        raise ValueError(msg)
    return re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", text)


def insert(text: str, before: str, addition: str) -> str:
    """Insert text before the first line that starts with ``before``."""
    if f"\n{before}" not in text:
        msg = f"anomalib must contain a line that starts with {before!r}, got none. Adapt `listed` to the new version."
        raise ValueError(msg)
    return text.replace(f"\n{before}", f"\n{addition}{before}", 1)


def listed(requests: Sequence[PullRequest]) -> dict[str, str]:
    """Return upstream's name lists, extended with the names of the pull requests."""
    host = upstream_package()
    files = {}
    texts = {name: (host / name / "__init__.py").read_text(encoding="utf-8") for name in LISTS}
    for request in requests:
        if request.is_model:
            key, name, full_name = request.key, request.name, request.full_name
            text = insert(texts["models"], "    CFM,\n", f"    {name},\n")
            text = insert(text, '    "CFM",\n', f'    "{name}",\n')
            text = insert(text, "    - DFKDE ", f"    - {name} (:class:`anomalib.models.image.{name}`)\n")
            texts["models"] = text
            text = insert(texts["models/image"], "from .cfa ", f"from .{key} import {name}\n")
            text = insert(text, '    "CFM",\n', f'    "{name}",\n')
            texts["models/image"] = insert(text, "    - :class:`Dfkde`", f"    - :class:`{name}`: {full_name}\n")
            changed = ["models", "models/image"]
        else:  # imported last, because FewShot imports names defined above
            text = insert(texts["data"], "__all__ = ", "from .datamodules.few_shot import FewShot  # noqa: E402\n\n")
            texts["data"] = insert(text, "    # Datasets\n", '    # Few-shot\n    "FewShot",\n')
            changed = ["data"]
        files.update({f"src/anomalib/{name}/__init__.py": texts[name] for name in changed})
    return files


def pages(request: PullRequest) -> dict[str, str]:
    """Return README, documentation page, changelog and index entries, and the text of the pull request."""
    page = (ROOT / "docs/upstream" / f"{request.key}.md").read_text(encoding="utf-8")
    results = measured(request.key) if request.is_model else ""
    page = page.replace("<!-- measured -->", results)
    folder = "models/image" if request.is_model else "data/image"
    module = place(request.module)
    parts = ("lightning_model", "torch_model") if request.is_model else ("",)
    automodules = [
        f"```{{eval-rst}}\n.. automodule:: {f'{module}.{part}'.rstrip('.')}\n   :members:\n   :show-inheritance:\n```\n"
        for part in parts
    ]
    card = (
        f":::{{grid-item-card}} {{material-regular}}`model_training;1.5em` {request.name}\n:link: ./{request.key}\n"
        f":link-type: doc\n\n{request.full_name}\n:::\n"
    )
    summary = page.split("## Description\n")[1].split("\n## ")[0].strip()
    template = Template((ROOT / "docs/upstream/pull_request.template").read_text(encoding="utf-8"))
    text = template.substitute(
        title=request.title,
        summary=summary,
        measured=results or "Not applicable: this is a data module.",
    )
    files = {
        str(PAGES / folder / f"{request.key}.md"): "\n".join([page, *automodules]),
        "PULL_REQUEST.md": text,
        "INSERT.md": (
            f"`CHANGELOG.md`, under `### Added`:\n\n- Add `{request.name}`: {request.full_name}\n\n"
            f"`{PAGES / folder / 'index.md'}`, a card and `./{request.key}` in its `toctree`:\n\n{card}"
        ),
    }
    if request.is_model:
        files[f"src/anomalib/models/image/{request.key}/README.md"] = page
    return files


def kit(requests: Sequence[PullRequest]) -> dict[str, str]:
    """Return the files of one or more pull requests.

    Args:
        requests (Sequence[PullRequest]): The pull requests.

    Returns:
        dict[str, str]: Text of each file, by its path in the upstream repository.
    """
    found = Imports()
    for request in requests:
        found.follow(request.module)
    files = {}
    for module in sorted(found.modules):
        path = source(module)
        target = Path("src", *place(module).split("."))
        target = target / "__init__.py" if path.name == "__init__.py" else target.with_suffix(".py")
        files[str(target)] = rewrite(path.read_text(encoding="utf-8"))
    for package in found.packages():
        exports = found.exports[package]
        if package == f"{PACKAGE}.data" and f"{package}.few_shot" in found.modules:
            exports[f"{package}.few_shot"].add("FewShot")
        files[str(Path("src", *place(package).split("."), "__init__.py"))] = export_lines(package, exports)
    files.pop("src/anomalib/models/image/__init__.py", None)
    for request in requests:
        files |= tests_of(request, found.modules) | pages(request)
    return files | listed(requests)


def write(files: dict[str, str], folder: Path) -> None:
    """Write a kit, sort its imports, and check it with upstream's ruff settings.

    The settings of this repository are a copy of upstream's, except for the copyright owner and the rules for tests.

    Raises:
        subprocess.CalledProcessError: If ruff reports an error.
    """
    shutil.rmtree(folder, ignore_errors=True)
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    notice = rf"# Copyright \\(C\\) (\\d{{4}}(-\\d{{4}})?) {UPSTREAM_OWNER}\n# SPDX-License-Identifier: Apache-2\\.0\n"
    settings = [f'lint.flake8-copyright.notice-rgx="{notice}"', 'src=["src","tests"]', "lint.per-file-ignores={}"]
    options = [part for setting in (str(ROOT / "pyproject.toml"), *settings) for part in ("--config", setting)]
    ruff = [sys.executable, "-m", "ruff"]
    excluded = [f"--exclude=src/anomalib/{name}/__init__.py" for name in LISTS]  # they violate newer rules
    steps = (["check", "--select", "I", "--fix"], ["format"], ["check", *excluded])
    for command, *arguments in steps:
        line = [*ruff, command, "--quiet", *arguments, *options, "--no-cache", "."]
        subprocess.run(line, cwd=folder, check=True)  # noqa: S603


def main() -> None:
    """Write each kit to a separate folder."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--output", type=Path, default=ROOT / "build" / "upstream")
    output = parser.parse_args().output
    for key, request in PULL_REQUESTS.items():
        files = kit([request])
        write(files, output / key)
        lines = sum(text.count("\n") for name, text in files.items() if name.startswith("src"))
        print(f"{output / key}: {len(files)} files, {lines} lines in src")


if __name__ == "__main__":
    main()
