# Copyright (C) 2026 anomalib-fewshot contributors
# SPDX-License-Identifier: Apache-2.0

"""String columns with the dtype of pandas 2."""

import warnings
from collections.abc import Generator
from contextlib import contextmanager

import pandas as pd

OPTION = "future.infer_string"  # since pandas 2.1, deprecated in pandas 3


@contextmanager
def object_strings() -> Generator[None]:
    """Let pandas infer the dtype ``object`` for string columns within the block, as pandas 2 does.

    anomalib's ``Tabular`` and ``MVTecLOCO`` assign paths and lists to string columns. The string dtype of pandas 3
    raises a ``TypeError`` for them.
    """
    try:
        before = _get()
    except KeyError:  # this version of pandas does not have the option
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
