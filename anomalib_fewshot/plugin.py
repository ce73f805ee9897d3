# Copyright (C) 2026 anomalib-fewshot contributors
# SPDX-License-Identifier: Apache-2.0

"""Register the models, data modules and pipelines of installed packages with anomalib.

anomalib looks them up in its own tables, see ``_host/registry.py``. A package registers a class with an entry point in
one of the groups ``anomalib.models``, ``anomalib.data`` or ``anomalib.pipelines``. The name of the entry point is the
name in anomalib, and its value is the class::

    [project.entry-points."anomalib.models"]
    MyModel = "my_package.my_model:MyModel"

Existing names in anomalib are not replaced.
"""

import warnings
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from types import ModuleType
from typing import Any

from anomalib_fewshot._host.registry import add_data, add_model, add_pipeline, find_pipeline, has_pipelines

# Module of anomalib that has the names of each group.
_HOSTS = {
    "anomalib.models": "anomalib.models",
    "anomalib.data": "anomalib.data",
    "anomalib.pipelines": "anomalib.cli.pipelines",
}


def register(group: str | None = None) -> None:
    """Register the entry points of all installed packages with anomalib.

    The start-up hook calls this function. Repeated calls have no effect.

    Args:
        group (str | None): ``"anomalib.models"``, ``"anomalib.data"`` or ``"anomalib.pipelines"``. Defaults to
            ``None``: all groups.

    Raises:
        ValueError: If ``group`` is unknown.
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


def _find(host: ModuleType, entry_point: EntryPoint) -> Any:  # noqa: ANN401  a class, or any other attribute of the module
    """Return the object that anomalib already has under the name of an entry point, or ``None``."""
    if entry_point.group == "anomalib.pipelines":
        return find_pipeline(host, entry_point.name)
    return getattr(host, entry_point.name, None)


def _register(entry_point: EntryPoint, host: ModuleType) -> None:
    package = entry_point.dist.name if entry_point.dist is not None else entry_point.value
    known = _find(host, entry_point)
    if known is not None:
        origin = f"{getattr(known, '__module__', '')}:{getattr(known, '__qualname__', '')}"
        if origin != entry_point.value:  # otherwise an earlier call registered it
            warnings.warn(
                f"`{entry_point.name}` of the package `{package}` is not registered: anomalib already has this name.",
                stacklevel=3,
            )
        return
    add = {"anomalib.models": add_model, "anomalib.data": add_data, "anomalib.pipelines": add_pipeline}
    try:
        add[entry_point.group](host, entry_point.name, entry_point.load())
    except Exception as error:  # noqa: BLE001  a broken package must not break anomalib
        warnings.warn(
            f"`{entry_point.name}` of the package `{package}` is not registered: its import failed with {error!r}",
            stacklevel=3,
        )
