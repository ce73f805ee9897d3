# Copyright (C) 2026 anomalib-fewshot contributors
# SPDX-License-Identifier: Apache-2.0

"""Settings of a run, and the check of the arguments that they come from."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from datetime import datetime
from pathlib import Path
from typing import Any

from anomalib_fewshot._cli.early_check import SOURCES_MESSAGE, missing_message
from anomalib_fewshot.errors import ArgumentError, MissingDataError

ImagePaths = str | Path | Sequence[str | Path]
GUARANTEED = "guaranteed"  # value of the argument `thresholds` that restores the calibrated ones


def now() -> str:
    """Return the current time in ISO format."""
    return datetime.now().astimezone().isoformat(timespec="microseconds")


@dataclass
class Settings:
    """Settings of a run, which ``run.json`` stores.

    Args:
        new (str): Folder of new pictures, or a single picture.
        good (list[str]): Folders and files of good pictures.
        marked_good (list[str]): Good pictures that were chosen by their scores. They do not set the thresholds.
        bad (list[str]): Folders and files of pictures that the model must not learn from.
        unlabeled (list[str]): Folders and files of older pictures to learn from.
        pool (bool): Learn from unlabeled pictures.
        false_alarm_rate (float | None): Requested false-alarm rate.
        image_size (int | list[int] | None): Size of the network's input. ``None`` follows the shape of the pictures.
        min_area (int | None): Smallest anomalous region that counts, in pixels.
        name (str | None): Name of the run.
        model (str | None): Earlier run or checkpoint whose model is used.
        started (str): Start time in ISO format.
        unlabeled_used (int): Number of unlabeled pictures that the model has learned from.
        unlabeled_found (int): Number of usable unlabeled pictures.
        warnings (list[str]): Warnings about the good and the new pictures.
    """

    new: str
    good: list[str] = field(default_factory=list)
    marked_good: list[str] = field(default_factory=list)
    bad: list[str] = field(default_factory=list)
    unlabeled: list[str] = field(default_factory=list)
    pool: bool = False
    false_alarm_rate: float | None = None
    image_size: int | list[int] | None = None
    min_area: int | None = None
    name: str | None = None
    model: str | None = None
    started: str = field(default_factory=now)
    unlabeled_used: int = 0
    unlabeled_found: int = 0
    warnings: list[str] = field(default_factory=list)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "Settings":
        """Return the settings of a file. Unknown names, of other versions, are ignored."""
        names = {each.name for each in fields(cls)}
        return cls(**{name: value for name, value in values.items() if name in names})

    def to_dict(self) -> dict[str, Any]:
        """Return the settings that differ from ``None``."""
        return {name: value for name, value in asdict(self).items() if value is not None}

    @property
    def trains(self) -> bool:
        """Whether the run trains a model."""
        return self.model is None

    def training_options(self) -> list[str]:
        """Return the options of the command line that train a model with the same settings on other pictures."""
        options: list[str] = []
        if self.false_alarm_rate is not None:
            options += ["--false_alarm_rate", f"{self.false_alarm_rate:g}"]
        if self.image_size is not None:
            size = self.image_size
            options += ["--image_size", str(size) if isinstance(size, int) else f"[{size[0]},{size[1]}]"]
        if self.min_area is not None:
            options += ["--min_area", str(self.min_area)]
        if self.name is not None:
            options += ["--name", self.name]
        return options


def as_list(paths: ImagePaths | None) -> list[str]:
    """Return paths as a list of strings."""
    return [str(path) for path in ([paths] if isinstance(paths, str | Path) else paths or ())]


def check_training_arguments(arguments: Mapping[str, Any]) -> None:
    """Check the arguments of a new run.

    Args:
        arguments (Mapping[str, Any]): Arguments of :func:`inspect` by name. ``None`` if not given.

    Raises:
        ArgumentError: If arguments exclude each other or have invalid values.
    """
    given = {name for name, value in arguments.items() if value is not None}
    if "new" not in given or ("good" in given) == ("model" in given):
        raise ArgumentError(SOURCES_MESSAGE)
    if "unlabeled" in given and ("model" in given or not arguments["pool"]):
        reason = "`model`, because no model is trained" if "model" in given else "`--no-pool`"
        msg = f"`unlabeled` must be omitted with {reason}, got {arguments['unlabeled']}."
        raise ArgumentError(msg)
    for name in ("false_alarm_rate", "image_size", "marked_good", "bad", "ignore"):
        if name in given and "model" in given:
            hint = "The mask of the earlier run is used." if name == "ignore" else "Train a new model."
            msg = f"`{name}` must be omitted with `model`, got {arguments[name]}. {hint}"
            raise ArgumentError(msg)
    rate = arguments["false_alarm_rate"]
    if rate is not None and not 0 < rate < 1:
        msg = f"`false_alarm_rate` must be between 0 and 1, got {rate}."
        raise ArgumentError(msg)


def check_paths_exist(paths: Sequence[str]) -> None:
    """Raise an error if a folder or file does not exist.

    Raises:
        MissingDataError: With the first missing path.
    """
    for path in paths:
        if not Path(path).exists():
            raise MissingDataError(missing_message(path))


def parse_thresholds(value: str | Mapping[str, float] | None) -> dict[str, float] | None:
    """Return thresholds by verdict. Empty for :data:`GUARANTEED`, and ``None`` for ``None``.

    Args:
        value (str | Mapping[str, float] | None): Thresholds, such as ``"review=0.9,defect=1.2"``.

    Raises:
        ArgumentError: If the text has another form.

    Example:
        >>> parse_thresholds("review=0.9,defect=1.2"), parse_thresholds("guaranteed")
        ({'review': 0.9, 'defect': 1.2}, {})
    """
    if value is None or value == GUARANTEED:
        return None if value is None else {}
    parts = value.split(",") if isinstance(value, str) else [f"{name}={number}" for name, number in value.items()]
    thresholds: dict[str, float] = {}
    for part in parts:
        name, _, number = part.strip().partition("=")
        try:
            thresholds[name] = float(number)
        except ValueError:
            name = ""
        if name not in {"review", "defect"}:
            msg = (
                f"`thresholds` must be such as review=0.9,defect=1.2, or `{GUARANTEED}` for the calibrated ones, "
                f"got {value}."
            )
            raise ArgumentError(msg)
    return thresholds
