# Copyright (C) 2026 anomalib-fewshot contributors
# SPDX-License-Identifier: Apache-2.0

"""Two processes train one model."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

SCRIPT = """
import sys
import torch
from anomalib.data import MVTecAD
from anomalib.engine import Engine
from anomalib_fewshot import CoftAD, FewShot, MultiCategory, RegAD, UniAD

if __name__ == "__main__":
    name, root, results, steps = *sys.argv[1:4], int(sys.argv[4])
    settings = {"backbone": "resnet10t", "pre_trained": False, "image_size": 64, "visualizer": False}
    source = MVTecAD(root, "bolt", num_workers=0, train_batch_size=4)
    datamodule = FewShot(source, k_shot=4)
    if name == "CoftAD":
        model = CoftAD(**settings, published=True, learning_rate=1e-3, num_steps=steps)
    elif name == "UniAD":
        model = UniAD(**settings, num_steps=steps, dim=32, neighbor_size=3, adversarial_weight=0.1)
        datamodule = MultiCategory(source, k_shot=2)
    else:
        model = RegAD(**settings, max_epochs=steps, adversarial_weight=0.1)
        datamodule = MultiCategory(source, target="cloth", k_shot=2)
    start = model.state_dict()[sys.argv[5]].clone()
    engine = Engine(
        accelerator="cpu", devices=2, strategy="ddp", default_root_dir=results, enable_progress_bar=False
    )
    engine.fit(model, datamodule=datamodule)
    assert torch.equal(model.state_dict()[sys.argv[5]], start) is (steps == 0)
    torch.save(model.state_dict(), f"{results}/rank{engine.trainer.global_rank}.pt")
"""


@pytest.mark.slow
@pytest.mark.parametrize("steps", [0, 2])
@pytest.mark.parametrize(
    ("name", "trained"),
    [
        ("CoftAD", "model.heads.prediction.0.weight"),
        ("RegAD", "model.predictor.0.weight"),
        ("UniAD", "model.transformer.input_proj.weight"),
    ],
)
def test_both_processes_end_with_the_same_model(
    name: str,
    trained: str,
    steps: int,
    mvtec_root: Path,
    tmp_path: Path,
) -> None:
    (tmp_path / "train.py").write_text(SCRIPT, encoding="utf-8")
    arguments = [name, mvtec_root, tmp_path, str(steps), trained]
    subprocess.run([sys.executable, tmp_path / "train.py", *arguments], check=True, cwd=tmp_path)
    first, second = (torch.load(tmp_path / f"rank{rank}.pt") for rank in range(2))
    for key, value in first.items():
        if isinstance(value, torch.Tensor):
            torch.testing.assert_close(value, second[key], equal_nan=True, msg=key)
