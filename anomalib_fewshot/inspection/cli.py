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
    skip = {"good", "new", "out", "model", "resume", "ignore", "unlabeled", "pool"}  # noqa: RUF012
    skip |= {"false_alarm_rate", "strict", "watch", "inline", "progress"}

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
        parser.add_argument(
            "--unlabeled",
            nargs="+",
            type=str,
            help="Older pictures to learn from, besides the new ones: folders or files. They are not scored.",
        )
        parser.add_argument(
            "--no-pool",
            dest="pool",
            action="store_false",
            help="Learn from the good pictures only, not from the new ones.",
        )
        parser.add_argument(
            "--false_alarm_rate",
            type=float,
            help="Highest share of good pictures called a defect, such as 0.1. A higher rate finds more defects.",
        )
        parser.add_argument("--strict", action="store_true", help="Stop with an error if a picture cannot be used.")
        parser.add_argument("--watch", action="store_true", help="Score pictures that arrive in --new until Ctrl-C.")
        parser.add_argument("--inline", action="store_true", help="Embed the pictures in the page, as a single file.")
        return parser
