# Copyright (C) 2026 anomalib-fewshot contributors
# SPDX-License-Identifier: Apache-2.0

"""`anomalib inspect`."""

from collections.abc import Callable
from typing import Any

from jsonargparse import ArgumentParser

from anomalib_fewshot._cli.command import Command


class Inspect(Command):
    """Train on a folder of good pictures and give verdicts on new ones, in a table and on a page."""

    name = "inspect"
    extra = "inspect"
    skip = {"good", "new", "out", "model", "resume", "ignore", "strict", "watch", "inline", "progress"}  # noqa: RUF012  as below

    @staticmethod
    def import_function() -> Callable[..., Any]:
        """Import :func:`inspect` and return it."""
        from .inspection import inspect

        return inspect

    @classmethod
    def get_parser(cls, parser: ArgumentParser | None = None) -> ArgumentParser:  # type: ignore[override]
        """Return a parser of the arguments of :func:`inspect`."""
        parser = super().get_parser(parser)
        parser.add_argument("--good", nargs="+", type=str, help="Good pictures: folders or files.")
        parser.add_argument("--new", type=str, help="Folder of pictures to score, or one picture.")
        parser.add_argument("--out", type=str, default="results/inspect", help="Folder of runs, each in its own.")
        parser.add_argument("--model", type=str, help="Folder of an earlier run, or a checkpoint.")
        parser.add_argument("--resume", type=str, help="Folder of a run that was ended, to complete.")
        parser.add_argument("--ignore", type=str, help="Mask, white where pictures do not count.")
        parser.add_argument("--strict", action="store_true", help="Refuse pictures that cannot be used.")
        parser.add_argument("--watch", action="store_true", help="Score what comes into --new until Ctrl-C.")
        parser.add_argument("--inline", action="store_true", help="Write the pictures into the page: one file to send.")
        return parser
