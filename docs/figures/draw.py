# Copyright (C) 2026 anomalib-fewshot contributors
# SPDX-License-Identifier: Apache-2.0

"""Draw the figures of the pages: `python docs/figures/draw.py` writes an SVG file for each beside this one.

Boxes stand on a grid. The colours follow the theme of the site, where the files are put into the page, and the
reader's system elsewhere.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from html import escape
from itertools import pairwise
from pathlib import Path

WIDTH, HEIGHT, GAP_X, GAP_Y, LABEL = 172, 64, 22, 26, 64
LIGHT = {"ink": "#222832", "data": "#f3f4f5", "frozen": "#d6e6f7", "trained": "#fbe0c4", "fitted": "#d3ecd4"}
DARK = {"ink": "#e8ebef", "data": "#2b3038", "frozen": "#1f3f60", "trained": "#613a12", "fitted": "#1d4a28"}


@dataclass(frozen=True)
class Box:
    """A step of a method.

    Args:
        column (float): Place on the grid, from 0.
        row (float): Place on the grid, from 0.
        text (str): Lines, the first of which is the title.
        kind (str): ``"data"``, ``"frozen"``, ``"trained"`` or ``"fitted"``.
    """

    column: float
    row: float
    text: str
    kind: str = "data"

    @property
    def left(self) -> float:
        """Left edge, in pixels."""
        return LABEL + self.column * (WIDTH + GAP_X)

    @property
    def top(self) -> float:
        """Upper edge, in pixels."""
        return 1 + self.row * (HEIGHT + GAP_Y)

    def svg(self) -> str:
        """Return the box with its text in the middle."""
        title, *notes = (escape(line) for line in self.text.split("\n"))
        x, y = self.left + WIDTH / 2, self.top + HEIGHT / 2 + 4 - 8 * len(notes)
        lines = "".join(f'<tspan x="{x:g}" dy="16" class="flow-note">{note}</tspan>' for note in notes)
        place = f'x="{self.left:g}" y="{self.top:g}" width="{WIDTH}" height="{HEIGHT}" rx="8"'
        heading = f'<tspan font-weight="600">{title}</tspan>'
        text = f'<text x="{x:g}" y="{y:g}" text-anchor="middle">{heading}{lines}</text>'
        return f'<rect {place} class="flow-{self.kind}"/>{text}'


def arrow(start: Box, end: Box) -> str:
    """Return an arrow from a box to one in its row, or to one above or below it."""
    if start.row == end.row:
        y, forward = start.top + HEIGHT / 2, end.column > start.column
        x1, x2 = (start.left + WIDTH, end.left - 3) if forward else (start.left, end.left + WIDTH + 3)
        path = f"M{x1:g} {y:g}H{x2:g}"
    else:
        down = end.row > start.row
        y1, y2 = (start.top + HEIGHT, end.top - 3) if down else (start.top, end.top + HEIGHT + 3)
        x1, x2 = start.left + WIDTH / 2, end.left + WIDTH / 2
        path = f"M{x1:g} {y1:g}V{(y1 + y2) / 2:g}H{x2:g}V{y2:g}"
    return f'<path d="{path}" class="flow-arrow" marker-end="url(#flow-head)"/>'


def style() -> str:
    """Return the colours: those of the theme of the site, else those of the reader's system."""
    light, dark = (";".join(f"--flow-{name}:{value}" for name, value in theme.items()) for theme in (LIGHT, DARK))
    kinds = "".join(f".flow-{kind}{{fill:var(--flow-{kind});stroke:var(--flow-ink)}}" for kind in list(LIGHT)[1:])
    return (
        f"<style>.flow-svg{{{light}}}@media(prefers-color-scheme:dark){{.flow-svg{{{dark}}}}}"
        f"html[data-theme=light] .flow-svg{{{light}}}html[data-theme=dark] .flow-svg{{{dark}}}"
        f".flow-svg text{{font:13px system-ui,sans-serif;fill:var(--flow-ink)}}.flow-svg .flow-note{{font-size:12px}}"
        f".flow-svg .flow-label{{font-weight:600}}{kinds}"
        f".flow-arrow{{fill:none;stroke:var(--flow-ink);stroke-width:1.5}}.flow-tip{{fill:var(--flow-ink)}}</style>"
    )


def figure(title: str, labels: Iterable[str], rows: Iterable[list[Box]], across: Iterable[tuple[Box, Box]] = ()) -> str:
    """Return an SVG file: a label and a chain of boxes a row, and arrows between rows."""
    rows = list(rows)
    boxes = [box for row in rows for box in row]
    pairs = [pair for row in rows for pair in pairwise(row)]
    width = max(box.left for box in boxes) + WIDTH + 1
    height = max(box.top for box in boxes) + HEIGHT + 1
    names = "".join(
        f'<text x="0" y="{row[0].top + HEIGHT / 2 + 4:g}" class="flow-label">{escape(label)}</text>'
        for label, row in zip(labels, rows, strict=True)
    )
    head = '<marker id="flow-head" viewBox="0 0 8 8" refX="5" refY="4" markerWidth="6" markerHeight="6" orient="auto">'
    size = f'viewBox="0 0 {width:g} {height:g}" width="{width:g}"'
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" {size} class="flow-svg" role="img" aria-label="{escape(title)}">',
        style(),
        f'<defs>{head}<path d="M0 0L8 4L0 8z" class="flow-tip"/></marker></defs>',
        names,
        *(arrow(*pair) for pair in [*pairs, *across]),
        *(box.svg() for box in boxes),
        "</svg>",
    ]
    return "\n".join(parts) + "\n"


