# Copyright (C) 2026 anomalib-fewshot contributors
# SPDX-License-Identifier: Apache-2.0

"""How Sphinx builds the site: `make docs`."""

# ruff: noqa: E402  a build is quiet and fetches nothing: that is set before anything is imported

import logging
import os
import re
import warnings
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"

warnings.filterwarnings("ignore", category=FutureWarning)  # of imports within anomalib

from docutils import nodes
from sphinx.application import Sphinx

import anomalib_fewshot
import anomalib_fewshot.models  # noqa: F401  before the examples, whose output would have the warnings

project = "anomalib-fewshot"
author = "anomalib-fewshot contributors"
version = release = anomalib_fewshot.__version__

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx_external_toc",
    "sphinx_gallery.gen_gallery",
]
external_toc_path = "_toc.yml"  # the pages contain no toctree, so that they render on a repository host as well
exclude_patterns = ["_build", "gallery", "examples/**/README.md", "results"]
myst_enable_extensions = ["colon_fence"]
myst_heading_anchors = 3  # links to `page.md#a-heading` work here as on a host of repositories
suppress_warnings = ["config.cache", "etoc.toctree"]  # the gallery's order is a function, and it writes a toctree

python_maximum_signature_line_length = 100
autodoc_typehints = "none"  # types stand in the docstrings
autodoc_member_order = "bysource"
napoleon_use_ivar = True
napoleon_numpy_docstring = False


def quiet(_settings: dict, _script: str) -> None:
    """Leave notes of Lightning and of anomalib out of the output of an example: they name paths of this machine."""
    warnings.simplefilter("ignore")
    for name in [*logging.root.manager.loggerDict, "lightning_fabric.utilities.rank_zero"]:  # it is imported later
        if name.startswith(("lightning", "anomalib.")):
            logging.getLogger(name).setLevel(logging.ERROR)


sphinx_gallery_conf = {
    "examples_dirs": "gallery",
    "gallery_dirs": "auto_gallery",
    "filename_pattern": r"/plot_",
    "within_subsection_order": "FileNameSortKey",
    "remove_config_comments": True,
    "download_all_examples": False,
    "min_reported_time": 3600,
    "reset_modules": ("matplotlib", quiet),
    "show_memory": False,
    "show_signature": False,
}

html_theme = "pydata_sphinx_theme"
html_title = project
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_show_sourcelink = False
html_theme_options = {
    "navigation_with_keys": False,
    "show_toc_level": 2,
    "navbar_end": ["theme-switcher"],
    "footer_start": ["copyright"],
    "footer_end": [],
}
html_copyright = copyright = "2026 anomalib-fewshot contributors, Apache-2.0"  # noqa: A001  Sphinx's name


def link_examples(_app: Sphinx, _page: str, source: list[str]) -> None:
    """Let links to an example's script, which are for hosts of repositories, lead to the page that is made of it."""
    source[0] = re.sub(r"\(gallery/(plot_\w+)\.py\)", r"(auto_gallery/\1.rst)", source[0])


def inline_figures(app: Sphinx, doctree: nodes.document) -> None:
    """Put SVG figures into the page itself, where they take the colours of the theme, light or dark."""
    for image in list(doctree.findall(nodes.image)):
        path = Path(app.srcdir) / image["uri"]
        if path.suffix == ".svg":
            svg = re.sub(r"<\?xml.*?\?>\s*", "", path.read_text(encoding="utf-8"))
            html = f'<div class="flow" tabindex="0" role="group" aria-label="Figure">{svg}</div>'
            image.replace_self(nodes.raw("", html, format="html"))


def tidy_tables(_app: Sphinx, doctree: nodes.document) -> None:
    """Leave out empty heads, and mark cells that hold figures alone, which are not broken into lines."""
    for head in list(doctree.findall(nodes.thead)):
        if not head.astext().strip():
            head.parent.remove(head)
    for cell in doctree.findall(nodes.entry):
        if re.fullmatch(r"[-+\d.,%/ \[\]]+", cell.astext()):
            cell["classes"].append("figures")


def setup(app: Sphinx) -> None:
    """Connect what is this site's own."""
    app.connect("source-read", link_examples)
    app.connect("doctree-read", inline_figures)
    app.connect("doctree-read", tidy_tables)
