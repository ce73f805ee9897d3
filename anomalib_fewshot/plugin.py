# Copyright (C) 2026 anomalib-fewshot contributors
# SPDX-License-Identifier: Apache-2.0

"""Makes the models, datamodules and pipelines of installed packages known to anomalib.

anomalib finds its parts in tables of its own; this is the only file that knows them. A package takes part by an entry
point in one of the groups ``anomalib.models``, ``anomalib.data`` or ``anomalib.pipelines``, whose name is the name
that anomalib shall know and whose value is the class::

    [project.entry-points."anomalib.models"]
    MyModel = "my_package.my_model:MyModel"

A name that anomalib already has is left alone.
"""

import sys
import warnings
from collections.abc import Callable
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from itertools import accumulate
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lightning.pytorch import Callback

# The module of anomalib that holds the names of each group.
_HOSTS = {
    "anomalib.models": "anomalib.models",
    "anomalib.data": "anomalib.data",
    "anomalib.pipelines": "anomalib.cli.pipelines",
}


def register(group: str | None = None) -> None:
    """Register the entry points of all installed packages with anomalib.

    Called by the start-up hook. It may be called by hand, and any number of times.

    Args:
        group (str | None): One of ``anomalib.models``, ``anomalib.data`` and ``anomalib.pipelines``. All by default.

    Raises:
        ValueError: If there is no such group.
    """
    if group is not None and group not in _HOSTS:
        msg = f"`group` must be one of {sorted(_HOSTS)}, got {group!r}."
        raise ValueError(msg)
    for name in _HOSTS if group is None else [group]:
        table, add = _lookup(name)
        for entry_point in entry_points(group=name):
            _register(entry_point, table, add)


def make_callbacks() -> "list[Callback]":
    """Return the callbacks that Lightning adds to every trainer, by an entry point: none where anomalib is not used."""
    if "anomalib.engine" not in sys.modules:
        return []
    from anomalib_fewshot.callbacks import EvaluationCheck, FewShotRun, PredictCheck, SupportThreshold

    return [SupportThreshold(), FewShotRun(), EvaluationCheck(), PredictCheck()]


def _lookup(group: str) -> tuple[dict[str, Any], Callable[[str, Any], None]]:
    """Return the table in which anomalib looks up the names of a group, and how a name is added to it."""
    host = import_module(_HOSTS[group])
    if group == "anomalib.pipelines":
        table = host.PIPELINE_REGISTRY or {}
        return table, table.__setitem__

    def add(name: str, value: type) -> None:
        setattr(host, name, value)
        host.__all__.append(name)
        if group == "anomalib.models":  # `get_model` imports a full class path from listed modules only
            host.ALLOWED_MODULES.update(accumulate(value.__module__.split("."), "{}.{}".format))

    return vars(host), add


def _register(entry_point: EntryPoint, table: dict[str, Any], add: Callable[[str, Any], None]) -> None:
    package = entry_point.dist.name if entry_point.dist is not None else entry_point.value
    known = table.get(entry_point.name)
    if known is not None:
        origin = f"{getattr(known, '__module__', '')}:{getattr(known, '__qualname__', '')}"
        if origin != entry_point.value:  # else it was registered by an earlier call
            warnings.warn(
                f"anomalib already knows a `{entry_point.name}`: the one of the package `{package}` is not registered.",
                stacklevel=3,
            )
        return
    try:
        add(entry_point.name, entry_point.load())
    except Exception as error:  # noqa: BLE001  a broken package must not break anomalib
        warnings.warn(
            f"The plug-in `{entry_point.name}` of the package `{package}` cannot be loaded and is left out: {error!r}",
            stacklevel=3,
        )