def row(number: float, *boxes: tuple[float, str, str]) -> list[Box]:
    """Return the boxes of a row, each given by its column, text and kind."""
    return [Box(column, number, text, kind) for column, text, kind in boxes]


def coft_ad() -> str:
    """Return CoftAD by default: one fit, then scores."""
    fit = row(
        0,
        (0, "k normal images", "data"),
        (1, "backbone\nstrides 8, 16, the last", "frozen"),
        (2, "held-out images\nsynthetic anomalies", "data"),
        (3, "whitening\nwith the other images", "fitted"),
        (4, "adaptation A\n40 steps", "trained"),
    )
    score = row(
        1,
        (0, "new image", "data"),
        (1, "backbone", "frozen"),
        (2, "Gaussians of patches\n3, each with its A", "fitted"),
        (3, "anomaly map\nsum of the distances", "data"),
        (4, "score\nrank among held-out", "data"),
    )
    title = "CoftAD: held-out images and synthetic anomalies adapt the metric of Gaussians of patches"
    return figure(title, ["fit", "score"], [fit, score], [(fit[4], score[2])])


def reg_ad() -> str:
    """Return RegAD: training on other categories, fit, scores."""
    train = row(
        0,
        (0, "query and supports\nof another category", "data"),
        (1, "trunk\n3 stages, each warped", "trained"),
        (2, "encoder E\npredictor P", "trained"),
        (3, "registration loss\nnegative cosine", "data"),
    )
    fit = row(
        1,
        (0, "k normal images\n22 views of each", "data"),
        (1, "trunk", "frozen"),
        (2, "3 maps, warped back\non the finest grid", "data"),
        (3, "a Gaussian\nat each position", "fitted"),
    )
    score = row(
        2,
        (0, "new image", "data"),
        (1, "trunk", "frozen"),
        (2, "3 maps, warped back", "data"),
        (3, "Mahalanobis distance\nat each position", "fitted"),
        (4, "map, smoothed\nscore: its maximum", "data"),
    )
    title = "RegAD: a trunk trained by registration on other categories, then a Gaussian at each position"
    across = [(train[1], fit[1]), (fit[1], score[1]), (fit[3], score[3])]
    return figure(title, ["train", "fit", "score"], [train, fit, score], across)


def uni_ad() -> str:
    """Return UniAD: tokens, their reconstruction, the difference."""
    tokens = row(
        0,
        (0, "image\nof any category", "data"),
        (1, "backbone\nstrides 2, 4, 8, 16", "frozen"),
        (2, "tokens\n14 x 14 of 192 channels", "data"),
        (3, "jitter\nin training only", "data"),
        (4, "encoder\nneighbors are masked", "trained"),
    )
    back = row(
        1,
        (4, "decoder\nlearned query, same mask", "trained"),
        (3, "reconstruction", "data"),
        (2, "token minus\nreconstruction: length", "data"),
        (1, "anomaly map", "data"),
        (0, "score: highest mean\nof 32 x 32 pixels", "data"),
    )
    title = "UniAD: a transformer reconstructs tokens of a frozen backbone from distant tokens"
    return figure(title, ["tokens", "score"], [tokens, back], [(tokens[4], back[0]), (tokens[2], back[2])])


def architecture() -> str:
    """Return the order of calls, from the set-up of the data to the export."""
    setup = row(
        0,
        (0, "source.setup\nsplits its images", "frozen"),
        (1, "FewShot.setup\nselects and checks k", "fitted"),
        (2, "AutoSizePreProcessor\nimage size", "fitted"),
        (3, "setup of the model\nnetwork of this size", "fitted"),
    )
    train = row(
        1,
        (0, "PreProcessor\nresize, normalization", "fitted"),
        (1, "training_step\nof the model", "fitted"),
        (2, "fit(), once\non support()", "fitted"),
        (3, "SupportPostProcessor\nfit_normal: thresholds", "fitted"),
        (4, "results folder\nmodel.ckpt, support.json", "data"),
    )
    score = row(
        2,
        (0, "PreProcessor\nresize, normalization", "fitted"),
        (1, "forward\nof the torch model", "fitted"),
        (2, "SupportPostProcessor\nlabel, mask, verdict", "fitted"),
        (3, "CategoryEvaluator\nin a test", "fitted"),
        (4, "ImageVisualizer\nimages/", "frozen"),
    )
    export = row(
        3,
        (0, "check_fitted", "fitted"),
        (1, "one graph\nfrom image to label", "frozen"),
        (2, "model.onnx", "data"),
        (3, "metadata.json", "data"),
    )
    title = "Order of calls: set-up, training, scoring and export"
    return figure(title, ["set-up", "train", "score", "export"], [setup, train, score, export])


FIGURES = {draw.__name__: draw for draw in (architecture, coft_ad, reg_ad, uni_ad)}

if __name__ == "__main__":
    for name, draw in FIGURES.items():
        Path(__file__).with_name(f"{name}.svg").write_text(draw(), encoding="utf-8")
