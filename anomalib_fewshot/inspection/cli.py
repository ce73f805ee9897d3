# Copyright (C) 2026 anomalib-fewshot contributors
# SPDX-License-Identifier: Apache-2.0

"""The command `anomalib inspect`."""

from collections.abc import Callable
from typing import Any

from jsonargparse import ArgumentParser

from anomalib_fewshot._cli.command import Command


class Inspect(Command):
    """Train on a folder of good pictures and score new ones. The results are a table and a web page."""

    name = "inspect"
    extra = "inspect"
    skip = {"good", "new", "out", "model", "resume", "ignore", "strict", "watch", "inline", "progress"}  # noqa: RUF012

    @staticmethod
    def import_function() -> Callable[..., Any]:
        """Import and return :func:`inspect`."""
        from .inspection import inspect

        return inspect

    @classmethod
    def get_parser(cls, parser: ArgumentParser | None = None) -> ArgumentParser:
        """Return a parser for the arguments of :func:`inspect`."""
        parser = super().get_parser(parser)
        parser.add_argument("--good", nargs="+", type=str, help="Good pictures: folders or files.")
        parser.add_argument("--new", type=str, help="Folder of pictures to score, or a single picture.")
        parser.add_argument(
            "--out",
            type=str,
            default="results/inspect",
            help="Output folder, with one subfolder per run.",
        )
        parser.add_argument("--model", type=str, help="Folder of an earlier run, or a checkpoint, to score with.")
        parser.add_argument("--resume", type=str, help="Folder of an interrupted run to resume.")
        parser.add_argument("--ignore", type=str, help="Mask image. White regions are ignored.")
        parser.add_argument("--strict", action="store_true", help="Stop with an error if a picture cannot be used.")
        parser.add_argument("--watch", action="store_true", help="Score pictures that arrive in --new until Ctrl-C.")
        parser.add_argument("--inline", action="store_true", help="Embed the pictures in the page, as a single file.")
        return parser
