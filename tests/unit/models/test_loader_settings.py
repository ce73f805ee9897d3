# Copyright (C) 2026 anomalib-fewshot contributors
# SPDX-License-Identifier: Apache-2.0

"""How the support set is loaded does not change the scores: batch size, worker processes, order of rows, threads."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from anomalib.data import MVTecAD
from anomalib.engine import Engine

from anomalib_fewshot import CoftAD, FewShot, ImageStatistic, RegAD, UniAD
from anomalib_fewshot.models.components import FittedMixin

SMALL = {"backbone": "test_efficientnet", "pre_trained": False, "image_size": 64, "visualizer": False}
MODELS: dict[str, Callable[[], FittedMixin]] = {
    "CoftAD": lambda: CoftAD(**SMALL, num_steps=3),
    "RegAD": lambda: RegAD("resnet10t", pre_trained=False, image_size=64, max_epochs=0, visualizer=False),
    "UniAD": lambda: UniAD(**SMALL, num_steps=0, neighbor_size=3),
    "ImageStatistic": ImageStatistic,
}


class ShuffledRows(MVTecAD):
    """``MVTecAD``, which lists its images in another order."""

    name = "MVTecAD"  # part of the key of the support's choice

    def _setup(self, stage: str | None = None) -> None:
        super()._setup(stage)
        rows = self.train_data.samples
        self.train_data._samples = rows.iloc[::-1].reset_index(drop=True)  # noqa: SLF001  the setter sorts


@pytest.fixture
def threads() -> Iterator[Callable[[int], None]]:
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


def fitted_scores(
    model: FittedMixin,
    folder: Path,
    source: MVTecAD,
    k_shot: int = 4,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the scores of new images, and those of the support set, which decide the threshold."""
    engine = Engine(default_root_dir=folder, enable_progress_bar=False, logger=False)
    engine.fit(model, datamodule=FewShot(source, k_shot=k_shot))
    new = torch.rand(4, 3, 64, 64, generator=torch.Generator().manual_seed(0)) * 2 - 1
    with torch.no_grad():
        return model.eval().model(new).pred_score, model.post_processor.calibration_scores


@pytest.mark.parametrize("name", MODELS)
def test_scores_do_not_depend_on_the_loader(name: str, mvtec_root: Path, tmp_path: Path) -> None:
    settings = [{"train_batch_size": size} for size in (32, 1, 2)] + [{"train_batch_size": 2, "num_workers": 2}]
    results = []
    for arguments in settings:
        source = MVTecAD(mvtec_root, "bolt", **{"num_workers": 0} | arguments)
        results.append(fitted_scores(MODELS[name](), tmp_path, source))
    results.append(fitted_scores(MODELS[name](), tmp_path, ShuffledRows(mvtec_root, "bolt", num_workers=0)))
    for other in results[1:]:
        torch.testing.assert_close(other, results[0], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["CoftAD", "ImageStatistic", pytest.param("RegAD", marks=pytest.mark.slow), "UniAD"])
def test_scores_do_not_depend_on_the_number_of_threads(
    name: str,
    threads: Callable[[int], None],
    mvtec_root: Path,
    tmp_path: Path,
) -> None:
    results = []
    for count in (1, 2):
        threads(count)
        source = MVTecAD(mvtec_root, "bolt", num_workers=0)
        results.append(fitted_scores(MODELS[name](), tmp_path, source))
    torch.testing.assert_close(results[1], results[0], rtol=1e-5, atol=1e-5)


def test_a_support_of_named_images_is_fitted_in_one_order(mvtec_root: Path, tmp_path: Path) -> None:
    names, results = ["000.png", "003.png", "005.png"], []
    for support in (names, names[::-1]):
        model = MODELS["CoftAD"]()
        datamodule = FewShot(MVTecAD(mvtec_root, "bolt", num_workers=0), support=support)
        Engine(default_root_dir=tmp_path, enable_progress_bar=False, logger=False).fit(model, datamodule=datamodule)
        results.append(model.post_processor.calibration_scores)
        results.append(model.eval().model(torch.linspace(-1, 1, 3 * 64 * 64).view(1, 3, 64, 64)).pred_score)
    torch.testing.assert_close(results[2:], results[:2], rtol=0, atol=0)
