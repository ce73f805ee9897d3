# Copyright (C) 2026 anomalib-fewshot contributors
# SPDX-License-Identifier: Apache-2.0

"""anomalib's tables of models, data modules and subcommands.

anomalib documents no way to extend them. It plans to import models, data modules and pipelines on first use (pull
request 3535): modules will have a ``__getattr__`` and a table of names, and subcommands a table of descriptions. The
functions here work with both forms.
"""

from collections.abc import Iterable
from inspect import getdoc
from itertools import accumulate
from types import ModuleType
from typing import Any

OWN_SUBCOMMAND = "benchmark"  # a subcommand of anomalib, which is in each table of subcommands


def add_model(host: ModuleType, name: str, value: type) -> None:
    """Add a model to ``anomalib.models``.

    Undocumented: anomalib looks up names as attributes of the module and in ``__all__``, and ``get_model`` imports full
    class paths only from the modules in ``ALLOWED_MODULES``.
    """
    add_data(host, name, value)
    allowed = getattr(host, "ALLOWED_MODULES", None)
    if allowed is not None:
        _extend(host, "ALLOWED_MODULES", accumulate(value.__module__.split("."), "{}.{}".format))


def add_data(host: ModuleType, name: str, value: type) -> None:
    """Add a data module to ``anomalib.data``. Undocumented: as in :func:`add_model`."""
    setattr(host, name, value)
    _extend(host, "__all__", [name])


def add_pipeline(host: ModuleType, name: str, value: type) -> None:
    """Add a pipeline to ``anomalib.cli.pipelines``, as a subcommand.

    Undocumented: the dictionary ``PIPELINE_REGISTRY``. The name is added to each dictionary of the module that contains
    a subcommand of anomalib. The value is the class, or its description in a table of descriptions.

    Raises:
        LookupError: If the module has no such table.
    """
    tables = pipeline_tables(host)
    if not tables:
        msg = f"{host.__name__} has no table of subcommands: this version of anomalib is not supported."
        raise LookupError(msg)
    description = (getdoc(value) or "").partition("\n")[0]
    for table in tables:
        known = table.get(OWN_SUBCOMMAND)
        if isinstance(known, dict):
            table[name] = {**known, "description": description}
        else:
            table[name] = description if isinstance(known, str) else value


def find_pipeline(host: ModuleType, name: str) -> Any:  # noqa: ANN401  a class or a description
    """Return the entry of ``anomalib.cli.pipelines`` with the given name. ``None`` if there is none."""
    for table in pipeline_tables(host):
        if name in table:
            return table[name]
    return None


def has_pipelines(host: ModuleType) -> bool:
    """Return whether this installation of anomalib has pipelines. Without them its registry is ``None``."""
    return getattr(host, "PIPELINE_REGISTRY", {}) is not None


def pipeline_tables(host: ModuleType) -> list[dict[str, Any]]:
    """Return the tables of subcommands: the registry, and all dictionaries that contain a subcommand of anomalib."""
    registry = getattr(host, "PIPELINE_REGISTRY", None)  # in a lazy module, this creates it
    tables = [registry] if isinstance(registry, dict) else []
    others = (table for table in vars(host).values() if isinstance(table, dict) and OWN_SUBCOMMAND in table)
    return [*tables, *(table for table in others if table is not registry)]


def _extend(host: ModuleType, attribute: str, names: Iterable[str]) -> None:
    """Add names to a collection of a module, in place if possible."""
    collection = getattr(host, attribute, [])
    if isinstance(collection, list):
        collection.extend(names)
    elif isinstance(collection, set):
        collection.update(names)
    else:
        setattr(host, attribute, type(collection)([*collection, *names]))
