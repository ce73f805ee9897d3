# Copyright (C) 2026 anomalib-fewshot contributors
# SPDX-License-Identifier: Apache-2.0

"""Jinja templates of the pages and reports."""

from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape


def template_environment(package: str) -> Environment:
    """Return a Jinja environment for the templates in the folder of a package.

    Values are escaped in ``*.html.j2`` only. An undefined name is an error.

    Args:
        package (str): Full name of the package, such as ``"anomalib_fewshot.inspection"``.
    """
    return Environment(
        loader=PackageLoader(package, "."),
        autoescape=select_autoescape(["html.j2"]),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
