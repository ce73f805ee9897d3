# Copyright (C) 2026 anomalib-fewshot contributors
# SPDX-License-Identifier: Apache-2.0

"""The page of a run: one file, which needs no network, with the pictures in folders beside it or within it."""

import json
from collections.abc import Sequence
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape

from anomalib_fewshot.atomic import write_atomically
from anomalib_fewshot.post_processing import Rule, SupportPostProcessor

from .inline import choose_parts, encode
from .run_folder import RunFolder

PAGE = "index.html"


def write_page(
    run: RunFolder,
    post_processor: SupportPostProcessor,
    findings: Sequence[tuple[str, str, str]],
    drift: str,
    *,
    inline: bool = False,
) -> str:
    """Write the page of what a run has scored.

    Args:
        run (RunFolder): The run.
        post_processor (SupportPostProcessor): Lines and what they promise.
        findings (Sequence[tuple[str, str, str]]): Path, severity and message of what is wrong with files.
        drift (str): What is said of a drift.
        inline (bool): Write the pictures into it. Defaults to ``False``.

    Returns:
        str: A line on pictures that are too large for that, or nothing.
    """
    jinja = Environment(
        loader=PackageLoader("anomalib_fewshot.inspection", "."),
        autoescape=select_autoescape(["html.j2"]),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    settings, names = run.settings, list(run.entries)
    parts, note = choose_parts(run.path, names) if inline else ([], "")
    data = {
        "id": settings["started"],
        "good": settings["good"],
        "new": settings["new"],
        "ignore": str(run.path / "ignore.png") if (run.path / "ignore.png").is_file() else None,
        "pictures": [
            [entry.path, entry.score, entry.p_value, entry.width, entry.height] for entry in run.entries.values()
        ],
        "inlined": encode(run.path, parts, names) if parts else None,
        **_lines(post_processor),
    }
    content = {
        "title": f"{len(run.entries)} pictures of {settings['new']}",
        "description": post_processor.describe(),
        "drift": drift,
        "findings": findings,
        "data": json.dumps(data, separators=(",", ":")).replace("<", "\\u003c"),  # no tag can end the script
    }
    write_atomically(run.path / PAGE, jinja.get_template("page.html.j2").render(content).encode(errors="replace"))
    return note


def _lines(post_processor: SupportPostProcessor) -> dict[str, Any]:
    """Return the lines, the held-out scores, and the words under each line."""
    about = post_processor.metadata()
    rule, count, rank = post_processor.rule, about.get("num_normal", 0), post_processor.rank
    if rule is Rule.VIEWS:
        only = {
            "look": "There is one good picture: above this line are scores that its own views do not have. No promise.",
        }
        return {"levels": [], "look": about["look_score"], "defect": None, "promises": only}
    look = rank if rule is None else rule.look_rank(rank, count, post_processor.num_folds)
    words = {
        "defect": _promise(rule, rank, count, "called a defect", post_processor.num_folds),
        "look": _promise(rule, look, count, "called look or defect", post_processor.num_folds),
    }
    levels = [level["score_up_to"] for level in about.get("p_values", [])]
    return {"levels": levels, "look": about["look_score"], "defect": about["defect_score"], "promises": words}


def _promise(rule: Rule | None, rank: int, count: int, what: str, num_folds: int | None = None) -> str:
    """Say how many good pictures a line is above, at most.

    Example:
        >>> _promise(Rule.HELD_OUT, 1, 4, "called a defect")
        'With this line at most 1 in 5 new good pictures is called a defect, on average over choices of the 4.'
    """
    rate = None if rule is None else rule.promised_rate(rank, count, num_folds)
    if rate is None or rate >= 1:
        return f"With this line about {rank} in {count + 1} new good pictures are {what}; nothing is promised."
    number = rate * (count + 1)
    share = f"{number:.0f} in {count + 1}" if abs(number - round(number)) < 1e-6 else f"{rate:.2g}"
    verb = "is" if share.startswith("1 ") else "are"
    return f"With this line at most {share} new good pictures {verb} {what}, on average over choices of the {count}."
