# Copyright (C) 2026 anomalib-fewshot contributors
# SPDX-License-Identifier: Apache-2.0

"""Start-up hook: registers the plug-ins as soon as anomalib is imported.

A ``.pth`` file beside the package (``.start`` from Python 3.15 on, PEP 829) calls :func:`install` in every
interpreter, so this file uses the standard library alone, does next to nothing until anomalib is imported, and never
raises. ``ANOMALIB_FEWSHOT_AUTOLOAD=0`` switches it off; :func:`anomalib_fewshot.plugin.register` then does the same
by hand. In anomalib's command line, it also ends imports with one line on Ctrl-C if the arguments name this package.
"""

# ruff: noqa: ANN001, ANN202, ANN206  annotations would need imports

import os
import sys

# The group of entry points that is registered once the module on the left has been executed.
_GROUPS = {
    "anomalib.data": "anomalib.data",
    "anomalib.models": "anomalib.models",
    "anomalib.cli.pipelines": "anomalib.pipelines",
}
_CLI = "anomalib.cli.cli"  # the command line, which sets a hook for uncaught errors when it is imported
_COMMANDS = ("inspect", "fewshot", "fewshot_cost", "fewshot_parity", "fewshot_features")
_CLASSES = ("CoftAD", "ImageStatistic", "RegAD", "UniAD", "DAGM", "ELPV", "FewShot", "MVTecFolder", "MultiCategory")


class _PluginFinder:
    """Finder that finds nothing itself, but has a group registered after its module was executed."""

    @classmethod
    def find_spec(cls, name, path=None, target=None):
        if name not in _GROUPS and name != _CLI:
            return None
        _quiet_own_commands()
        others = (finder for finder in sys.meta_path if finder is not cls and hasattr(finder, "find_spec"))
        spec = next(filter(None, (finder.find_spec(name, path, target) for finder in others)), None)
        if spec is not None and spec.loader is not None:
            _act_after(spec.loader, name)
        return spec


def _quiet_own_commands():
    """Suppress messages about the set-up of anomalib in its command line, if the command uses this package."""
    from anomalib_fewshot._cli.own_command import names_in_command, suppress_import_messages

    names = names_in_command()
    if names:
        suppress_import_messages(names)


def _act_after(loader, name):
    """Register the plug-ins of a group, or print errors as one line, once the module has been executed."""
    execute = loader.exec_module

    def exec_module(module):
        del loader.exec_module  # the module keeps its loader: leave it as it was
        execute(module)
        try:
            _act(name)
        except Exception as error:  # noqa: BLE001  anomalib must be importable whatever happens here
            import warnings

            warnings.warn(f"anomalib-fewshot cannot register its plug-ins: {error!r}", stacklevel=2)

    loader.exec_module = exec_module


def _act(name):
    if name == _CLI:
        from anomalib_fewshot._cli.errors import install_hook
        from anomalib_fewshot._cli.signals import raise_on_signals

        install_hook()
        if _names_package(sys.argv[1:]):
            raise_on_signals()
    else:
        from anomalib_fewshot.plugin import register

        register(_GROUPS[name])


def install() -> None:
    """Wait for anomalib, unless the environment says not to."""
    if os.environ.get("ANOMALIB_FEWSHOT_AUTOLOAD") != "0" and _PluginFinder not in sys.meta_path:
        sys.meta_path.insert(0, _PluginFinder)
        try:  # noqa: SIM105  contextlib would be imported in every interpreter
            _prepare_command_line()
        except Exception:  # noqa: BLE001, S110  every interpreter must start
            pass


def _prepare_command_line():
    """End the imports of anomalib's command line with one line on Ctrl-C, if its arguments name this package."""
    program = os.path.basename(sys.argv[0])  # noqa: PTH119  pathlib is slow
    if program.removesuffix(".exe") == "anomalib" and _names_package(sys.argv[1:]):
        from anomalib_fewshot._cli.signals import exit_on_signals

        exit_on_signals()
        if sys.argv[1] == "inspect":  # threads of torch that wait in a loop make a fit on busy cores many times longer
            os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


def _names_package(arguments):
    """Return whether the arguments of a command, or the configuration files among them, name a part of this package."""
    if arguments[:1] and arguments[0] in _COMMANDS:
        return True
    words = [word for argument in arguments for word in argument.split("=", 1)]
    for path in [word for word in words if word.endswith((".yaml", ".yml", ".json"))]:
        try:
            with open(path, encoding="utf-8") as file:  # noqa: PTH123  pathlib is slow
                words += [word.strip("\"',{}[]") for word in file.read().split()]
        except (OSError, ValueError):  # anomalib reports it
            pass
    return any(word in _CLASSES or word.startswith("anomalib_fewshot.") for word in words)
