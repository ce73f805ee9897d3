# Copyright (C) 2026 anomalib-fewshot contributors
# SPDX-License-Identifier: Apache-2.0

"""Package versions and hardware, which affect the results."""

import os
import platform
import subprocess
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

import anomalib_fewshot
from anomalib_fewshot import __version__


def package_versions() -> dict[str, str]:
    """Return the versions that ``results.csv`` contains."""
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "anomalib": version("anomalib"),
        "anomalib_fewshot": __version__,
        "commit": _commit(),
    }


@cache
def _commit() -> str:
    """Return the Git commit of the package, with ``+`` if files are changed. Empty for an installed package."""
    folder = Path(anomalib_fewshot.__file__).parent
    if not (folder.parent / ".git").exists():
        return ""
    commands = [["git", "rev-parse", "--short=12", "HEAD"], ["git", "status", "--porcelain", "--untracked-files=no"]]
    try:
        commit, changes = [
            subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True, timeout=10).stdout.strip()  # noqa: S603
            for command in commands
        ]
    except (OSError, subprocess.SubprocessError):  # no Git, or the folder belongs to another user
        return ""
    return f"{commit}+" if changes else commit


def environment() -> dict[str, Any]:
    """Return the package versions and a description of the machine."""
    other_versions = {name: version(name) for name in ("lightning", "timm", "torchvision", "numpy")}
    return {
        **package_versions(),
        **other_versions,
        "platform": platform.platform(),
        "processor": _processor(),
        "cores": os.cpu_count(),
        "gpus": [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())],
    }


def _processor() -> str:
    """Return the name of the processor. On Linux, `platform.processor` often returns only the architecture."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    for line in lines:
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor()
