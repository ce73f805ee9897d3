# Copyright (C) 2026 anomalib-fewshot contributors
# SPDX-License-Identifier: Apache-2.0

"""Sentences about a run, for the terminal and the page."""

import shlex
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING

import pandas as pd

from anomalib_fewshot.post_processing import VERDICTS, SupportPostProcessor

from .drift import describe_drift
from .labels import describe_missed

if TYPE_CHECKING:
    from .session import Session

MAX_DEFECT_SHARE = 0.3  # of the new pictures, beyond the false alarms: with more, a pool does harm
MAX_SUGGESTED_RATE = 0.4  # a higher false-alarm rate is not useful as the rate of defects
LARGE = 2.0  # pictures with this many times the pixels of the network's input may hide small defects
LARGER_INPUT = 1.4  # suggested side of the input, relative to the current one: twice the pixels


def count_pictures(count: int, kind: str) -> str:
    """Return a number of pictures in words.

    Example:
        >>> count_pictures(1, "good"), count_pictures(4, "new")
        ('1 good picture', '4 new pictures')
    """
    return f"{count} {kind} picture{'' if count == 1 else 's'}"


def summary_lines(session: "Session", table: pd.DataFrame) -> list[str]:
    """Return the last lines of the output: the verdicts, what they mean, the results and the next commands."""
    counts = table.verdict.value_counts()
    verdicts = ", ".join(f"{counts.get(verdict, 0)} {verdict}" for verdict in VERDICTS[::-1])
    skipped = f" {len(session.pictures.skipped)} skipped." if session.pictures.skipped else ""
    folder = session.run.path
    run = shlex.quote(str(folder))
    misses = describe_misses(session)
    return [
        "",
        session.post_processor.describe(),
        *describe_warnings(session),
        f"{count_pictures(len(table), 'new')}: {verdicts}.{skipped}",
        *([misses] if misses else []),
        *describe_run(session),
        f"Page        {folder / 'index.html'}",
        f"Table       {folder / 'scores.csv'}",
        f"Heat maps   {folder / 'overlays'}",
        f"Checkpoint  {folder / 'model.ckpt'}",
        f"Score more  anomalib inspect --model {run} --new FOLDER",
        f"Export      anomalib export --model CoftAD --ckpt_path {run}/model.ckpt --export_type onnx --export_root DIR",
    ]


def describe_warnings(session: "Session") -> list[str]:
    """Return warnings about the pictures and about the training."""
    pool = describe_defective_pool(session)
    return [*session.settings.warnings, *([pool] if pool else [])]


def describe_run(session: "Session") -> list[str]:
    """Return what a user should know about the verdicts. Sentences that do not apply are omitted."""
    texts = [
        describe_marked(session),
        describe_sensitivity(session.post_processor),
        describe_size(session),
        describe_pool(session),
        describe_scores(session),
    ]
    return [text for text in texts if text]


def describe_misses(session: "Session") -> str:
    """Return that pictures called good may be defective, with the share of those that are marked bad."""
    verdicts = {entry.path: entry.verdict for entry in session.run.entries.values()}
    if "good" not in verdicts.values():
        return ""
    missed = describe_missed(session.labels, verdicts)
    return f"Pictures called good may be defective. Check those with the highest scores first. {missed}".rstrip()


def describe_marked(session: "Session") -> str:
    """Return how many pictures marked good the model has learned from, or an empty string."""
    count = len(session.pictures.marked_good)
    if not count:
        return ""
    return f"The model has learned from {count_pictures(count, 'further good')}, which do not set the thresholds."


def describe_sensitivity(post_processor: SupportPostProcessor) -> str:
    """Return how to find more defects, or an empty string without a guaranteed rate."""
    rate = post_processor.guaranteed_fpr
    count = len(post_processor.calibration_scores)
    if rate is None or post_processor.scheme is None or count == 1:
        return ""
    higher = post_processor.scheme.guaranteed_fpr(post_processor.rank + 1, count, post_processor.num_folds)
    text = "More good images mean fewer false alarms, not more defects found. To find more defects, "
    if higher is None or higher > MAX_SUGGESTED_RATE:
        return f"{text}check the pictures marked for review, or move the thresholds on the page."
    return f"{text}use --false_alarm_rate {higher:.2g}."


def describe_size(session: "Session") -> str:
    """Return that the pictures are much larger than the input of the network, or an empty string."""
    entries = session.run.entries.values()
    if not entries or session.settings.image_size is not None:
        return ""
    width, height = median(entry.width for entry in entries), median(entry.height for entry in entries)
    rows, columns = session.scorer.size
    if width * height < LARGE * rows * columns:
        return ""
    larger = [round(LARGER_INPUT * side / 32) * 32 for side in (rows, columns)]
    size = str(larger[0]) if rows == columns else f"[{larger[0]},{larger[1]}]"
    return (
        f"The pictures have {width:.0f} x {height:.0f} pixels, and the model sees {columns} x {rows}. If defects are "
        f"small, try --image_size {size}, which takes about twice the time."
    )


def describe_pool(session: "Session") -> str:
    """Return how many unlabeled pictures the model has learned from, or an empty string."""
    if session.pool is None:
        return ""
    return session.pool.describe(session.pool_size, len(outdated(session)))


def outdated(session: "Session") -> list[Path]:
    """Return the pictures that an earlier model has scored, with a smaller pool."""
    entries = session.run.entries.values()
    names = [entry.path for entry in entries if entry.num_unlabeled != session.pool_size]
    return [path for path in map(session.pictures.path, names) if path.is_file()]


def describe_defective_pool(session: "Session") -> str:
    """Return that many of the pictures that the model has learned from look defective, or an empty string."""
    if session.pool is None or not session.pool_size:
        return ""
    entries = session.run.entries.values()
    num_defects = sum(entry.verdict == "defect" for entry in entries)
    expected = session.post_processor.guaranteed_fpr or 0
    if num_defects <= (expected + MAX_DEFECT_SHARE) * len(entries):
        return ""
    return (
        f"{num_defects} of {count_pictures(len(entries), 'new')} look defective. If they are, the model may learn "
        "defects as normal: train without the new pictures (--no-pool)."
    )


def describe_scores(session: "Session") -> str:
    """Return the drift report. Pictures are ordered by name."""
    entries = sorted(session.run.entries.values(), key=lambda entry: entry.path)
    metadata = session.post_processor.metadata()
    levels = metadata.get("p_values", [])
    # Below the calibrated review threshold, only the distance orders pictures.
    calibration_scores = [max(level["score_up_to"], metadata["calibrated_review_score"]) for level in levels]
    return describe_drift([entry.score for entry in entries], calibration_scores)
