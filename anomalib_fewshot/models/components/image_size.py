# Copyright (C) 2026 anomalib-fewshot contributors
# SPDX-License-Identifier: Apache-2.0

"""Image size that follows the shape of the support images."""

import logging
from collections.abc import Sequence
from itertools import product
from math import exp, log, sqrt
from statistics import median
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn
from torchvision.transforms.v2 import Compose, Normalize, Resize

from anomalib_fewshot.data.support import image_shapes
from anomalib_fewshot.pre_processing import ExportablePreProcessor, ExportableResize

from .checks import height_and_width

logger = logging.getLogger(__name__)

AUTO = "auto"
MAX_RATIO = 4.0  # of height and width: longer images are squeezed to it
SHAPE_TOLERANCE = 1.2  # highest ratio between the aspect ratios of images that count as one shape
SHAPE_WEIGHT = 2.0  # of an error of the aspect ratio, relative to one of the number of pixels


def choose_image_size(shapes: Sequence[tuple[int, int]], num_pixels: int, multiple: int) -> tuple[int, int]:
    """Return the size that images of given shapes are resized to.

    The size has about the given number of pixels and the median aspect ratio of the images, up to 4 to 1. It is a
    square if the images have no common shape, because any other size would distort some of them more.

    Args:
        shapes (Sequence[tuple[int, int]]): Height and width of each image.
        num_pixels (int): Number of pixels.
        multiple (int): Number that divides height and width, such as the largest stride of the backbone.

    Returns:
        tuple[int, int]: Height and width.

    Example:
        >>> choose_image_size([(480, 640)], 320 * 320, 32), choose_image_size([(500, 1250)] * 4, 320 * 320, 32)
        ((288, 384), (192, 480))
        >>> choose_image_size([(100, 200), (200, 100)], 320 * 320, 32)
        (320, 320)
    """
    ratios = [log(height / width) for height, width in shapes]
    ratio = median(ratios)
    if max(abs(other - ratio) for other in ratios) > log(SHAPE_TOLERANCE):
        ratio = 0.0
    ratio = min(max(ratio, -log(MAX_RATIO)), log(MAX_RATIO))

    def error(size: tuple[int, int]) -> float:
        height, width = size
        return abs(log(height * width / num_pixels)) + SHAPE_WEIGHT * abs(log(height / width) - ratio)

    side = sqrt(num_pixels)
    heights, widths = (_multiples_near(side * exp(sign * ratio / 2), multiple) for sign in (1, -1))
    return min(product(heights, widths), key=error)


def _multiples_near(side: float, multiple: int) -> list[int]:
    """Return the multiples below and above a length."""
    below = int(side // multiple) * multiple
    return [max(multiple, below), below + multiple]


class AutoSizePreProcessor(ExportablePreProcessor):
    """Pre-processor whose image size follows the shape of the images.

    It resizes images and normalizes them. The size is chosen at the start of a fit from the support set and the
    unlabeled images, see :func:`choose_image_size`. A checkpoint and an export contain it. The pre-processor works with
    any anomalib model that does not need a fixed size, such as ``Patchcore``.

    Args:
        image_size (int | tuple[int, int]): Size before the first fit, as a number or height and width. A chosen size
            has about as many pixels.
        mean (Sequence[float]): Mean of each channel, between 0 and 1.
        std (Sequence[float]): Standard deviation of each channel.
        multiple (int): Number that divides height and width. Defaults to ``32``, the largest stride of most backbones.

    Example:
        >>> from anomalib.models import Patchcore
        >>> mean, std = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
        >>> model = Patchcore(pre_processor=AutoSizePreProcessor(320, mean, std))  # doctest: +SKIP
    """

    def __init__(
        self,
        image_size: int | tuple[int, int],
        mean: Sequence[float],
        std: Sequence[float],
        multiple: int = 32,
    ) -> None:
        size = height_and_width(image_size)
        super().__init__(Compose([Resize(size, antialias=True), Normalize(list(mean), list(std))]))
        self.num_pixels = size[0] * size[1]
        self.multiple = multiple
        self._trainer: Trainer | None = None

    @property
    def size(self) -> tuple[int, int]:
        """Height and width that images are resized to."""
        resize: Any = self.transform.transforms[0]  # type: ignore[union-attr]
        return resize.size[0], resize.size[1]

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Choose the image size before a fit."""
        del pl_module
        self._trainer = trainer
        datamodule = getattr(trainer, "datamodule", None)
        if stage != TrainerFn.FITTING or datamodule is None:
            return
        size = choose_image_size(image_shapes(datamodule), self.num_pixels, self.multiple)
        if size != self.size:
            text = "Images are resized to %d x %d pixels (height x width), which follows their shape."
            logger.info(text, *size)
            self._set_size(size)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Release the trainer."""
        del trainer, pl_module, stage
        self._trainer = None

    def load_checkpoint_config(self, config: dict[str, Any]) -> None:
        """Restore the transform of a checkpoint."""
        super().load_checkpoint_config(config)
        self._set_size(self.size)

    def _set_size(self, size: tuple[int, int]) -> None:
        """Resize images to another size."""
        normalize = self.transform.transforms[1]  # type: ignore[union-attr]
        self.transform = Compose([Resize(size, antialias=True), normalize])
        self.export_transform = Compose([ExportableResize(size), normalize])
        datamodule = getattr(self._trainer, "datamodule", None)
        if self._trainer is not None and datamodule is not None:
            datamodule.setup(self._trainer.state.fn)  # it resizes its images to the size of the trainer's model
