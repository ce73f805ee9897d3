# Copyright (C) 2026 anomalib-fewshot contributors
# SPDX-License-Identifier: Apache-2.0

"""Start-up hook: registers the plug-ins as soon as anomalib is imported.

A ``.pth`` file beside the package (``.start`` from Python 3.15 on, PEP 829) calls :func:`install` in every
interpreter, so this file uses the standard library alone, does next to nothing until anomalib is imported, and never
raises. ``ANOMALIB_FEWSHOT_AUTOLOAD=0`` switches it off; :func:`anomalib_fewshot.plugin.register` then does the same
by hand.
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


class _PluginFinder:
    """Finder that finds nothing itself, but has a group registered after its module was executed."""

    @classmethod
    def find_spec(cls, name, path=None, target=None):
        if name not in _GROUPS and name != _CLI:
            return None
        if sys.argv[1:2] == ["inspect"]:
            _suppress_import_warnings()
        others = (finder for finder in sys.meta_path if finder is not cls and hasattr(finder, "find_spec"))
        spec = next(filter(None, (finder.find_spec(name, path, target) for finder in others)), None)
        if spec is not None and spec.loader is not None:
            _act_after(spec.loader, name)
        return spec


def _suppress_import_warnings():
    """Keep what imports log and warn of from the command whose reader wants a verdict: `anomalib inspect`."""
    import logging
    import warnings

    warnings.filterwarnings("ignore", category=FutureWarning)
    logging.getLogger("anomalib.cli").setLevel(logging.ERROR)


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
        from anomalib_fewshot._cli_errors import install_hook

        install_hook()
    else:
        from anomalib_fewshot.plugin import register

        register(_GROUPS[name])


def install() -> None:
    """Wait for anomalib, unless the environment says not to."""
    if os.environ.get("ANOMALIB_FEWSHOT_AUTOLOAD") != "0" and _PluginFinder not in sys.meta_path:
        sys.meta_path.insert(0, _PluginFinder)
