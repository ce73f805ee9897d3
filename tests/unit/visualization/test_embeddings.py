# Copyright (C) 2026 anomalib-fewshot contributors
# SPDX-License-Identifier: Apache-2.0

"""Features and embeddings of each model."""

from typing import Any

import pytest
import torch
from anomalib.models import Padim, Patchcore
from torch import nn

from anomalib_fewshot import CoftAD, RegAD, UniAD
from anomalib_fewshot.visualization import embed, has_features, patch_features

SMALL = {"backbone": "resnet10t", "pre_trained": False}
MODELS = [
    (CoftAD, SMALL | {"image_size": 64}),
    (CoftAD, SMALL | {"image_size": 64, "published": True}),
    (RegAD, SMALL | {"image_size": 64}),
    (UniAD, SMALL | {"image_size": 64, "dim": 32, "num_layers": 1, "neighbor_size": 3}),
    (Patchcore, SMALL | {"layers": ["layer1", "layer2"]}),
]


class Known(nn.Module):
    """Model with pixels as features."""


@patch_features.register
def _(model: Known, images: torch.Tensor) -> torch.Tensor:
    del model
    return images.flatten(2).transpose(1, 2)


class Plain(nn.Module):
    """Minimal anomalib model."""

    pre_processor = None
    device = torch.device("cpu")

    def __init__(self) -> None:
        super().__init__()
        self.model = Known()


@pytest.mark.parametrize(("model", "arguments"), MODELS)
def test_each_model_gives_one_finite_vector_per_image(model: type, arguments: dict[str, Any]) -> None:
    torch.manual_seed(0)
    instance = model(**arguments)
    for density in instance.model.modules():
        if hasattr(density, "metric"):
            density.metric.copy_(torch.eye(len(density.metric)))
    support, images = torch.rand(2, 3, 64, 64), torch.rand(3, 3, 64, 64)
    vectors = embed(instance, support, images)
    assert vectors.shape[0] == 5
    assert vectors.isfinite().all()
    torch.testing.assert_close(embed(instance, support, images[1:]), vectors[[0, 1, 3, 4]])
    assert vectors.unique(dim=0).shape == vectors.shape


def test_mean_is_over_positions() -> None:
    images = torch.rand(3, 3, 4, 5)
    torch.testing.assert_close(embed(Plain(), images[:2], images[2:]), images.mean((2, 3)))


def test_peak_is_the_position_with_the_largest_scaled_distance() -> None:
    """The second channel varies little in the support set, so a small step is a large distance."""
    support = torch.zeros(1, 2, 1, 4)
    support[0, 0, 0] = torch.tensor([-10.0, 10.0, -10.0, 10.0])
    support[0, 1, 0] = torch.tensor([-0.1, 0.1, 0.1, -0.1])
    image = torch.zeros(1, 2, 1, 4)
    image[0, 0, 0, 1], image[0, 1, 0, 2] = 12.0, 0.5
    assert embed(Plain(), support, image, "peak")[1].tolist() == [0.0, 0.5]


def test_peak_and_mean_are_the_same_at_a_single_position() -> None:
    images = torch.rand(4, 3, 1, 1)
    torch.testing.assert_close(embed(Plain(), images[:2], images[2:], "peak"), embed(Plain(), images[:2], images[2:]))


def test_batches_have_no_influence() -> None:
    images = torch.rand(40, 3, 2, 2)
    torch.testing.assert_close(embed(Plain(), images[:1], images[1:]), images.mean((2, 3)))


def test_model_without_features() -> None:
    model = Padim("resnet10t", ["layer1"], pre_trained=False, n_features=20)
    with pytest.raises(TypeError, match=r"must have registered features, got PadimModel"):
        embed(model, torch.rand(1, 3, 64, 64), torch.rand(1, 3, 64, 64))
    assert not has_features(model)
    assert has_features(Patchcore(**SMALL, layers=["layer1"]))
    assert has_features(Plain())


def test_unknown_pooling() -> None:
    with pytest.raises(ValueError, match=r"`pooling` must be one of \('mean', 'peak'\), got 'max'"):
        embed(Plain(), torch.rand(1, 3, 2, 2), torch.rand(1, 3, 2, 2), "max")
