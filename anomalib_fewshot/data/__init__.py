# Copyright (C) 2026 anomalib-fewshot contributors
# SPDX-License-Identifier: Apache-2.0

"""Data modules for few-shot learning."""

import anomalib.data  # noqa: F401  first: its import registers the plug-ins, which import the modules below

from .dagm import DAGM
from .elpv import ELPV
from .few_shot import FewShot
from .multi_category import MultiCategory
from .mvtec_folder import MVTecFolder
from .validation.image_check import check_images
from .validation.issue import DataIssue

__all__ = ["DAGM", "DataIssue", "ELPV", "FewShot", "MVTecFolder", "MultiCategory", "check_images"]
