# Copyright (C) 2026 anomalib-fewshot contributors
# SPDX-License-Identifier: Apache-2.0

"""Memory banks fitted to rotations of the training images."""

from pathlib import Path

import pytest
import torch
from anomalib.data import MVTecAD
from anomalib.engine import Engine
from anomalib.models import AnomalibModule, Patchcore, Stfpm

from anomalib_fewshot import FewShot, RotatedReferences

LAYERS = {"backbone": "tf_efficientnet_lite0_packaged", "layers": ["blocks.1", "blocks.2"], "visualizer": False}


def fit(model: AnomalibModule, root: Path, results: Path, *callbacks: RotatedReferences, k_shot: int = 3) -> None:
    model.pre_processor.transform.transforms[0].size = [64, 64]
    engine = Engine(default_root_dir=results, callbacks=list(callbacks), enable_progress_bar=False, accelerator="cpu")
    engine.fit(model, datamodule=FewShot(MVTecAD(root, "bolt", num_workers=0), k_shot=k_shot))


def patchcore() -> Patchcore:
    return Patchcore(**LAYERS, coreset_sampling_ratio=1.0, num_neighbors=1)  # the bank has all patches


def test_memory_bank_contains_right_angles(mvtec_root: Path, tmp_path: Path) -> None:
    """Features of images that were rotated with `torch.rot90` are in the bank."""
    model = patchcore()
    fit(model, mvtec_root, tmp_path, RotatedReferences(4))
    assert len(model.model.memory_bank) == 4 * 3 * 256
    data = FewShot(MVTecAD(mvtec_root, "bolt", num_workers=0), k_shot=3)
    data.setup("fit")
    images = next(iter(data.support_dataloader())).image
    turned = torch.rot90(model.pre_processor.transform(images), 1, (-2, -1))
    with torch.no_grad():
        distance = model.eval().model(turned).pred_score
    plain = patchcore()
    fit(plain, mvtec_root, tmp_path)
    assert len(plain.model.memory_bank) == 3 * 256
    with torch.no_grad():
        assert (distance < 0.1 * plain.eval().model(turned).pred_score).all()


def test_inference_is_not_rotated_and_the_hook_is_removed(mvtec_root: Path, tmp_path: Path) -> None:
    model = patchcore()
    fit(model, mvtec_root, tmp_path, RotatedReferences(4))
    assert not model.model._forward_pre_hooks  # noqa: SLF001
    assert model.eval().model(torch.zeros(2, 3, 64, 64)).pred_score.shape == (2,)


def test_threshold_uses_the_rotations(mvtec_root: Path, tmp_path: Path) -> None:
    """A bank with more patches is nearer to a held-out image."""
    thresholds = []
    for callbacks in ([], [RotatedReferences(8)]):
        model = patchcore()
        fit(model, mvtec_root, tmp_path, *callbacks)
        thresholds.append(float(model.post_processor.image_threshold))
    assert thresholds[1] < thresholds[0]


def test_errors(mvtec_root: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="`num_angles` must be positive, got 0"):
        RotatedReferences(0)
    model = Stfpm(visualizer=False, backbone="tf_efficientnet_lite0_packaged", layers=["blocks.1"])
    with pytest.raises(TypeError, match="must be a memory bank of anomalib, got Stfpm"):
        fit(model, mvtec_root, tmp_path, RotatedReferences())
