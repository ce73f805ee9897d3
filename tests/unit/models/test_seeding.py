# Copyright (C) 2026 anomalib-fewshot contributors
# SPDX-License-Identifier: Apache-2.0

"""Streams of random numbers, and that the models' seeds reach what they draw."""

from itertools import product
from pathlib import Path

import pytest
import torch
from anomalib.data import MVTecAD
from anomalib.engine import Engine

from anomalib_fewshot import CoftAD, FewShot, RegAD, UniAD
from anomalib_fewshot.models.components import seeded, seeded_generator

SMALL = {"backbone": "resnet10t", "pre_trained": False, "image_size": 64, "visualizer": False}


def test_every_seed_and_number_is_a_stream_of_its_own() -> None:
    seeds = (0, 1, 2, 2**32, 2**32 + 1, -1)
    draws = [torch.rand(4, generator=seeded_generator(*n)) for n in product(seeds, range(20), range(3))]
    assert len({tuple(draw.tolist()) for draw in draws}) == len(draws)
    assert torch.equal(torch.rand(4, generator=seeded_generator(0, 0, 1)), draws[1])


def test_global_generators_are_as_they_were(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of GPUs too, which `torch.manual_seed` would leave seeded."""
    monkeypatch.setattr(torch.cuda, "manual_seed_all", lambda _: 1 / 0)
    before = torch.get_rng_state()
    draws = []
    for seed in (3, 3, torch.Generator().manual_seed(0), torch.Generator().manual_seed(0)):
        with seeded(seed, torch.device("cpu")):
            draws.append(torch.rand(4))
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(draws[0], draws[1])
    assert torch.equal(draws[2], draws[3])
    assert not torch.equal(draws[0], draws[2])
    assert torch.equal(draws[0], torch.rand(4, generator=torch.Generator().manual_seed(3)))


@pytest.mark.parametrize(
    "make",
    [
        lambda seed: CoftAD(**SMALL, num_steps=0, seed=seed),
        lambda seed: RegAD(**SMALL, max_epochs=1, seed=seed),
        lambda seed: UniAD(**SMALL, num_steps=2, dim=16, neighbor_size=3, dropout=0.0, seed=seed),
    ],
    ids=["CoftAD", "RegAD", "UniAD"],
)
def test_seed_determines_random_numbers_of_the_training(make, mvtec_root: Path, tmp_path: Path) -> None:  # noqa: ANN001
    """Not the initial parameters alone: those are the same here."""
    start, scores = make(0).state_dict(), []
    images = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    for seed in (0, 1):
        model = make(seed)
        model.load_state_dict(start)
        engine = Engine(default_root_dir=tmp_path, accelerator="cpu", logger=False, enable_progress_bar=False)
        engine.fit(model, datamodule=FewShot(MVTecAD(mvtec_root, "bolt", num_workers=0), k_shot=1))
        with torch.no_grad():
            scores.append(model.eval().model(images).pred_score)
    assert not torch.equal(*scores)
