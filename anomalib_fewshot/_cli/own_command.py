# Copyright (C) 2026 anomalib-fewshot contributors
# SPDX-License-Identifier: Apache-2.0

"""Detect anomalib commands that use this package, and suppress irrelevant messages of their imports.

This must run before anomalib is imported, so this file imports only the standard library.
"""

import logging
import re
import sys
import warnings
from functools import cache
from importlib.metadata import entry_points
from pathlib import Path

from anomalib_fewshot._host.program import is_anomalib_command

PACKAGE = "anomalib_fewshot."
COMMENT = re.compile(r"(?:^|\s)#.*")
# A value in a YAML or JSON file, for example `class_path: CoftAD`, `"FewShot",` and `data: anomalib_fewshot.FewShot`.
VALUE = re.compile(r"[:\s\[{,]['\"]?([A-Za-z_][\w.]*)['\"]?\s*(?=[,}\]#\n]|$)", re.MULTILINE)


def names_in_command() -> frozenset[str]:
    """Return the models, data modules and subcommands of this package that the current anomalib command uses.

    The names are read from the arguments and their configuration files. The result is empty in other programs.
    """
    if not is_anomalib_command():
        return frozenset()
    words = {word for argument in sys.argv[1:] for word in argument.split("=")}
    for path in map(Path, words):
        if path.suffix in {".yaml", ".yml", ".json"}:
            try:
                text = path.read_text(encoding="utf-8", errors="replace")
            except OSError:  # anomalib reports the error later
                continue
            words = words | set(VALUE.findall(COMMENT.sub("", text)))
    classes = _own_names("anomalib.models") | _own_names("anomalib.data")
    commands = _own_names("anomalib.pipelines") & set(sys.argv[1:2])
    return commands | {word for word in words if word in classes or word.startswith(PACKAGE)}


@cache
def _own_names(group: str) -> frozenset[str]:
    """Return the names of the entry points of this package."""
    return frozenset(point.name for point in entry_points(group=group) if point.value.startswith(PACKAGE))


def suppress_import_messages(names: frozenset[str]) -> None:
    """Suppress messages of the import of anomalib and of its command line.

    These are deprecation warnings of anomalib's own code, and messages about optional packages.

    Args:
        names (frozenset[str]): Names in the command. `anomalib inspect` suppresses the warnings of all modules.
    """
    modules = "" if "inspect" in names else r"(anomalib|timm)\."
    warnings.filterwarnings("ignore", category=FutureWarning, module=modules)
    logging.getLogger("anomalib.cli").setLevel(logging.WARNING)
    subcommands = {point.name for point in entry_points(group="anomalib.pipelines")}
    if names & subcommands:  # anomalib warns that pipelines are experimental
        logging.getLogger("anomalib.cli.pipelines").setLevel(logging.ERROR)
