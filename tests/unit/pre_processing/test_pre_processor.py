# Copyright (C) 2026 anomalib-fewshot contributors
# SPDX-License-Identifier: Apache-2.0

"""What the pre-processor exports, and what it keeps in a checkpoint."""

import pytest
import torch
from anomalib.data.transforms import ExportableCenterCrop
from anomalib.data.transforms.utils import extract_transforms_by_type
from anomalib.pre_processing import PreProcessor
from torchvision.transforms.v2 import CenterCrop, Compose, InterpolationMode, Normalize, Resize, Transform

from anomalib_fewshot.models import CoftAD, ImageStatistic, RegAD, UniAD
from anomalib_fewshot.pre_processing import ExportablePreProcessor, ExportableResize

NORMALIZE = Normalize([0.1, 0.2, 0.3], [0.4, 0.5, 0.6])
IMAGES = torch.rand(2, 3, 90, 50, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    "transform",
    [
        Resize((32, 48)),
        Compose([Resize((32, 48)), NORMALIZE]),
        Compose([Compose([Resize((64, 64))]), CenterCrop(32), NORMALIZE]),
        NORMALIZE,
        None,
    ],
)
def test_exported_model_is_equal(transform: Transform | None) -> None:
    pre_processor = ExportablePreProcessor(transform)
    expected = IMAGES if transform is None else transform(IMAGES)
    assert torch.equal(pre_processor(IMAGES), expected)
    exported = torch.export.export(pre_processor, (IMAGES,)).module()
    torch.testing.assert_close(exported(IMAGES), expected, rtol=0, atol=5e-5)


def test_exported_model_of_anomalib_differs() -> None:
    """The reason for ours: should this fail, ours is needed no more."""
    transform = Resize((32, 48))
    assert (PreProcessor(transform)(IMAGES) - transform(IMAGES)).abs().max() > 0.1


@pytest.mark.parametrize(
    "resize",
    [
        Resize((32, 48), antialias=False),
        Resize((32, 48), interpolation=InterpolationMode.BICUBIC),
        Resize(32),
        Resize(None, max_size=32),
    ],
)
def test_other_resizes_are_exported_like_anomalib(resize: Resize) -> None:
    (step,) = ExportablePreProcessor(Compose([resize])).export_transform.transforms
    assert type(step) is Resize
    assert (step.size, step.interpolation, step.antialias) == (resize.size, resize.interpolation, False)


def test_center_crop_equals_anomalib() -> None:
    steps = ExportablePreProcessor(Compose([Resize((64, 64)), CenterCrop(32)])).export_transform.transforms
    assert [type(step) for step in steps] == [ExportableResize, ExportableCenterCrop]


def test_checkpoint_is_compatible_with_anomalib() -> None:
    own = ExportablePreProcessor(Compose([Resize((32, 48)), NORMALIZE]))
    other, again = PreProcessor(), ExportablePreProcessor()
    other.load_checkpoint_config(own.checkpoint_config())
    again.load_checkpoint_config(other.checkpoint_config())
    assert type(other.transform.transforms[0]) is Resize
    assert type(again.export_transform.transforms[0]) is ExportableResize
    assert torch.equal(again(IMAGES), own(IMAGES))


@pytest.mark.parametrize("name", [InterpolationMode.BILINEAR, "bilinear", 2])
def test_all_names_of_bilinear(name: InterpolationMode | str | int) -> None:
    pre_processor = ExportablePreProcessor(Resize((32, 48), interpolation=name))
    assert isinstance(pre_processor.export_transform, ExportableResize)


@pytest.mark.parametrize("model", [CoftAD, ImageStatistic, RegAD, UniAD])
def test_models_use_it_and_data_modules_find_the_size(model: type) -> None:
    pre_processor = model.configure_pre_processor((32, 48))
    assert isinstance(pre_processor, ExportablePreProcessor)
    (resize,) = extract_transforms_by_type(pre_processor.transform, Resize)
    assert tuple(resize.size) == (32, 48)
    (exported,) = extract_transforms_by_type(pre_processor.export_transform, Resize)
    assert isinstance(exported, ExportableResize)


def test_pre_processor_of_a_user_is_not_replaced() -> None:
    own = PreProcessor(Resize((64, 64)))
    assert ImageStatistic(pre_processor=own).pre_processor is own
    assert type(own.export_transform) is Resize
