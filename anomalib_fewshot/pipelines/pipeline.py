# Copyright (C) 2026 anomalib-fewshot contributors
# SPDX-License-Identifier: Apache-2.0

"""The benchmark as a subcommand of anomalib."""

from typing import TYPE_CHECKING, Any

from anomalib.pipelines.components.base import Pipeline
from jsonargparse import ActionConfigFile, ArgumentParser, Namespace

from .sweep import benchmark

if TYPE_CHECKING:
    from anomalib.pipelines.components.base import Runner


class FewShotBenchmark(Pipeline):
    """Compare models on few normal images: the same supports, several seeds, paired differences."""

    @staticmethod
    def get_parser(parser: ArgumentParser | None = None) -> ArgumentParser:
        """Return a parser of the arguments of :func:`benchmark`, which a file can give too."""
        if parser is None:
            parser = ArgumentParser(description=FewShotBenchmark.__doc__)
            parser.add_argument("-c", "--config", action=ActionConfigFile, help="YAML file of the arguments below.")
        parser.add_function_arguments(benchmark, skip={"dry_run"})
        parser.add_argument("--dry_run", action="store_true", help="Show the runs and an estimate, and do nothing.")
        return parser

    def run(self, args: Namespace | None = None) -> None:
        """Run the benchmark.

        Args:
            args (Namespace | None): Arguments of :func:`benchmark`. Defaults to ``None``: the command line's.

        Raises:
            SystemExit: If an argument is wrong or if results cannot be written, with the reason.
        """
        arguments = (self.get_parser().parse_args() if args is None else args).as_dict()
        try:
            benchmark(**{name: _plain(value) for name, value in arguments.items() if name != "config"})
        except (ModuleNotFoundError, OSError, ValueError) as error:
            msg = f"anomalib fewshot: {error}"
            raise SystemExit(msg) from error

    def _setup_runners(self, args: dict) -> "list[Runner]":
        """Not used: the base class would lose the results of a run that is ended."""
        raise NotImplementedError


def _plain(value: Any) -> Any:  # noqa: ANN401  whatever a file may hold
    """Return a value without the parser's namespaces, which it leaves in lists: of callbacks, for one."""
    if isinstance(value, Namespace):
        value = value.as_dict()
    if isinstance(value, dict):
        return {name: _plain(part) for name, part in value.items()}
    return [_plain(part) for part in value] if isinstance(value, list) else value
