# Copyright (C) 2026 anomalib-fewshot contributors
# SPDX-License-Identifier: Apache-2.0

"""All uses of undocumented behavior of anomalib, Lightning, timm and CPython.

Each docstring says what is undocumented. ``tests/unit/test_host.py`` has a test for each function, which fails if the
host changes. The start-up hook, which patches an import, is in ``_autoload.py``.

| File | Host and part |
|---|---|
| ``program.py`` | detection of anomalib's command line |
| ``registry.py`` | anomalib's tables of models, data modules and subcommands |
| ``trainer.py`` | Lightning's trainer: last epoch, checkpoint, callbacks, sampler |
| ``progress.py`` | Lightning's rich progress bar |
| ``models.py`` | anomalib's memory banks, Patchcore, component settings in checkpoints |
| ``data.py`` | state of anomalib's data modules between setups |
| ``post_processing.py`` | private steps of anomalib's post-processor |
| ``export.py`` | OpenVINO compression in anomalib's export |
| ``timm_models.py`` | timm's table of models |
| ``processes.py`` | processes of the standard library |

Importing this package imports only the standard library.
"""

from .data import forget_validation_data, update_augmentations
from .export import QuantizationHook, compress_openvino
from .models import (
    fit_memory_bank,
    is_memory_bank,
    is_memory_bank_class,
    patchcore_embedding,
    pre_processor_settings,
)
from .processes import is_starting_process, kill_processes
from .program import is_anomalib_command
from .trainer import (
    add_callbacks,
    explain_checkpoint_error,
    is_last_epoch,
    replaces_sampler,
    save_checkpoint,
)

__all__ = [
    "QuantizationHook",
    "add_callbacks",
    "compress_openvino",
    "explain_checkpoint_error",
    "fit_memory_bank",
    "forget_validation_data",
    "is_anomalib_command",
    "is_last_epoch",
    "is_memory_bank",
    "is_memory_bank_class",
    "is_starting_process",
    "kill_processes",
    "patchcore_embedding",
    "pre_processor_settings",
    "replaces_sampler",
    "save_checkpoint",
    "update_augmentations",
]
