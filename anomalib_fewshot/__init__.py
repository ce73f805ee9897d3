# Copyright (C) 2026 anomalib-fewshot contributors
# SPDX-License-Identifier: Apache-2.0

"""Few-shot anomaly detection for anomalib.

The public names are imported on first use (PEP 562). The start-up hook imports this package in every interpreter, so
the import must be fast.
"""

__version__ = "0.1.0"

_MODULES = {
    "AdversarialCallback": "anomalib_fewshot.callbacks",
    "AutoSizePreProcessor": "anomalib_fewshot.models.components",
    "CategoryEvaluator": "anomalib_fewshot.metrics",
    "CoftAD": "anomalib_fewshot.models",
    "DAGM": "anomalib_fewshot.data",
    "ELPV": "anomalib_fewshot.data",
    "ExportablePreProcessor": "anomalib_fewshot.pre_processing",
    "FewShot": "anomalib_fewshot.data",
    "MVTecFolder": "anomalib_fewshot.data",
    "MultiCategory": "anomalib_fewshot.data",
    "ImageStatistic": "anomalib_fewshot.models",
    "RegAD": "anomalib_fewshot.models",
    "RotatedReferences": "anomalib_fewshot.callbacks",
    "SupportPostProcessor": "anomalib_fewshot.post_processing",
    "UniAD": "anomalib_fewshot.models",
    "benchmark": "anomalib_fewshot.pipelines",
    "inspect": "anomalib_fewshot.inspection",
}

__all__ = [
    "AdversarialCallback",
    "AutoSizePreProcessor",
    "CategoryEvaluator",
    "CoftAD",
    "DAGM",
    "ELPV",
    "ExportablePreProcessor",
    "FewShot",
    "MVTecFolder",
    "MultiCategory",
    "ImageStatistic",
    "RegAD",
    "RotatedReferences",
    "SupportPostProcessor",
    "UniAD",
    "benchmark",
    "inspect",
]


def __getattr__(name: str) -> object:
    if name not in _MODULES:
        msg = f"module {__name__!r} has no attribute {name!r}"
        raise AttributeError(msg)
    from importlib import import_module

    return getattr(import_module(_MODULES[name]), name)


def __dir__() -> list[str]:
    return [*globals(), *_MODULES]
