# Copyright (C) 2026 anomalib-fewshot contributors
# SPDX-License-Identifier: Apache-2.0

"""Specifications of models and datamodules: ``class_path`` and ``init_args``, as in anomalib's configuration files."""

from collections.abc import Iterator, Mapping
from copy import deepcopy
from difflib import get_close_matches
from functools import cache
from importlib import import_module
from inspect import Parameter, signature
from itertools import product
from pathlib import Path
from typing import Any

import anomalib.data  # registers the classes, so that short names work  # noqa: F401
import anomalib.models  # noqa: F401
import yaml
from jsonargparse import ArgumentError, ArgumentParser, Namespace

Spec = dict[str, Any]


def read_spec(spec: str | Path | Mapping[str, Any]) -> Spec:
    """Return a specification as a dictionary. It can be the path of a YAML file, such as one in ``configs/model``.

    Raises:
        FileNotFoundError: If the file does not exist.
        ValueError: If ``class_path`` is missing.
    """
    if isinstance(spec, Mapping):
        content = dict(spec)
    else:
        if not Path(spec).is_file():
            msg = f"A model must be a `class_path` with `init_args`, or the path of a YAML file, got {str(spec)!r}."
            raise FileNotFoundError(msg)
        content = yaml.safe_load(Path(spec).read_text(encoding="utf-8"))
    if not isinstance(content, dict) or "class_path" not in content:
        msg = f"A model or datamodule must have a `class_path`, got {content!r}."
        raise ValueError(msg)
    return {"class_path": content["class_path"], "init_args": dict(content.get("init_args") or {})}


def instantiate(spec: Spec, base: type) -> Any:  # noqa: ANN401
    """Create the object that a specification describes.

    Args:
        spec (dict): ``class_path`` (short name or full path) and ``init_args``, which can contain specifications.
        base (type): Required base class.

    Raises:
        ValueError: If the class or an argument does not exist, or if an argument has the wrong type.
    """
    find_class(spec, base)
    return _parser(base).instantiate_classes(_parse(spec, base)).spec


def check_spec(spec: Spec, base: type) -> type:
    """Validate the arguments of a specification without creating the object, and return its class.

    Raises:
        ValueError: As for :func:`instantiate`.
    """
    cls = find_class(spec, base)
    _parse(spec, base)
    return cls


def find_class(spec: Spec, base: type) -> type:
    """Return the class of a specification.

    Raises:
        ValueError: If the class does not exist or is not a subclass of ``base``.
    """
    module, _, name = str(spec["class_path"]).rpartition(".")
    known = {cls.__name__: cls for cls in _subclasses(base)}
    try:
        cls = getattr(import_module(module), name) if module else known[name]
    except (AttributeError, ImportError, KeyError) as error:
        close = get_close_matches(name, known, n=3)
        hint = f"Similar names: {close}." if close else "No similar name exists."
        msg = f"{_class_rule(base)}, got {spec['class_path']!r}. {hint}"
        raise ValueError(msg) from error
    if not (isinstance(cls, type) and issubclass(cls, base)):
        msg = f"{_class_rule(base)}, got {spec['class_path']!r}, which is not a subclass."
        raise ValueError(msg)  # noqa: TRY004  a wrong value in the user's configuration
    return cls


def parameters(spec: Spec, base: type) -> Mapping[str, Parameter]:
    """Return the constructor arguments of the class."""
    return signature(find_class(spec, base)).parameters


def with_arguments(spec: Spec, arguments: Mapping[str, Any]) -> Spec:
    """Return a specification with some arguments replaced."""
    return spec | {"init_args": spec["init_args"] | arguments}


def without_defaults(value: Any) -> Any:  # noqa: ANN401
    """Return a value in which specifications contain no arguments with their default values.

    When the command line reads a nested specification, such as a ``pre_processor``, it adds all default arguments.
    Without them, a run has the same settings whether they come from the command line, a model's file or Python.
    """
    if isinstance(value, list | tuple):
        return [without_defaults(part) for part in value]
    if not isinstance(value, Mapping):
        return value
    content = {name: without_defaults(part) for name, part in value.items()}
    if "class_path" in content:
        defaults = _default_arguments(content["class_path"])
        arguments = content.pop("init_args", None) or {}
        changed = {
            name: argument for name, argument in arguments.items() if name not in defaults or argument != defaults[name]
        }
        if changed:
            content["init_args"] = changed
    return content


@cache
def _default_arguments(class_path: str) -> dict[str, Any]:
    """Return the default arguments that the command line adds for a class. Empty if the class cannot be imported."""
    module, _, name = class_path.rpartition(".")
    try:
        cls = getattr(import_module(module), name)
    except (AttributeError, ImportError, ValueError):  # a wrong class is reported when the model is created
        return {}
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(cls)
    defaults = parser.get_defaults().as_dict()
    return {name: without_defaults(value) for name, value in defaults.items()}


def variants(spec: Spec) -> Iterator[tuple[str, Spec]]:
    """Yield the name and specification of each combination of grid values.

    Args:
        spec (dict): A specification. An argument ``{"grid": [...]}`` takes each of the values.

    Example:
        >>> spec = {"class_path": "CoftAD", "init_args": {"seed": 1, "num_steps": {"grid": [0, 30]}}}
        >>> [(name, variant["init_args"]) for name, variant in variants(spec)]
        [('num_steps=0', {'seed': 1, 'num_steps': 0}), ('num_steps=30', {'seed': 1, 'num_steps': 30})]
    """
    arguments = spec["init_args"]
    grids = {
        name: value["grid"] for name, value in arguments.items() if isinstance(value, dict) and set(value) == {"grid"}
    }
    for values in product(*grids.values()):
        chosen = dict(zip(grids, values, strict=True))
        yield ", ".join(f"{name}={value}" for name, value in chosen.items()), with_arguments(spec, chosen)


def _class_rule(base: type) -> str:
    """Return the first part of an error message about ``class_path``."""
    article = "an" if base.__name__[0] in "AEIOU" else "a"
    return f"`class_path` must name {article} {base.__name__}"


def _parser(base: type) -> ArgumentParser:
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--spec", type=base)
    return parser


def _parse(spec: Spec, base: type) -> Namespace:
    try:
        return _parser(base).parse_object({"spec": deepcopy(spec)})  # the parser modifies its input
    except ArgumentError as error:
        lines = [line.strip() for line in str(error).splitlines()[2:]]  # the first two lines repeat the specification
        msg = f"The arguments of {spec['class_path']} are invalid: {' '.join(lines)}"
        raise ValueError(msg) from error


def _subclasses(base: type) -> Iterator[type]:
    cls: type
    for cls in base.__subclasses__():
        yield cls
        yield from _subclasses(cls)
