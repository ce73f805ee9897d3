# Copyright (C) 2026 anomalib-fewshot contributors
# SPDX-License-Identifier: Apache-2.0

"""Error messages for missing optional packages, with the extra that installs them."""

from collections.abc import Generator
from contextlib import contextmanager

from .errors import MissingDependencyError

# Top-level modules that each extra installs. `pyproject.toml` lists the packages.
EXTRAS = {
    "benchmark": {"filelock", "jinja2", "markupsafe", "matplotlib", "sklearn", "yaml"},
    "inspect": {"jinja2", "starlette", "uvicorn"},
}


@contextmanager
def extra_required(extra: str, subject: str) -> Generator[None]:
    """Raise an error that names the extra if an import within the block fails.

    Args:
        extra (str): Name of the extra, a key of ``EXTRAS``.
        subject (str): Command or module that requires the extra, the subject of the message.

    Raises:
        MissingDependencyError: If a package of the extra is not installed.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        name = (error.name or "").partition(".")[0]
        if name not in EXTRAS[extra]:
            raise
        msg = f"{subject} requires {name}, which is not installed. Run `pip install 'anomalib-fewshot[{extra}]'`."
        raise MissingDependencyError(msg, name=name) from error
