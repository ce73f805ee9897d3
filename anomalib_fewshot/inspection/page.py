# Copyright (C) 2026 anomalib-fewshot contributors
# SPDX-License-Identifier: Apache-2.0

"""The web page of a run. It works offline and shows pictures from the folders next to it, or embedded ones."""

import json
from collections.abc import Sequence
from typing import Any

from anomalib_fewshot._templates import template_environment
from anomalib_fewshot.atomic import write_atomically
from anomalib_fewshot.post_processing import CalibrationScheme, SupportPostProcessor

from .inline import choose_parts, encode_files
from .run_folder import RunFolder

PAGE = "index.html"


def write_page(
    run: RunFolder,
    post_processor: SupportPostProcessor,
    issues: Sequence[tuple[str, str, str]],
    drift: str,
    pool: str = "",
    *,
    inline: bool = False,
) -> str:
    """Write the page of a run.

    Args:
        run (RunFolder): The run.
        post_processor (SupportPostProcessor): Thresholds and their guarantee.
        issues (Sequence[tuple[str, str, str]]): Path, severity and message of each data issue.
        drift (str): Drift report.
        pool (str): Sentence about the unlabeled pictures that the model has learned from. Defaults to ``""``.
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
        "unlabeled": settings.get("unlabeled", []),
        "pool": settings.get("pool", False),
        "ignore": str(run.path / "ignore.png") if (run.path / "ignore.png").is_file() else None,
        "pictures": [
            [entry.path, entry.score, entry.p_value, entry.width, entry.height] for entry in run.entries.values()
        ],
        "inlined": encode_files(run.path, parts, names) if parts else None,
        **_thresholds(post_processor),
    }
    content = {
        "title": f"{len(run.entries)} pictures of {settings['new']}",
        "description": post_processor.describe(),
        "pool": pool,
        "drift": drift,
        "issues": issues,
        "data": json.dumps(data, separators=(",", ":")).replace("<", "\\u003c"),  # no name can close <script>
    }
    write_atomically(run.path / PAGE, templates.get_template("page.html.j2").render(content).encode(errors="replace"))
    return note


def _thresholds(post_processor: SupportPostProcessor) -> dict[str, Any]:
    """Return the thresholds, the calibration scores, and the text below each threshold."""
    metadata = post_processor.metadata()
    scheme, rank = post_processor.scheme, post_processor.rank
    count = metadata.get("num_normal", 0)
    if scheme is CalibrationScheme.SELF_VIEWS:
        text = "Calibrated on augmented views of a single good picture: the false-alarm rate is not guaranteed."
        return {
            "calibration_scores": [],
            "review": metadata["review_score"],
            "defect": None,
            "guarantees": {"review": text},
        }
    num_folds = post_processor.num_folds
    review = rank if scheme is None else scheme.review_rank(rank, count, num_folds)
    guarantees = {
        "defect": _guarantee(scheme, rank, count, "called a defect", num_folds),
        "review": _guarantee(scheme, review, count, "marked for review or called a defect", num_folds),
    }
    calibration_scores = [level["score_up_to"] for level in metadata.get("p_values", [])]
    return {
        "calibration_scores": calibration_scores,
        "review": metadata["review_score"],
        "defect": metadata["defect_score"],
        "guarantees": guarantees,
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
        'At this threshold, at most 1 in 5 new good pictures is called a defect, on average over sets of good pictures.'
    """
    rate = None if scheme is None else scheme.guaranteed_fpr(rank, count, num_folds)
    if rate is None or rate >= 1:
        return f"At this threshold, about {rank} in {count + 1} new good pictures are {what} (not guaranteed)."
    number = rate * (count + 1)
    is_whole = abs(number - round(number)) < 1e-6
    share = f"{number:.0f} in {count + 1}" if is_whole else f"{100 * rate:.2g} % of"
    verb = "is" if share.startswith("1 in ") else "are"
    return f"At this threshold, at most {share} new good pictures {verb} {what}, on average over sets of good pictures."
