# Copyright (C) 2026 anomalib-fewshot contributors
# SPDX-License-Identifier: Apache-2.0

"""The web page of a run. It works offline and shows pictures from the folders next to it, or embedded ones."""

import hashlib
import json
import os
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from anomalib_fewshot._templates import template_environment
from anomalib_fewshot.atomic import write_atomically
from anomalib_fewshot.post_processing import CalibrationScheme, SupportPostProcessor

from . import summary
from .ignore_mask import MASK
from .inline import choose_parts, encode_files, encode_good
from .run_folder import Entry

if TYPE_CHECKING:
    from .session import Session

PAGE = "index.html"
MAX_ISSUES = 200  # on the page; findings.csv lists all


def write_page(folder: Path, data: dict[str, Any]) -> None:
    """Write the page of a run.

    Args:
        folder (Path): Folder of the run.
        data (dict[str, Any]): Content, see :func:`page_data`.
    """
    write_atomically(folder / PAGE, render(data).encode(errors="replace"))


def render(data: dict[str, Any]) -> str:
    """Return the HTML text of a page.

    Args:
        data (dict[str, Any]): Content, see :func:`page_data`. With the entry ``server``, the page may send requests.
    """
    templates = template_environment("anomalib_fewshot.inspection")
    text = json.dumps(data, separators=(",", ":")).replace("<", "\\u003c")  # no name can close <script>
    serves = data["server"] is not None
    return templates.get_template("web/page.html.j2").render(title=data["title"], data=text, serves=serves)


def page_data(session: "Session", *, inline: bool = False) -> dict[str, Any]:
    """Return the content of the page as values for JSON.

    Args:
        session (Session): The run.
        inline (bool): Embed the pictures. Defaults to ``False``.
    """
    run, settings = session.run, session.settings
    entries = list(run.entries.values())
    names = [entry.path for entry in entries]
    parts, note = choose_parts(run.path, names, len(session.good)) if inline else ([], "")
    issues = [(str(issue.path), issue.severity, issue.message) for issue in session.pictures.issues]
    title = f"{summary.count_pictures(len(entries), 'new')} in {settings.new}"
    return {
        "id": settings.started,
        "title": f"{settings.name}: {title}" if settings.name else title,
        "date": settings.started[:10],
        "run": str(run.path),
        "labels_key": hashlib.sha256(os.fsencode(os.path.realpath(settings.new))).hexdigest()[:16],
        "good": settings.good,
        "marked_good": settings.marked_good,
        "bad": settings.bad,
        "new": settings.new,
        "unlabeled": settings.unlabeled,
        "pool": settings.pool,
        "ignore": str(run.path / MASK) if (run.path / MASK).is_file() else None,
        "options": settings.training_options(),
        "notes": [session.post_processor.describe(), *summary.describe_run(session)],
        "warnings": summary.describe_warnings(session) + ([note] if note else []),
        "issues": issues[:MAX_ISSUES],
        "num_issues": len(issues),
        **threshold_data(session.post_processor),
        "min_area": settings.min_area,
        "pictures": [_picture(entry) for entry in entries],
        "support": [asdict(picture) for picture in session.good],
        "labels": session.labels,
        "server": None,
        "inlined": encode_files(run.path, parts, names) if parts else None,
        "inlined_good": encode_good(run.path, len(session.good)) if parts else None,
        "inline_note": note,
    }


def _picture(entry: Entry) -> dict[str, Any]:
    return {
        "path": entry.path,
        "score": entry.score,
        "p": entry.p_value,
        "width": entry.width,
        "height": entry.height,
        "region": entry.region,
        "nearest": entry.nearest,
    }


def threshold_data(post_processor: SupportPostProcessor) -> dict[str, Any]:
    """Return the thresholds, those of the calibration, the calibration scores, and the text below each threshold."""
    metadata = post_processor.metadata()
    has_views = post_processor.scheme is CalibrationScheme.SELF_VIEWS  # of a single picture, which are not its peers
    return {
        "calibration_scores": [] if has_views else [level["score_up_to"] for level in metadata["p_values"]],
        "review": metadata["review_score"],
        "defect": metadata["defect_score"],
        "guaranteed": {"review": metadata["calibrated_review_score"], "defect": metadata["calibrated_defect_score"]},
        "moved": post_processor.has_manual_thresholds,
        "guarantees": _guarantees(post_processor),
    }


def _guarantees(post_processor: SupportPostProcessor) -> dict[str, str]:
    """Return the guarantee of each calibrated threshold as text."""
    scheme, rank = post_processor.scheme, post_processor.rank
    count, num_folds = len(post_processor.calibration_scores), post_processor.num_folds
    if scheme is CalibrationScheme.SELF_VIEWS:
        text = "Calibrated on augmented views of a single good picture: the false-alarm rate is not guaranteed."
        return {"review": text}
    review = rank if scheme is None else scheme.review_rank(rank, count, num_folds)
    return {
        "defect": _guarantee(scheme, rank, count, "called a defect", num_folds),
        "review": _guarantee(scheme, review, count, "marked for review or called a defect", num_folds),
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
