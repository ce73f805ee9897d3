# Copyright (C) 2026 anomalib-fewshot contributors
# SPDX-License-Identifier: Apache-2.0

"""The upstream kit: what a pull request to anomalib would hold, made from this package by `make upstream`.

A kit has the files of one pull request in upstream's places. Each starts from a module, follows its imports within this
package, and rewrites names, header and examples; a name that cannot be rewritten is an error. So there is no list of
files to keep. Kits are made for the installed anomalib, whose lists of names they extend.
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
# Where upstream would want each part: the longest name that fits counts.
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
LISTS = ("models", "models/image", "data")  # packages of anomalib that list names
REWRITES = [
    # An example of this package takes solar cells, which upstream does not have.
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
        title (str): Its title, as upstream's commit messages are.
        module (str): Module that its imports are followed from.
        name (str): Name of the class.
        words (str): Full name, for lists.
    """

    title: str
    module: str
    name: str
    words: str

    @property
    def key(self) -> str:
        """Name of its folder."""
        return self.module.rpartition(".")[2]

    @property
    def is_model(self) -> bool:
        """Whether it adds a model."""
        return self.module.startswith(f"{PACKAGE}.models")


def _model(key: str, name: str, words: str) -> PullRequest:
    return PullRequest(f"feat(model): add {name}", f"{PACKAGE}.models.{key}", name, words)


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
    """The modules that some modules need, and the names that are imported from packages."""

    modules: set[str] = field(default_factory=set)
    exports: dict[str, dict[str, set[str]]] = field(default_factory=lambda: defaultdict(lambda: defaultdict(set)))

    def follow(self, module: str) -> None:
        """Add a module and all that it imports of this package."""
        if module in self.modules:
            return
        self.modules.add(module)
        for base, name in imported(module):
            found = f"{base}.{name}" if source(f"{base}.{name}") is not None else base
            path = source(found)
            if path is not None and path.name == "__init__.py" and found.count(".") == base.count("."):
                defined = defining_module(found, name)
                self.exports[found][defined].add(name)
                found = defined
            self.follow(found)

    def packages(self) -> set[str]:
        """Return the packages that have no module of their own in the list."""
        parents = {module.rpartition(".")[0] for module in self.modules}
        return {name for name in parents if (name in PLACES or name in self.exports) and name not in self.modules}


def source(module: str) -> Path | None:
    """Return the file of a module of this package, if it is one."""
    path = ROOT.joinpath(*module.split("."))
    return next((file for file in (path.with_suffix(".py"), path / "__init__.py") if file.is_file()), None)


def imported(module: str) -> Iterator[tuple[str, str]]:
    """Yield what a module imports of this package: the module on the left of `import`, and the name on the right."""
    path = source(module)
    if path is None:
        msg = f"There must be a module {module}. Look at who imports it."
        raise ValueError(msg)
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom):
            parents = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            base = ".".join([*parents, *filter(None, [node.module])])
            if base.split(".")[0] == PACKAGE:
                yield from ((base, alias.name) for alias in node.names)


def defining_module(package: str, name: str) -> str:
    """Return the module from which a package takes a public name."""
    for base, exported in imported(package):
        if exported == name:
            return base
    msg = f"{package} must take {name} from a module of its own. Import it from the module that defines it."
    raise ValueError(msg)


def place(module: str) -> str:
    """Return the name of a module upstream."""
    known = max((part for part in PLACES if f"{module}.".startswith(f"{part}.")), key=len)
    return PLACES[known] + module[len(known) :]


def rewrite(text: str) -> str:
    """Return the text of a module as upstream would have it.

    Raises:
        ValueError: If a name of this package is left.
    """
    for pattern, replacement in REWRITES:
        text = re.sub(pattern, replacement, text, flags=re.MULTILINE)
    text = re.sub(rf"\b{PACKAGE}(\.\w+)+", lambda found: place(found[0]), text).replace(OWNER, UPSTREAM_OWNER)
    left = [line for line in text.splitlines() if re.search(r"anomalib.fewshot", line)]
    if left:
        msg = f"Each name of this package must be rewritten, got {left}. Add a rule to REWRITES."
        raise ValueError(msg)
    return text


