# Copyright (C) 2026 anomalib-fewshot contributors
# SPDX-License-Identifier: Apache-2.0

"""Creation, set-up and checks of the data module from which a support set is chosen."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from anomalib.data import AnomalibDataModule, AnomalibDataset, get_datamodule
from anomalib.data.utils import LabelName

from anomalib_fewshot.errors import ArgumentError, DataValidationError, FewShotError, MissingDataError, SupportError

from .object_strings import object_strings


def as_datamodule(source: AnomalibDataModule | Mapping[str, Any]) -> AnomalibDataModule:
    """Return a data module, created from its ``class_path`` and ``init_args`` if it is a mapping.

    Raises:
        TypeError: If ``source`` is neither a data module nor a mapping.
    """
    if isinstance(source, Mapping):
        source = get_datamodule(dict(source))
    if not isinstance(source, AnomalibDataModule):
        msg = f"`source` must be an anomalib data module or its class_path and init_args, got {type(source).__name__}."
        raise TypeError(msg)
    return source


def prepare_source(source: AnomalibDataModule) -> None:
    """Let a data module download its data.

    Raises:
        ArgumentError: If other categories exist, but not the one of the data module.
        MissingDataError: If there is no data and the download fails.
    """
    check_category(source)
    try:
        source.prepare_data()
    except FewShotError:  # some are also an OSError
        raise
    except OSError as error:
        root = getattr(source, "root", None)
        msg = f"`source` must have data, got none in {root}, and the download failed ({error}). Check `root`."
        raise MissingDataError(msg) from error


def set_up_source(source: AnomalibDataModule, stage: str | None) -> None:
    """Set up a data module.

    Raises:
        DataValidationError: If anomalib cannot create its datasets, for a known reason.
    """
    try:
        with object_strings():
            source.setup(stage)
    except ValueError as error:
        msg = _explain_host_error(str(error))
        if msg is None:
            raise
        raise DataValidationError(msg) from error


def find_normal_images(source: AnomalibDataModule) -> tuple[dict[str, int], Path]:
    """Return the row of each normal training image, keyed by its path relative to the returned folder.

    Raises:
        SupportError: If there are no normal training images.
    """
    samples = source.train_data.samples
    samples = samples[samples.label_index == LabelName.NORMAL]
    if samples.empty:
        msg = f"`source` must have normal training images, got none in {source.name} {source.category}."
        raise SupportError(msg)
    folder = Path(os.path.commonpath([Path(path).parent for path in samples.image_path]))
    paths = [Path(path).relative_to(folder).as_posix() for path in samples.image_path]
    return dict(zip(paths, samples.index, strict=True)), folder


def describe_images(source: AnomalibDataModule) -> dict[str, str]:
    """Return a description of each image of a data module, keyed by its path."""
    descriptions = {}
    for title in ("train", "val", "test"):
        subset: AnomalibDataset | None = getattr(source, f"{title}_data", None)
        if subset is not None:
            for path, label in zip(subset.samples.image_path, subset.samples.label_index, strict=True):
                kind = "a normal" if label == LabelName.NORMAL else "an anomalous"
                descriptions[Path(path).as_posix()] = f"{kind} image of the {title} data"
    return descriptions


def category_folders(root: str | Path | None) -> list[str]:
    """Return the categories in a root folder: the folders that contain ``train`` (``Train`` in DAGM)."""
    return [] if root is None else sorted(path.parent.name for path in Path(root).glob("*/[Tt]rain"))


def check_category(source: AnomalibDataModule) -> None:
    """Raise an error if the root folder contains categories, but not the one of the data module.

    Otherwise anomalib's data modules would download the data set again.

    Raises:
        ArgumentError: If the category is missing.
    """
    root = getattr(source, "root", None)
    if not source.category or root is None or (Path(root) / source.category).exists():
        return
    categories = category_folders(root)
    if categories:
        msg = f"`category` must be a folder of {root}, got {source.category!r}. Available: {categories}."
        raise ArgumentError(msg)


def check_ascii(path: str | Path) -> None:
    """Raise an error if a path contains characters that anomalib rejects.

    Raises:
        DataValidationError: If a name in the path is not printable ASCII.
    """
    names = [name for name in Path(path).parts if not (name.isascii() and name.isprintable())]
    if names:
        msg = (
            "Folder names must be printable ASCII, because anomalib rejects others, "
            f"got {names[0]!r}. Rename the folder: {path}"
        )
        raise DataValidationError(msg)


def _explain_host_error(error: str) -> str | None:
    """Return a clearer message for a known error of anomalib or pandas during ``setup``. ``None`` for other errors."""
    if "non-printable characters: " in error:  # anomalib's message for names that are not ASCII
        check_ascii(error.partition("non-printable characters: ")[2])
    if "not enough values to unpack" in error:
        return (
            f"`source` cannot create its splits ({error}). If there are only normal images, set its "
            "`val_split_mode` and `test_split_mode` to `none`."
        )
    if "equal len keys" in error:
        return (
            f"`source` must have a mask for each anomalous image ({error}). For images without masks, use "
            "`MVTecFolder` or `Folder`."
        )
    return None
