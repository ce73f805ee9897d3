# Copyright (C) 2026 anomalib-fewshot contributors
# SPDX-License-Identifier: Apache-2.0

"""Batches in parts."""

import pytest
import torch
from anomalib.data import ImageBatch, InferenceBatch
from torch import nn

from anomalib_fewshot.models.components import ScoringMixin, micro_batches


class Model(nn.Module):
    """Model that scores images by their mean and records the batch sizes."""

    def __init__(self, *, has_map: bool = True) -> None:
        super().__init__()
        self.has_map = has_map
        self.sizes: list[int] = []

    def forward(self, images: torch.Tensor) -> InferenceBatch:
        """Return means and, with ``has_map``, maps."""
        self.sizes.append(len(images))
        return InferenceBatch(images.mean((1, 2, 3)), anomaly_map=images[:, :1] if self.has_map else None)


class Scoring(ScoringMixin):
    """Minimal model with the steps of the mixin."""

    def __init__(self, model: Model) -> None:
        self.model = model


@pytest.mark.parametrize("step", ["validation_step", "test_step", "predict_step"])
@pytest.mark.parametrize("has_map", [True, False])
def test_micro_batches_give_the_scores_of_the_batch(step: str, has_map: bool) -> None:
    model, images = Model(has_map=has_map), torch.rand(5, 3, 8, 6)
    result = getattr(Scoring(model), step)(ImageBatch(image=images), 0)
    assert model.sizes == [2, 2, 1]
    torch.testing.assert_close(result.pred_score, images.mean((1, 2, 3)))
    assert (result.anomaly_map is not None) == has_map
    if has_map:
        torch.testing.assert_close(result.anomaly_map, images[:, 0])


def test_other_devices_score_a_whole_batch() -> None:
    assert len(micro_batches(torch.empty(5, 3, 8, 6, device="meta"))) == 1
