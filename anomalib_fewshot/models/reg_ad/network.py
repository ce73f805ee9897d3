# Copyright (C) 2026 anomalib-fewshot contributors
# SPDX-License-Identifier: Apache-2.0

"""The registration network in a checkpoint of RegAD."""

from pathlib import Path
from typing import Any, NamedTuple

import torch
from anomalib.pre_processing import PreProcessor
from anomalib.utils.serialization import anomalib_safe_globals

from anomalib_fewshot._host import pre_processor_settings
from anomalib_fewshot.errors import ArgumentError, CheckpointMismatchError, MissingDataError
from anomalib_fewshot.models.components.weights import READ_ERRORS
from anomalib_fewshot.pre_processing import ExportablePreProcessor

PARTS = ("trunk", "encoder", "predictor")  # of the torch model; the density is that of another support


class Network(NamedTuple):
    """A trained registration network.

    Args:
        states (dict[str, dict[str, torch.Tensor]]): State of each of ``PARTS``.
        arguments (dict[str, Any]): Arguments of the model that was trained.
        pre_processor (PreProcessor | bool): Its pre-processor. ``False`` if it had none.
        seen_categories (list[str]): Categories that it was trained on.
    """

    states: dict[str, dict[str, torch.Tensor]]
    arguments: dict[str, Any]
    pre_processor: PreProcessor | bool
    seen_categories: list[str]


def read_network(path: str | Path) -> Network:
    """Read the registration network from a checkpoint of RegAD.

    Args:
        path (str | Path): Path of the checkpoint. Nothing but tensors and plain data is read from it.

    Raises:
        MissingDataError: If there is no such file.
        ArgumentError: If it is not a checkpoint.
        CheckpointMismatchError: If it is a checkpoint of another model, or has no network.
    """
    rule = "`network` must be a checkpoint of a trained RegAD"
    if not Path(path).is_file():
        msg = f"{rule}, got {str(path)!r}, which is not a file."
        raise MissingDataError(msg)
    try:
        with anomalib_safe_globals():
            checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except READ_ERRORS as error:
        msg = f"{rule}, got {path}, which cannot be read ({error})."
        raise ArgumentError(msg) from error
    state = checkpoint.get("state_dict", {}) if isinstance(checkpoint, dict) else {}
    model = checkpoint.get("model_class", "another model") if state else "RegAD"
    if model != "RegAD":
        msg = f"{rule}, got {path}, which is one of {model}."
        raise CheckpointMismatchError(msg)
    states = {part: _state_of(f"model.{part}.", state) for part in PARTS}
    if not all(states.values()):
        msg = f"{rule}, got {path}, which has no network. A file of a backbone's weights is given as `weights`."
        raise CheckpointMismatchError(msg)
    return Network(
        states,
        checkpoint["hyper_parameters"],
        _pre_processor(pre_processor_settings(checkpoint)),
        checkpoint["seen_categories"],
    )


def _state_of(prefix: str, state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}


def _pre_processor(config: dict[str, Any] | None) -> PreProcessor | bool:
    if config is None:
        return False
    pre_processor = ExportablePreProcessor()
    pre_processor.load_checkpoint_config(config)
    return pre_processor
