# Copyright (C) 2026 anomalib-fewshot contributors
# SPDX-License-Identifier: Apache-2.0

"""Start-up hook: registers the plug-ins when anomalib is imported.

A ``.pth`` file next to the package (``.start`` since Python 3.15, PEP 829) calls :func:`install` in every interpreter.
Therefore this file imports only the standard library, does almost nothing until anomalib is imported, and never raises
an error. ``ANOMALIB_FEWSHOT_AUTOLOAD=0`` disables the hook, and :func:`anomalib_fewshot.plugin.register` registers the
plug-ins manually.

In anomalib commands that use this package, the hook also makes Ctrl-C end the imports without a traceback, and lets
torch's threads sleep while they wait (``OMP_WAIT_POLICY``).
"""

# ruff: noqa: ANN001, ANN202, ANN206  annotations would need imports

import os
import sys

# After the import of the module on the left, the entry points of the group on the right are registered.
_GROUPS = {
    "anomalib.data": "anomalib.data",
    "anomalib.models": "anomalib.models",
    "anomalib.cli.pipelines": "anomalib.pipelines",
}
_CLI = "anomalib.cli.cli"  # the command line, whose import sets a hook for uncaught errors


class _PluginFinder:
    """Import hook: delegates to the other finders, and registers the plug-ins after the import."""

    @classmethod
    def find_spec(cls, name, path=None, target=None):
        if name not in _GROUPS and name != _CLI:
            return None
        _suppress_import_messages()
        for finder in sys.meta_path:
            if finder is cls or not hasattr(finder, "find_spec"):
                continue
            spec = finder.find_spec(name, path, target)
            if spec is not None:
                if spec.loader is not None:
                    _act_after_import(spec.loader, name)
                return spec
        return None


def _suppress_import_messages():
    """Suppress the messages of anomalib's imports if the current command uses this package."""
    from anomalib_fewshot._cli.own_command import names_in_command, suppress_import_messages

    names = names_in_command()
    if names:
        suppress_import_messages(names)


def _act_after_import(loader, name):
    """Call :func:`_act` after the loader has executed the module."""
    execute = loader.exec_module

    def exec_module(module):
        del loader.exec_module  # the module keeps the loader: restore its method
        execute(module)
        try:
            _act(name)
        except Exception as error:  # noqa: BLE001  an error here must not break the import of anomalib
            import warnings

            warnings.warn(f"anomalib-fewshot cannot register its plug-ins: {error!r}", stacklevel=2)

    loader.exec_module = exec_module


def _act(name):
    """Register the plug-ins of a module, or set the hooks of the command line."""
    if name == _CLI:
        from anomalib_fewshot._cli.errors import install_hook
        from anomalib_fewshot._cli.own_command import names_in_command
        from anomalib_fewshot._cli.signals import raise_on_signals

        install_hook()
        if names_in_command():
            raise_on_signals()
    else:
        from anomalib_fewshot.plugin import register

        register(_GROUPS[name])


def install() -> None:
    """Install the import hook, unless ``ANOMALIB_FEWSHOT_AUTOLOAD=0`` is set."""
    if os.environ.get("ANOMALIB_FEWSHOT_AUTOLOAD") != "0" and _PluginFinder not in sys.meta_path:
        sys.meta_path.insert(0, _PluginFinder)
        try:  # noqa: SIM105  would import contextlib in every interpreter
            _prepare_command_line()
        except Exception:  # noqa: BLE001, S110  every interpreter must start
            pass


def _prepare_command_line():
    """Check arguments, and set signal handlers and the wait policy of threads, if anomalib will use this package."""
    program = os.path.basename(sys.argv[0])  # noqa: PTH119  pathlib is slow
    if program.removesuffix(".exe") != "anomalib":
        return
    from anomalib_fewshot._cli.own_command import names_in_command
    from anomalib_fewshot._cli.signals import exit_on_signals

    names = names_in_command()
    if "inspect" in names:
        from anomalib_fewshot._cli.early_check import exit_on_error

        exit_on_error(sys.argv[2:])
    if names:
        exit_on_signals()
        # Without it, waiting threads keep the cores busy: training beside other programs takes many times longer.
        os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