def header(first_line: str) -> str:
    """Return the start of a module."""
    return f'# Copyright (C) 2026 {UPSTREAM_OWNER}\n# SPDX-License-Identifier: Apache-2.0\n\n"""{first_line}"""\n'


def export_lines(package: str, exports: dict[str, set[str]]) -> str:
    """Return an `__init__` with the names that the kit needs."""
    path = source(package)
    docstring = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) if path else ""
    lines = [header((docstring or "").partition("\n")[0])]
    for module, names in sorted(exports.items()):
        lines.append(f"from .{module.rpartition('.')[2]} import {', '.join(sorted(names))}")
    every = sorted({name for names in exports.values() for name in names})
    return "\n".join([*lines, *([f"\n__all__ = {every!r}"] if every else [])]) + "\n"


def with_docstrings(text: str) -> str:
    """Return a test file in which every test has a docstring, made from its name: upstream's settings ask for it."""
    lines = text.splitlines()
    public = (ast.FunctionDef, ast.ClassDef)
    nodes = [node for node in ast.walk(ast.parse(text)) if isinstance(node, public) and not node.name.startswith("_")]
    for node in sorted(nodes, key=lambda node: -node.body[0].lineno):
        if ast.get_docstring(node) is None:
            words = node.name.removeprefix("test_").replace("_", " ").capitalize()
            lines.insert(node.body[0].lineno - 1, f'{" " * node.body[0].col_offset}"""{words}."""')
    return "\n".join(lines) + "\n"


def tests_of(request: PullRequest, modules: set[str]) -> dict[str, str]:
    """Return the tests of this package that need nothing but what the kit holds."""
    folder = "models" if request.is_model else "data"
    there = Path("tests/unit", folder, *(["image", request.key] if request.is_model else ["few_shot"]))
    files = {str(there / "__init__.py"): header(f"Tests of {request.name}.")}
    pattern = f"test_{request.key}_*.py" if request.is_model else "test_*.py"
    for path in sorted((ROOT / "tests/unit" / folder).glob(pattern)):
        text = path.read_text(encoding="utf-8")
        needed = set(re.findall(rf"from ({PACKAGE}[\w.]*) import", text))
        packages = {f"{PACKAGE}.models.components"}
        if needed and needed <= modules | packages and "conftest" not in text:
            name = path.name.replace(f"{request.key}_", "")
            files[str(there / name)] = with_docstrings(rewrite(text))
    return files


def measured(key: str) -> str:
    """Return what the page of a model says was measured, up to its first remark, without links."""
    page = (ROOT / "docs" / f"{key}.md").read_text(encoding="utf-8")
    _, _, section = page.partition("\n## Results\n")
    text = re.split(r"\n(?:- |#)", section)[0].strip()
    if "| ---" not in text.replace("|---", "| ---"):
        msg = f"docs/{key}.md must have a table under `## Results`, got none. Name the heading so."
        raise ValueError(msg)
    return re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", text)


def insert(text: str, before: str, addition: str) -> str:
    """Return a text with an addition before the first line that starts with some words."""
    if f"\n{before}" not in text:
        msg = f"anomalib must have a line that starts with {before!r}. Look at how it has changed."
        raise ValueError(msg)
    return text.replace(f"\n{before}", f"\n{addition}{before}", 1)


