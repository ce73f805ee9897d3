# Copyright (C) 2026 anomalib-fewshot contributors
# SPDX-License-Identifier: Apache-2.0

"""Versions of packages, and the machine: figures depend on them too."""

import os
import platform
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from anomalib_fewshot import __version__


def package_versions() -> dict[str, str]:
    """Return the versions that are columns of ``results.csv``."""
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "anomalib": version("anomalib"),
        "anomalib_fewshot": __version__,
    }


def environment() -> dict[str, Any]:
    """Return the versions of the packages, and the machine."""
    others = {name: version(name) for name in ("lightning", "timm", "torchvision", "numpy")}
    return {
        **package_versions(),
        **others,
        "platform": platform.platform(),
        "processor": _processor(),
        "cores": os.cpu_count(),
        "gpus": [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())],
    }


def _processor() -> str:
    """Return the name of the processor, which Linux keeps elsewhere than Python looks."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor())
