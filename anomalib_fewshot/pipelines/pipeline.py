# Copyright (C) 2026 anomalib-fewshot contributors
# SPDX-License-Identifier: Apache-2.0

"""The benchmark as a subcommand of anomalib."""

from jsonargparse import ArgumentParser

from .command import Command
from .sweep import benchmark


class FewShotBenchmark(Command):
    """Compare models on few normal images: the same supports, several seeds, paired differences."""

    name = "fewshot"
    function = staticmethod(benchmark)
    skip = {"dry_run"}  # noqa: RUF012  a flag instead

    @classmethod
    def get_parser(cls, parser: ArgumentParser | None = None) -> ArgumentParser:  # type: ignore[override]
        """Return a parser of the arguments of :func:`benchmark`, which a file can give too."""
        parser = super().get_parser(parser)
        parser.add_argument("--dry_run", action="store_true", help="Show the runs and an estimate, and do nothing.")
        return parser
