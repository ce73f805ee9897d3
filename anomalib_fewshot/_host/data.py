# Copyright (C) 2026 anomalib-fewshot contributors
# SPDX-License-Identifier: Apache-2.0

"""What anomalib's data modules keep between two setups."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from anomalib.data import AnomalibDataModule


def forget_validation_data(datamodule: "AnomalibDataModule") -> None:
    """Forget the validation images of an earlier setup.

    Undocumented: that a data module has validation images if, and only if, it has the attribute ``val_data``.
    """
    datamodule.__dict__.pop("val_data", None)


def update_augmentations(datamodule: "AnomalibDataModule") -> None:
    """Let a data module resize its images to the size of the trainer's model.

    Undocumented: that ``setup`` of anomalib's base class ends with this private method. A data module with a ``setup``
    of its own has to call it.
    """
    datamodule._update_augmentations()  # noqa: SLF001
