# Copyright (C) 2026 anomalib-fewshot contributors
# SPDX-License-Identifier: Apache-2.0

"""The page of a run: one file, which needs no network, with the pictures in folders beside it or within it."""

import json
from collections.abc import Sequence
from typing import Any

from anomalib_fewshot._templates import template_environment
from anomalib_fewshot.atomic import write_atomically
from anomalib_fewshot.post_processing import CalibrationScheme, SupportPostProcessor

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
    """Write the page of a run.

    Args:
        run (RunFolder): The run.
        post_processor (SupportPostProcessor): Thresholds and their guarantee.
        findings (Sequence[tuple[str, str, str]]): Path, severity and message of each data issue.
        drift (str): Drift report.
        inline (bool): Embed the pictures. Defaults to ``False``.

    Returns:
        str: A note about pictures that are too large to embed, or an empty string.
    """
    templates = template_environment("anomalib_fewshot.inspection")
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
    write_atomically(run.path / PAGE, templates.get_template("page.html.j2").render(content).encode(errors="replace"))
    return note


def _lines(post_processor: SupportPostProcessor) -> dict[str, Any]:
    """Return the thresholds, the calibration scores, and the text below each threshold."""
    about = post_processor.metadata()
    scheme, count, rank = post_processor.scheme, about.get("num_normal", 0), post_processor.rank
    if scheme is CalibrationScheme.SELF_VIEWS:
        only = {
            "review": "Calibrated on views of a single good picture: the false-alarm rate is not guaranteed.",
        }
        return {"calibration_scores": [], "review": about["review_score"], "defect": None, "guarantees": only}
    num_folds = post_processor.num_folds
    review = rank if scheme is None else scheme.review_rank(rank, count, num_folds)
    words = {
        "defect": _guarantee(scheme, rank, count, "called a defect", num_folds),
        "review": _guarantee(scheme, review, count, "marked for review or called a defect", num_folds),
    }
    calibration_scores = [level["score_up_to"] for level in about.get("p_values", [])]
    return {
        "calibration_scores": calibration_scores,
        "review": about["review_score"],
        "defect": about["defect_score"],
        "guarantees": words,
    }


def _guarantee(
    scheme: CalibrationScheme | None,
    rank: int,
    count: int,
    what: str,
    num_folds: int | None = None,
) -> str:
    """Return the guarantee of a threshold as text.

    Example:
        >>> _guarantee(CalibrationScheme.JACKKNIFE_PLUS, 1, 4, "called a defect")
        'At this threshold, at most 1 in 5 new good pictures is called a defect, on average over support sets.'
    """
    rate = None if scheme is None else scheme.guaranteed_fpr(rank, count, num_folds)
    if rate is None or rate >= 1:
        return f"At this threshold, about {rank} in {count + 1} new good pictures are {what} (not guaranteed)."
    number = rate * (count + 1)
    share = f"{number:.0f} in {count + 1}" if abs(number - round(number)) < 1e-6 else f"{rate:.2g}"
    verb = "is" if share.startswith("1 ") else "are"
    return f"At this threshold, at most {share} new good pictures {verb} {what}, on average over support sets."
