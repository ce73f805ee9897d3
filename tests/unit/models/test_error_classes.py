# Copyright (C) 2026 anomalib-fewshot contributors
# SPDX-License-Identifier: Apache-2.0

"""Errors that a user can meet are of the classes of this package, which the command line prints in one line."""

import ast
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from anomalib_fewshot import models
from anomalib_fewshot.errors import ArgumentError, CheckpointMismatchError, FewShotError, MissingDataError
from anomalib_fewshot.models.components import (
    AdversarialStep,
    Backbone,
    backbone_stages,
    check_at_least,
    height_and_width,
    normalization,
)
from anomalib_fewshot.models.reg_ad.network import read_network

BUILT_IN = {"FileNotFoundError", "KeyError", "RuntimeError", "TypeError", "ValueError"}
INTERNAL = {("tokens.py", "RuntimeError")}  # of a cache that is read before it is filled
FOLDERS = ("components", "image_statistic", "reg_ad", "uni_ad")


@pytest.mark.parametrize("folder", FOLDERS)
def test_no_error_is_a_built_in_one(folder: str) -> None:
    found = set()
    for path in (Path(models.__file__).parent / folder).glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            call = node.exc if isinstance(node, ast.Raise) else None
            if isinstance(call, ast.Call) and isinstance(call.func, ast.Name) and call.func.id in BUILT_IN:
                found.add((path.name, call.func.id))
    assert found <= INTERNAL


@pytest.mark.parametrize(
    ("make", "error", "name"),
    [
        (lambda: Backbone("resnet19"), ArgumentError, "resnet19"),
        (lambda: Backbone("resnet18", layers=[9], pre_trained=False), ArgumentError, "layers"),
        (lambda: Backbone("resnet18", weights="nowhere.pt"), MissingDataError, "weights"),
        (lambda: Backbone("resnet18"), MissingDataError, "resnet18"),
        (lambda: backbone_stages("vit_tiny_patch16_224", pre_trained=False), ArgumentError, "backbone"),
        (lambda: normalization("resnet19"), ArgumentError, "resnet19"),
        (lambda: check_at_least(1, batch_size=0), ArgumentError, "batch_size"),
        (lambda: height_and_width(16), ArgumentError, "image_size"),
        (lambda: AdversarialStep(4, weight=-1), ArgumentError, "weight"),
        (lambda: read_network("nowhere.ckpt"), MissingDataError, "network"),
    ],
)
def test_wrong_arguments_are_named(make: Callable[[], Any], error: type[FewShotError], name: str) -> None:
    with pytest.raises(error, match=name):
        make()


def test_a_checkpoint_of_another_model_is_named(tmp_path: Path) -> None:
    torch.save({"state_dict": {"model.conv1.weight": torch.ones(1)}}, tmp_path / "other.ckpt")
    with pytest.raises(CheckpointMismatchError, match="network"):
        read_network(tmp_path / "other.ckpt")
