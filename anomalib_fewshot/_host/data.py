# Copyright (C) 2026 anomalib-fewshot contributors
# SPDX-License-Identifier: Apache-2.0

"""State of anomalib's data modules between setups."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from anomalib.data import AnomalibDataModule


def forget_validation_data(datamodule: "AnomalibDataModule") -> None:
    """Remove the validation images of an earlier setup.

    Undocumented: a data module has validation images if and only if it has the attribute ``val_data``.
    """
    datamodule.__dict__.pop("val_data", None)


def update_augmentations(datamodule: "AnomalibDataModule") -> None:
    """Make a data module resize its images to the image size of the trainer's model.

    Undocumented: ``setup`` of anomalib's base class ends with this private method. A data module that overrides
    ``setup`` must call it.
    """
    datamodule._update_augmentations()  # noqa: SLF001
