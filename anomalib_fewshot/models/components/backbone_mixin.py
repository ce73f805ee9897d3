# Copyright (C) 2026 anomalib-fewshot contributors
# SPDX-License-Identifier: Apache-2.0

"""Pre-processing that fits the backbone of a model."""

import logging
from collections.abc import Sequence
from typing import ClassVar

from anomalib.pre_processing import PreProcessor
from torch import nn
from torchvision.transforms.v2 import CenterCrop, Compose, Normalize, Resize

from anomalib_fewshot.errors import ArgumentError
from anomalib_fewshot.pre_processing import ExportablePreProcessor, steps_of

from .checks import height_and_width
from .weights import PACKAGED_BACKBONE, normalization, normalization_of

logger = logging.getLogger(__name__)


class BackbonePreProcessor(ExportablePreProcessor):
    """Resize, and normalization that a backbone's weights expect.

    Args:
        image_size (tuple[int, int]): Height and width of the result.
        backbone (str | None): Name of a timm model. ``None``: that of the model that takes this pre-processor. Until
            then, images are normalized for the packaged backbone.
    """

    def __init__(self, image_size: tuple[int, int], backbone: str | None) -> None:
        mean, std = normalization(backbone or PACKAGED_BACKBONE)
        super().__init__(Compose([Resize(image_size, antialias=True), Normalize(mean, std)]))
        self.backbone = backbone


class BackboneMixin:
    """Part of an anomalib model with a timm backbone: images have the size and the normalization that it expects.

    Attributes:
        default_image_size (tuple[int, int]): Height and width of the images where nothing else is given.
    """

    default_image_size: ClassVar[tuple[int, int]] = (224, 224)

    @classmethod
    def configure_pre_processor(
        cls,
        image_size: tuple[int, int] | None = None,
        backbone: str | None = None,
    ) -> PreProcessor:
        """Return a pre-processor that resizes, and normalizes as the backbone's weights expect.

        Args:
            image_size (tuple[int, int] | None): Height and width of the result. Defaults to ``None``:
                ``default_image_size``.
            backbone (str | None): Name of a timm model. Defaults to ``None``: that of the model that takes the
                pre-processor.
        """
        return BackbonePreProcessor(image_size or cls.default_image_size, backbone)

    @classmethod
    def match_pre_processor(
        cls,
        pre_processor: nn.Module | bool,
        image_size: int | Sequence[int] | None,
        backbone: str,
    ) -> tuple[nn.Module | bool, tuple[int, int]]:
        """Return the pre-processor and the image size of a model, which fit each other and the backbone.

        A pre-processor of :meth:`configure_pre_processor` gets the normalization of the backbone. Any other one is
        used unchanged, with a warning if its normalization is not the one that the weights expect.

        Args:
            pre_processor (nn.Module | bool): Argument of the model. ``True``: the default one.
            image_size (int | Sequence[int] | None): Argument of the model. ``None``: the size that the pre-processor
                resizes to or, if it has none, ``default_image_size``.
            backbone (str): Name of a timm model.

        Returns:
            tuple[nn.Module | bool, tuple[int, int]]: Pre-processor, height and width.

        Raises:
            ArgumentError: If the pre-processor has another size, or was configured for another backbone.
        """
        size = height_and_width(image_size or cls.default_image_size)
        if pre_processor is True:
            return cls.configure_pre_processor(size, backbone), size
        made = _size_after(pre_processor)
        if made is not None and image_size is not None and made != size:
            msg = (
                f"`image_size` must be the size that `pre_processor` resizes to, {made}, got {image_size}. Leave it "
                "out, or give both the same."
            )
            raise ArgumentError(msg)
        if isinstance(pre_processor, nn.Module):
            pre_processor = _match_normalization(pre_processor, backbone)
        return pre_processor, height_and_width(made or size)


def _size_after(pre_processor: nn.Module | bool) -> tuple[int, int] | None:
    """Return the height and width that images have after a pre-processor. ``None`` if they depend on the image."""
    size = None
    for step in steps_of(getattr(pre_processor, "transform", None)):
        if isinstance(step, (Resize, CenterCrop)):
            sides = tuple(step.size) if isinstance(step.size, Sequence) else ()
            size = (sides[0], sides[1]) if len(sides) == 2 else None
    return size


def _match_normalization(pre_processor: nn.Module, backbone: str) -> nn.Module:
    """Return the pre-processor with the normalization of a backbone, if it was made to follow one."""
    expected, found = normalization(backbone), normalization_of(pre_processor)
    if isinstance(pre_processor, BackbonePreProcessor) and pre_processor.backbone is None:
        steps = steps_of(pre_processor.transform)
        return ExportablePreProcessor(
            Compose([Normalize(*expected) if isinstance(step, Normalize) else step for step in steps]),
        )
    if (tuple(found[0]), tuple(found[1])) == expected:
        return pre_processor
    if isinstance(pre_processor, BackbonePreProcessor):
        msg = (
            f"`pre_processor` must be configured for the backbone {backbone!r}, got one for "
            f"{pre_processor.backbone!r}. Use `configure_pre_processor(image_size, backbone={backbone!r})`."
        )
        raise ArgumentError(msg)
    logger.warning(
        "The pre-processor normalizes with mean %s and std %s, but the weights of %s expect mean %s and std %s. If "
        "this is unintended, use `configure_pre_processor(image_size)`.",
        *found,
        backbone,
        *expected,
    )
    return pre_processor
