# Copyright (C) 2026 anomalib-fewshot contributors
# SPDX-License-Identifier: Apache-2.0

"""Train a detector on a folder of good pictures and show verdicts for new pictures on a web page.

:func:`inspect` is imported on first use, because it requires the extra ``inspect`` and anomalib's command line imports
this package for every command.
"""

from typing import TYPE_CHECKING

from anomalib_fewshot._extras import extra_required

if TYPE_CHECKING:
    from .inspection import inspect

__all__ = ["inspect"]


def __getattr__(name: str) -> object:
    if name not in __all__:
        msg = f"module {__name__!r} has no attribute {name!r}"
        raise AttributeError(msg)
    with extra_required("inspect", "`anomalib_fewshot.inspect`"):
        from .inspection import inspect

    return inspect


def __dir__() -> list[str]:
    return [*globals(), *__all__]
