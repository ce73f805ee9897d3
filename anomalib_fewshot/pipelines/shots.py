# Copyright (C) 2026 anomalib-fewshot contributors
# SPDX-License-Identifier: Apache-2.0

"""How many normal images are learnt from: a number, or the word for all of a category."""

from math import inf

ALL = "all"


def as_number(k: float | str) -> float:
    """Return k as a number, by which it is sorted: ``all`` is infinity.

    Example:
        >>> sorted(["all", 8, 1], key=as_number)
        [1, 8, 'all']
    """
    return inf if k == ALL else float(k)


def shots(k: float) -> str:
    """Return such a number as it is shown.

    Example:
        >>> [shots(as_number(k)) for k in (4, "all")]
        ['4', 'all']
    """
    return ALL if k == inf else f"{k:.0f}"
