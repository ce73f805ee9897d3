# Copyright (C) 2026 anomalib-fewshot contributors
# SPDX-License-Identifier: Apache-2.0

"""Functions as subcommands of anomalib."""

import sys
from abc import abstractmethod
from collections.abc import Callable
from typing import Any, ClassVar, NoReturn

from anomalib.pipelines.components.base import Pipeline
from jsonargparse import ActionConfigFile, ArgumentParser, Namespace

from anomalib_fewshot._cli.signals import is_ending, last_line, raise_on_signals
from anomalib_fewshot._extras import extra_required
from anomalib_fewshot.errors import FewShotError, MissingDependencyError

INTERRUPTED = 130  # exit status of a command that Ctrl-C has ended


class Command(Pipeline):
    """A function as a pipeline: its arguments come from the command line and from a file.

    anomalib makes the parsers of all subcommands for each command. So a missing optional package is an error of the
    subcommand that needs it, and of no other.

    Attributes:
        name (str): Name of the subcommand.
        extra (str): Extra of this package that installs what the function imports.
        skip (set[str]): Arguments that the parser does not have.
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
    def get_parser(cls, parser: ArgumentParser | None = None) -> ArgumentParser:  # type: ignore[override]
        """Return a parser of the arguments of the function, which a file can give too."""
        try:
            function = cls.function()
        except MissingDependencyError as error:
            return _FailingParser(error)
        if parser is None:
            parser = ArgumentParser(description=cls.__doc__)
            parser.add_argument("-c", "--config", action=ActionConfigFile, help="YAML file of the arguments below.")
        parser.add_function_arguments(function, skip=cls.skip)
        return parser

    def run(self, args: Namespace | None = None) -> None:
        """Call the function.

        Args:
            args (Namespace | None): Its arguments. Defaults to ``None``: the command line's.

        Raises:
            SystemExit: If an argument is wrong or results cannot be written, with the reason; or after Ctrl-C, with
                exit status 130, or after SIGTERM, with 143.
        """
        arguments = (self.get_parser().parse_args() if args is None else args).as_dict()
        raise_on_signals()
        try:
            result = self.function()(**{name: _plain(value) for name, value in arguments.items() if name != "config"})
        except (FewShotError, OSError, ValueError) as error:
            msg = f"anomalib {self.name}: {error}"
            raise SystemExit(msg) from error
        except KeyboardInterrupt:
            if not is_ending():  # otherwise the line is printed at the very end
                print(last_line(self.name), file=sys.stderr)
            raise SystemExit(INTERRUPTED) from None
        self.show(result)

    def show(self, result: Any) -> None:  # noqa: ANN401
        """Print the result. By default nothing: the function has printed it."""

    def _setup_runners(self, args: dict) -> list:
        """Not used: the base class would lose the results of a run that is ended."""
        raise NotImplementedError


class _FailingParser(ArgumentParser):
    """The parser of a command that lacks a package: it raises the error when the command is used.

    Args:
        error (MissingDependencyError): The error.
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


def _plain(value: Any) -> Any:  # noqa: ANN401  whatever a file may hold
    """Return a value without the parser's namespaces, which it leaves in lists: in those of callbacks."""
    if isinstance(value, Namespace):
        value = value.as_dict()
    if isinstance(value, dict):
        return {name: _plain(part) for name, part in value.items()}
    return [_plain(part) for part in value] if isinstance(value, list) else value