def listed(requests: Sequence[PullRequest]) -> dict[str, str]:
    """Return upstream's lists of names with those of the pull requests."""
    host = upstream_package()
    files = {}
    texts = {name: (host / name / "__init__.py").read_text(encoding="utf-8") for name in LISTS}
    for request in requests:
        if request.is_model:
            key, name, words = request.key, request.name, request.words
            text = insert(texts["models"], "    CFM,\n", f"    {name},\n")
            text = insert(text, '    "CFM",\n', f'    "{name}",\n')
            text = insert(text, "    - DFKDE ", f"    - {name} (:class:`anomalib.models.image.{name}`)\n")
            texts["models"] = text
            text = insert(texts["models/image"], "from .cfa ", f"from .{key} import {name}\n")
            text = insert(text, '    "CFM",\n', f'    "{name}",\n')
            texts["models/image"] = insert(text, "    - :class:`Dfkde`", f"    - :class:`{name}`: {words}\n")
            changed = ["models", "models/image"]
        else:  # last: it wraps a datamodule, and takes what stands above
            text = insert(texts["data"], "__all__ = ", "from .datamodules.few_shot import FewShot  # noqa: E402\n\n")
            texts["data"] = insert(text, "    # Datasets\n", '    # Few-shot\n    "FewShot",\n')
            changed = ["data"]
        files.update({f"src/anomalib/{name}/__init__.py": texts[name] for name in changed})
    return files


def pages(request: PullRequest) -> dict[str, str]:
    """Return README, page, entries of the lists of pages and of changes, and the text of the pull request."""
    page = (ROOT / "docs/upstream" / f"{request.key}.md").read_text(encoding="utf-8")
    figures = measured(request.key) if request.is_model else ""
    page = page.replace("<!-- measured -->", figures)
    folder = "models/image" if request.is_model else "data/image"
    module = place(request.module)
    parts = ("lightning_model", "torch_model") if request.is_model else ("",)
    automodules = [
        f"```{{eval-rst}}\n.. automodule:: {f'{module}.{part}'.rstrip('.')}\n   :members:\n   :show-inheritance:\n```\n"
        for part in parts
    ]
    card = (
        f":::{{grid-item-card}} {{material-regular}}`model_training;1.5em` {request.name}\n:link: ./{request.key}\n"
        f":link-type: doc\n\n{request.words}\n:::\n"
    )
    summary = page.split("## Description\n")[1].split("\n## ")[0].strip()
    template = Template((ROOT / "docs/upstream/pull_request.template").read_text(encoding="utf-8"))
    text = template.substitute(title=request.title, summary=summary, measured=figures or "None: it is data.")
    files = {
        str(PAGES / folder / f"{request.key}.md"): "\n".join([page, *automodules]),
        "PULL_REQUEST.md": text,
        "INSERT.md": (
            f"`CHANGELOG.md`, under `### Added`:\n\n- Add `{request.name}`: {request.words}\n\n"
            f"`{PAGES / folder / 'index.md'}`, a card and `./{request.key}` in its `toctree`:\n\n{card}"
        ),
    }
    if request.is_model:
        files[f"src/anomalib/models/image/{request.key}/README.md"] = page
    return files


def kit(requests: Sequence[PullRequest]) -> dict[str, str]:
    """Return the files of one pull request, or of several at once.

    Args:
        requests (Sequence[PullRequest]): The pull requests.

    Returns:
        dict[str, str]: Texts by the path in upstream's repository.
    """
    found = Imports()
    for request in requests:
        found.follow(request.module)
    files = {}
    for module in sorted(found.modules):
        path = source(module)
        there = Path("src", *place(module).split("."))
        there = there / "__init__.py" if path.name == "__init__.py" else there.with_suffix(".py")
        files[str(there)] = rewrite(path.read_text(encoding="utf-8"))
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
    """Write a kit, sort its imports, and check it by upstream's settings of ruff.

    They are this repository's, which took them over; the owner of the header and the exception for tests are not.

    Raises:
        subprocess.CalledProcessError: If a rule is broken.
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
    theirs = [f"--exclude=src/anomalib/{name}/__init__.py" for name in LISTS]  # newer rules find more in them
    steps = (["check", "--select", "I", "--fix"], ["format"], ["check", *theirs])
    for command, *arguments in steps:
        line = [*ruff, command, "--quiet", *arguments, *options, "--no-cache", "."]
        subprocess.run(line, cwd=folder, check=True)  # noqa: S603


def main() -> None:
    """Write each kit to a folder of its own."""
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
