# Copyright (C) 2026 anomalib-fewshot contributors
# SPDX-License-Identifier: Apache-2.0

"""The command `anomalib inspect`."""

import json
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jsonargparse import ArgumentParser, Namespace

from anomalib_fewshot._cli.command import Command

if TYPE_CHECKING:
    from .run_folder import Entry

FOUND = 3  # exit status of `--fail_on`
RANKS = {"good": 0, "review": 1, "defect": 2, "unknown": 2}  # of verdicts


class Inspect(Command):
    """Train on a folder of good pictures and score new ones. The results are a table and a web page."""

    name = "inspect"
    extra = "inspect"
    skip = {"good", "new", "out", "model", "resume", "marked_good", "bad", "ignore", "unlabeled", "pool"}  # noqa: RUF012
    skip |= {"false_alarm_rate", "image_size", "thresholds", "min_area", "labels", "name"}
    skip |= {"strict", "watch", "serve", "port", "inline", "progress", "on_result"}
    _fail_on: str | None = None

    @staticmethod
    def import_function() -> Callable[..., Any]:
        """Import and return :func:`inspect`."""
        from .inspection import inspect

        return inspect

    @classmethod
    def get_parser(cls, parser: ArgumentParser | None = None) -> ArgumentParser:
        """Return a parser for the arguments of :func:`inspect`, and for what happens with each result."""
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
        parser.add_argument("--resume", type=str, help="Folder of an earlier run to continue, with its settings.")
        parser.add_argument(
            "--marked_good",
            nargs="+",
            type=str,
            help="Good pictures chosen by their scores, such as false alarms. They do not set the thresholds.",
        )
        parser.add_argument("--bad", nargs="+", type=str, help="Defective pictures that the model must not learn from.")
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
        parser.add_argument(
            "--image_size",
            type=int | tuple[int, int] | None,
            help="Size of the network's input, such as 448 or [320,640]. Larger inputs show smaller defects.",
        )
        parser.add_argument(
            "--thresholds",
            type=str,
            help="Thresholds set by hand, such as review=0.9,defect=1.2, or `guaranteed` for the calibrated ones.",
        )
        parser.add_argument("--min_area", type=int, help="Area of the smallest defect, in pixels of the picture.")
        parser.add_argument("--labels", type=str, help="CSV file with path and label (good or bad), for the page.")
        parser.add_argument("--name", type=str, help="Name of the run on the page, such as the part and the shift.")
        parser.add_argument("--strict", action="store_true", help="Stop with an error if a picture cannot be used.")
        parser.add_argument("--watch", action="store_true", help="Score pictures that arrive in --new until Ctrl-C.")
        parser.add_argument(
            "--serve",
            action="store_true",
            help="Serve the page on this computer until Ctrl-C. It stores marks and thresholds, and trains again.",
        )
        parser.add_argument("--port", type=int, default=0, help="Port of the server. 0 chooses a free one.")
        parser.add_argument("--inline", action="store_true", help="Embed the pictures in the page, as a single file.")
        parser.add_argument(
            "--json",
            action="store_true",
            help="Print one JSON object per picture on stdout, and nothing else.",
        )
        parser.add_argument(
            "--on_defect",
            type=str,
            help="Command to run for each defect. The path of the picture and its score are appended.",
        )
        parser.add_argument(
            "--fail_on",
            choices=["review", "defect"],
            help=f"Exit with status {FOUND} if a picture has this verdict or a worse one.",
        )
        return parser

    def run(self, args: Namespace | None = None) -> None:
        """Inspect pictures, and act on each result.

        Args:
            args (Namespace | None): Arguments. Defaults to ``None``: parse the command line.

        Raises:
            SystemExit: As :meth:`Command.run`, or with status 3 if ``--fail_on`` applies.
        """
        arguments = self.get_parser().parse_args() if args is None else args
        as_json, command, self._fail_on = (arguments.pop(name) for name in ("json", "on_defect", "fail_on"))
        if command is not None and shutil.which(shlex.split(command)[0]) is None:
            msg = f"anomalib inspect: `on_defect` must be a command on the PATH, got {command}."
            raise SystemExit(msg)

        def act(path: Path, entry: "Entry") -> None:
            if as_json:
                print(json.dumps({"file": str(path), **entry.to_result()}), flush=True)
            if command is not None and entry.verdict == "defect":
                _run_command(command, path, entry.score)

        arguments.on_result = act
        arguments.progress = "stderr" if as_json else True
        super().run(arguments)

    def show(self, result: Any) -> None:  # noqa: ANN401
        """End with status 3 if ``--fail_on`` applies to the table of results."""
        if self._fail_on is not None and any(RANKS[verdict] >= RANKS[self._fail_on] for verdict in result.verdict):
            raise SystemExit(FOUND)


def _run_command(command: str, path: Path, score: float) -> None:
    """Run a command with a path and a score as further arguments. A failure is reported and changes nothing else."""
    status = subprocess.run([*shlex.split(command), str(path), f"{score:.4f}"], check=False).returncode  # noqa: S603
    if status != 0:
        print(f"`on_defect` ended with exit status {status} for {path}", file=sys.stderr)
