# Copyright (C) 2026 anomalib-fewshot contributors
# SPDX-License-Identifier: Apache-2.0

"""Copy the installed anomalib, apply kits and patches to the copy, and run Python with it."""

import os
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path


def upstream_package() -> Path:
    """Return the folder of the installed anomalib."""
    spec = find_spec("anomalib")
    if spec is None or not spec.submodule_search_locations:
        msg = "anomalib must be installed, got no such package. Run `pip install anomalib`."
        raise ModuleNotFoundError(msg)
    return Path(spec.submodule_search_locations[0])


def copy_upstream(folder: Path) -> Path:
    """Copy the installed anomalib to `folder/src`, and link its dependencies without this package in `folder/site`."""
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(upstream_package(), folder / "src" / "anomalib")
    site = folder / "site"
    site.mkdir()
    for path in Path(sysconfig.get_path("purelib")).iterdir():
        if path.name != "anomalib" and not path.name.startswith(("anomalib_fewshot", "_editable_impl")):
            (site / path.name).symlink_to(path)
    return folder


def apply(kit_folder: Path, copy: Path) -> None:
    """Copy the files of a kit into a copy of anomalib."""
    shutil.copytree(kit_folder, copy, dirs_exist_ok=True)


def apply_patch(patch: Path, copy: Path) -> None:
    """Apply a patch to a copy of anomalib.

    Raises:
        subprocess.CalledProcessError: If the patch does not apply.
    """
    environment = os.environ | {"GIT_CEILING_DIRECTORIES": str(copy.resolve().parent)}  # ignore an enclosing repository
    command = ["git", "apply", "-p1", str(patch)]
    subprocess.run(command, cwd=copy, check=True, env=environment)  # noqa: S603


def run(copy: Path, *arguments: str, also: Sequence[Path] = (), **environment: str) -> str:
    """Run Python with a copy of anomalib and without start-up hooks, and return its standard output."""
    search_path = os.pathsep.join(str(path) for path in (copy / "src", *also, copy / "site"))
    environment = {"PYTHONPATH": search_path, "HF_HUB_OFFLINE": "1"} | environment
    command = [sys.executable, "-S", "-W", "ignore", *arguments]
    finished = subprocess.run(  # noqa: S603
        command,
        env=os.environ | environment,
        capture_output=True,
        text=True,
        check=False,
    )
    if finished.returncode:
        errors = finished.stderr[-3000:]
        msg = f"Python must succeed with the copy of anomalib, got exit status {finished.returncode}:\n{errors}"
        raise RuntimeError(msg)
    return finished.stdout
