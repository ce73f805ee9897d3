# Copyright (C) 2026 anomalib-fewshot contributors
# SPDX-License-Identifier: Apache-2.0

"""The few-shot benchmark: ``plan`` lists the runs, ``run`` executes, ``results`` stores, ``report`` summarizes.

The functions are imported lazily. They need the extra ``benchmark``, but anomalib's command line imports this package
for every command.
"""

from typing import TYPE_CHECKING

from anomalib_fewshot._extras import extra_required

if TYPE_CHECKING:
    from .features import compare_features
    from .few_shot_benchmark import benchmark

__all__ = ["benchmark", "compare_features"]


def __getattr__(name: str) -> object:
    if name not in __all__:
        msg = f"module {__name__!r} has no attribute {name!r}"
        raise AttributeError(msg)
    with extra_required("benchmark", f"`anomalib_fewshot.pipelines.{name}`"):
        from . import features, few_shot_benchmark

    return few_shot_benchmark.benchmark if name == "benchmark" else features.compare_features


def __dir__() -> list[str]:
    return [*globals(), *__all__]
