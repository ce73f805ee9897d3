# Copyright (C) 2026 anomalib-fewshot contributors
# SPDX-License-Identifier: Apache-2.0

"""The models of this package with arguments that train in about a second, on an untrained backbone."""

from importlib.metadata import entry_points
from typing import Any

MODELS = sorted(
    entry.name for entry in entry_points(group="anomalib.models") if entry.module.startswith("anomalib_fewshot")
)
BACKBONE = {"backbone": "resnet10t", "pre_trained": False, "image_size": 64}
SMALL: dict[str, dict[str, Any]] = {
    "CoftAD": BACKBONE | {"num_steps": 2},
    "ImageStatistic": {"image_size": 64},
    "RegAD": BACKBONE | {"max_epochs": 2, "augment_support": False},
    "UniAD": BACKBONE
    | {"num_steps": 2, "batch_size": 2, "dim": 32, "num_heads": 4, "num_layers": 1, "feedforward_dim": 32}
    | {"neighbor_size": 3, "augment_support": False},
}
