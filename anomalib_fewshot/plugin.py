# Copyright (C) 2026 anomalib-fewshot contributors
# SPDX-License-Identifier: Apache-2.0

"""Makes the models, datamodules and pipelines of installed packages known to anomalib.

anomalib finds its parts in tables of its own, see ``_host/registry.py``. A package takes part with an entry
point in one of the groups ``anomalib.models``, ``anomalib.data`` or ``anomalib.pipelines``, whose name is the name
that anomalib shall know and whose value is the class::

    [project.entry-points."anomalib.models"]
    MyModel = "my_package.my_model:MyModel"

A name that anomalib already has is left alone.
"""

import warnings
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from types import ModuleType
from typing import Any

from anomalib_fewshot._host.registry import add_data, add_model, add_pipeline, find_pipeline, has_pipelines

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
        host = import_module(_HOSTS[name])
        if name == "anomalib.pipelines" and not has_pipelines(host):
            continue
        for entry_point in entry_points(group=name):
            _register(entry_point, host)


def _find(host: ModuleType, entry_point: EntryPoint) -> Any:  # noqa: ANN401  a class, or anything of that name
    """Return what anomalib already has under the name of an entry point. ``None`` if it has nothing."""
    if entry_point.group == "anomalib.pipelines":
        return find_pipeline(host, entry_point.name)
    return getattr(host, entry_point.name, None)


def _register(entry_point: EntryPoint, host: ModuleType) -> None:
    package = entry_point.dist.name if entry_point.dist is not None else entry_point.value
    known = _find(host, entry_point)
    if known is not None:
        origin = f"{getattr(known, '__module__', '')}:{getattr(known, '__qualname__', '')}"
        if origin != entry_point.value:  # else it was registered by an earlier call
            warnings.warn(
                f"anomalib already knows a `{entry_point.name}`: the one of the package `{package}` is not registered.",
                stacklevel=3,
            )
        return
    add = {"anomalib.models": add_model, "anomalib.data": add_data, "anomalib.pipelines": add_pipeline}
    try:
        add[entry_point.group](host, entry_point.name, entry_point.load())
    except Exception as error:  # noqa: BLE001  a broken package must not break anomalib
        warnings.warn(
            f"The plug-in `{entry_point.name}` of the package `{package}` cannot be loaded and is left out: {error!r}",
            stacklevel=3,
        )
