# Copyright (C) 2026 anomalib-fewshot contributors
# SPDX-License-Identifier: Apache-2.0

"""Subcommands of anomalib that call a function."""

import gc
import sys
from abc import abstractmethod
from collections.abc import Callable
from typing import Any, ClassVar, NoReturn

from anomalib.pipelines.components.base import Pipeline
from jsonargparse import ActionConfigFile, ArgumentParser, Namespace

from anomalib_fewshot._cli.signals import is_ending, last_line, raise_on_signals
from anomalib_fewshot._extras import extra_required
from anomalib_fewshot._host.program import is_anomalib_command
from anomalib_fewshot.errors import FewShotError, MissingDependencyError

INTERRUPTED = 130  # exit status after Ctrl-C


class Command(Pipeline):
    """Pipeline that calls a function with the arguments of the command line or of a configuration file.

    anomalib creates the parsers of all subcommands in each command. Therefore a missing optional package must not raise
    an error until the subcommand that requires it is used.

    Attributes:
        name (str): Name of the subcommand.
        extra (str): Extra of this package that installs the imports of the function.
        skip (set[str]): Arguments of the function that the parser omits.
    """

    name: ClassVar[str]
    extra: ClassVar[str]
    skip: ClassVar[set[str | int]] = set()

    @staticmethod
    @abstractmethod
    def import_function() -> Callable[..., Any]:
        """Import the function and return it."""

    @classmethod
    def function(cls) -> Callable[..., Any]:
        """Return the function.

        Raises:
            MissingDependencyError: If a package of the extra is not installed.
        """
        with extra_required(cls.extra, f"`anomalib {cls.name}`"):
            return cls.import_function()

    @classmethod
    def get_parser(cls, parser: ArgumentParser | None = None) -> ArgumentParser:
        """Return a parser for the arguments of the function, with an option for a configuration file."""
        try:
            function = cls.function()
        except MissingDependencyError as error:
            return _FailingParser(error)
        if parser is None:
            parser = ArgumentParser(description=cls.__doc__)
            parser.add_argument("-c", "--config", action=ActionConfigFile, help="YAML file with the arguments below.")
        parser.add_function_arguments(function, skip=cls.skip)
        return parser

    def run(self, args: Namespace | None = None) -> None:
        """Call the function.

        Args:
            args (Namespace | None): Arguments of the function. Defaults to ``None``: parse the command line.

        Raises:
            SystemExit: With a message, if an argument is wrong or results cannot be written. With exit status 130 after
                Ctrl-C, or 143 after SIGTERM.
        """
        arguments = (self.get_parser().parse_args() if args is None else args).as_dict()
        raise_on_signals()
        try:
            result = self.function()(**{name: _plain(value) for name, value in arguments.items() if name != "config"})
        except (FewShotError, OSError, ValueError) as error:
            msg = f"anomalib {self.name}: {error}"
            raise SystemExit(msg) from error
        except KeyboardInterrupt:
            if not is_ending():  # otherwise the signal handler prints the message
                print(last_line(self.name), file=sys.stderr)
            raise SystemExit(INTERRUPTED) from None
        if is_anomalib_command():
            gc.freeze()  # otherwise the process spends seconds at its end on collecting the objects of torch
        self.show(result)

    def show(self, result: Any) -> None:  # noqa: ANN401
        """Print the result. By default nothing, because the function has printed it."""

    def _setup_runners(self, args: dict) -> list:
        """Not used: the base class would lose the results of an interrupted run."""
        raise NotImplementedError


class _FailingParser(ArgumentParser):
    """Parser of a command with a missing package. It raises the error when the command is used.

    Args:
        error (MissingDependencyError): Error to raise.
    """

    def __init__(self, error: MissingDependencyError) -> None:
        super().__init__()
        self._missing = error

    def parse_args(self, *_args: Any, **_kwargs: Any) -> NoReturn:  # noqa: ANN401
        """Raise the error.

        Raises:
            MissingDependencyError: Always.
        """
        raise self._missing


def _plain(value: Any) -> Any:  # noqa: ANN401  any value of a YAML file
    """Return a value with namespaces converted to dictionaries. ``as_dict`` skips namespaces in lists."""
    if isinstance(value, Namespace):
        value = value.as_dict()
    if isinstance(value, dict):
        return {name: _plain(part) for name, part in value.items()}
    if isinstance(value, list):
        return [_plain(part) for part in value]
    return value
