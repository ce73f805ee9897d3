# Copyright (C) 2026 anomalib-fewshot contributors
# SPDX-License-Identifier: Apache-2.0

"""Description of a calibrated threshold in words."""

from .calibration_scheme import CalibrationScheme, needed, rate_bound


def describe_calibration(
    scheme: CalibrationScheme | None,
    count: int,
    rank: int,
    rate: float | None,
    num_folds: int | None,
) -> str:
    """Return how a threshold was calibrated and what it guarantees.

    Args:
        scheme (CalibrationScheme | None): Calibration scheme. ``None`` for anomalib's own threshold.
        count (int): Number of normal images.
        rank (int): Rank of the threshold among their scores.
        rate (float | None): Guaranteed mean false-alarm rate, if there is one.
        num_folds (int | None): Number of folds of ``CV_PLUS``.
    """
    if scheme is None:
        return "The threshold was fitted to validation images. The false-alarm rate is not guaranteed."
    sources = {
        CalibrationScheme.JACKKNIFE_PLUS: f"{count} good image{'' if count == 1 else 's'} (jackknife+)",
        CalibrationScheme.CV_PLUS: f"{count} good images (CV+ with {num_folds} folds)",
        CalibrationScheme.SPLIT: f"{count} good validation images (split calibration)",
        CalibrationScheme.LEAVE_ONE_OUT: f"{count} good images (leave-one-out)",
        CalibrationScheme.SELF_VIEWS: "augmented views of a single good image",
        CalibrationScheme.TRAINING: f"{count} good images that were used in training",
    }
    text = f"Threshold calibrated on {sources[scheme]}. "
    if count == 1:
        guarantee = "is not guaranteed" if rate is None else f"of the threshold is at most {100 * rate:.2g} %"
        return text + (
            f"The false-alarm rate {guarantee}, and no image is called a defect: images above the threshold are "
            "marked for review. Provide at least two good images."
        )
    if scheme is CalibrationScheme.TRAINING:
        return text + (
            "The false-alarm rate is not guaranteed: many new good images exceed this threshold. Provide "
            "validation images: `FewShot(validation='source')`."
        )
    if rate is None:
        return text + (
            f"About {rank} in {count + 1} good images of the same kind exceed it, but the false-alarm rate is not "
            "guaranteed."
        )
    text += f"On average over support sets, at most {100 * rate:.2g} % of good parts are flagged as defects."
    if scheme is CalibrationScheme.SPLIT:
        bound = 100 * rate_bound(rank, count)
        return f"{text} For this calibration set: at most {bound:.2g} % (95 % confidence)."
    return f"{text} For 5 %, provide at least {needed(0.05)} good images." if rate > 0.05 else text
