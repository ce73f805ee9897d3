# Copyright (C) 2026 anomalib-fewshot contributors
# SPDX-License-Identifier: Apache-2.0

"""Tables of strings as pandas 2 makes them."""

import warnings
from collections.abc import Generator
from contextlib import contextmanager

import pandas as pd

OPTION = "future.infer_string"  # from pandas 2.1 on, deprecated in pandas 3


@contextmanager
def object_strings() -> Generator[None]:
    """Let pandas infer the type ``object`` for columns of strings within the block, as before pandas 3.

    anomalib's ``Tabular`` and ``MVTecLOCO`` assign paths and lists to such columns, which the string type of pandas 3
    refuses with a ``TypeError``.
    """
    try:
        before = _get()
    except KeyError:  # a version without the option
        yield
        return
    _set(value=False)
    try:
        yield
    finally:
        _set(value=before)


def _get() -> bool:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return pd.get_option(OPTION)


def _set(*, value: bool) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pd.set_option(OPTION, value)
