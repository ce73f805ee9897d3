# Copyright (C) 2026 anomalib-fewshot contributors
# SPDX-License-Identifier: Apache-2.0

"""Loading of a registration network from a RegAD checkpoint."""

from pathlib import Path
from typing import Any, NamedTuple

import torch
from anomalib.pre_processing import PreProcessor
from anomalib.utils.serialization import anomalib_safe_globals

from anomalib_fewshot._host import pre_processor_settings
from anomalib_fewshot.errors import ArgumentError, CheckpointMismatchError, MissingDataError
from anomalib_fewshot.models.components.weights import READ_ERRORS
from anomalib_fewshot.pre_processing import ExportablePreProcessor

PARTS = ("trunk", "encoder", "predictor")  # submodules without the density, which belongs to another support set


class Network(NamedTuple):
    """A trained registration network.

    Args:
        states (dict[str, dict[str, torch.Tensor]]): State dict of each submodule in ``PARTS``.
        arguments (dict[str, Any]): Constructor arguments of the trained model.
        pre_processor (PreProcessor | bool): Pre-processor of the trained model, ``False`` if it has none.
        seen_categories (list[str]): Training categories.
    """

    states: dict[str, dict[str, torch.Tensor]]
    arguments: dict[str, Any]
    pre_processor: PreProcessor | bool
    seen_categories: list[str]


def read_network(path: str | Path) -> Network:
    """Read the registration network from a RegAD checkpoint.

    Args:
        path (str | Path): Path of the checkpoint. It is loaded with ``weights_only=True``.

    Raises:
        MissingDataError: If the file does not exist.
        ArgumentError: If the file is not a checkpoint.
        CheckpointMismatchError: If the checkpoint is of another model or does not contain a network.
    """
    rule = "`network` must be a checkpoint of a trained RegAD"
    if not Path(path).is_file():
        msg = f"{rule}, got {str(path)!r}, which does not exist."
        raise MissingDataError(msg)
    try:
        with anomalib_safe_globals():
            checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except READ_ERRORS as error:
        msg = f"{rule}, got a file that is not a checkpoint: {path}"
        raise ArgumentError(msg) from error
    state = checkpoint.get("state_dict", {}) if isinstance(checkpoint, dict) else {}
    model = checkpoint.get("model_class", "another model") if state else "RegAD"
    if model != "RegAD":
        msg = f"{rule}, got a checkpoint of {model}: {path}"
        raise CheckpointMismatchError(msg)
    states = {part: _state_of(f"model.{part}.", state) for part in PARTS}
    if not all(states.values()):
        msg = f"{rule}, got a file without a network. For backbone weights, use `weights`: {path}"
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
