# Copyright (C) 2026 anomalib-fewshot contributors
# SPDX-License-Identifier: Apache-2.0

"""A function as a subcommand of anomalib."""

from collections.abc import Callable
from typing import Any, ClassVar

from anomalib.pipelines.components.base import Pipeline
from jsonargparse import ActionConfigFile, ArgumentParser, Namespace


class Command(Pipeline):
    """Part of a pipeline that is a function: its arguments come from the command line and from a file.

    Attributes:
        name (str): Name of the subcommand.
        function (Callable): The function, as a static method.
        skip (set[str]): Arguments that the parser does not have.
    """

    name: ClassVar[str]
    function: ClassVar[Callable[..., Any]]
    skip: ClassVar[set[str | int]] = set()

    @classmethod
    def get_parser(cls, parser: ArgumentParser | None = None) -> ArgumentParser:  # type: ignore[override]
        """Return a parser of the arguments of the function, which a file can give too."""
        if parser is None:
            parser = ArgumentParser(description=cls.__doc__)
            parser.add_argument("-c", "--config", action=ActionConfigFile, help="YAML file of the arguments below.")
        parser.add_function_arguments(cls.function, skip=cls.skip)
        return parser

    def run(self, args: Namespace | None = None) -> None:
        """Call the function.

        Args:
            args (Namespace | None): Its arguments. Defaults to ``None``: the command line's.

        Raises:
            SystemExit: If an argument is wrong or if results cannot be written, with the reason.
        """
        arguments = (self.get_parser().parse_args() if args is None else args).as_dict()
        try:
            result = self.function(**{name: _plain(value) for name, value in arguments.items() if name != "config"})
        except (ModuleNotFoundError, OSError, ValueError) as error:
            msg = f"anomalib {self.name}: {error}"
            raise SystemExit(msg) from error
        self.show(result)

    def show(self, result: Any) -> None:  # noqa: ANN401
        """Print what the function returns. By default nothing: it has done so itself."""

    def _setup_runners(self, args: dict) -> list:
        """Not used: the base class would lose the results of a run that is ended."""
        raise NotImplementedError


def _plain(value: Any) -> Any:  # noqa: ANN401  whatever a file may hold
    """Return a value without the parser's namespaces, which it leaves in lists: of callbacks, for one."""
    if isinstance(value, Namespace):
        value = value.as_dict()
    if isinstance(value, dict):
        return {name: _plain(part) for name, part in value.items()}
    return [_plain(part) for part in value] if isinstance(value, list) else value
