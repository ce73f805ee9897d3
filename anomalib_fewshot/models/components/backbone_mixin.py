# Copyright (C) 2026 anomalib-fewshot contributors
# SPDX-License-Identifier: Apache-2.0

"""Image size and pre-processing that match the backbone of a model and the support images."""

import logging
from collections.abc import Callable, Sequence
from math import prod
from typing import Any, ClassVar

from anomalib.pre_processing import PreProcessor
from lightning.pytorch import LightningModule
from torch import nn
from torchvision.transforms.v2 import CenterCrop, Compose, Normalize, Resize

from anomalib_fewshot.errors import ArgumentError
from anomalib_fewshot.pre_processing import ExportablePreProcessor, steps_of

from .backbone import size_multiple
from .checks import height_and_width
from .image_size import AUTO, AutoSizePreProcessor, choose_image_size
from .seeding import seeded
from .weights import PACKAGED_BACKBONE, normalization, normalization_of

logger = logging.getLogger(__name__)


class BackbonePreProcessor(ExportablePreProcessor):
    """Pre-processor that resizes images and normalizes them for a backbone.

    Args:
        image_size (tuple[int, int]): Height and width of the output.
        backbone (str | None): Name of a timm model. ``None``: the backbone of the model that receives this
            pre-processor. Until then, it uses the normalization of the packaged backbone.
    """

    def __init__(self, image_size: tuple[int, int], backbone: str | None) -> None:
        mean, std = normalization(backbone or PACKAGED_BACKBONE)
        super().__init__(Compose([Resize(image_size, antialias=True), Normalize(mean, std)]))
        self.backbone = backbone


class BackboneMixin(LightningModule):
    """Mixin for anomalib models with a timm backbone, which matches image size and normalization to the backbone.

    With the image size ``"auto"``, the pre-processor is an :class:`AutoSizePreProcessor`.

    Attributes:
        default_image_size (tuple[int, int]): Default height and width of the images. ``"auto"`` keeps their product.
        network_factory (Callable[..., nn.Module]): Returns a new network for the argument ``image_size``.
        seed (int): Seed of the network's initial weights.
    """

    default_image_size: ClassVar[tuple[int, int]] = (224, 224)
    model: Any
    network_factory: Callable[..., nn.Module]
    seed: int

    def create_network(self, image_size: tuple[int, int]) -> Any:  # noqa: ANN401  each model has its own network
        """Return a new network for an image size, with weights drawn by the seed of the model."""
        with seeded(self.seed):
            return self.network_factory(image_size=image_size)

    def setup(self, stage: str) -> None:
        """Create the network for the image size of the pre-processor, which may have changed."""
        super().setup(stage)
        self._match_network()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Create the network for the image size of the checkpoint."""
        super().on_load_checkpoint(checkpoint)
        self._match_network()

    def _match_network(self) -> None:
        """Replace the network if the pre-processor has chosen another image size."""
        pre_processor: Any = self.pre_processor
        if isinstance(pre_processor, AutoSizePreProcessor) and pre_processor.size != self.model.image_size:
            self.model = self.create_network(pre_processor.size).to(self.device).train(self.training)

    @classmethod
    def configure_pre_processor(
        cls,
        image_size: tuple[int, int] | None = None,
        backbone: str | None = None,
    ) -> PreProcessor:
        """Return a pre-processor that resizes images and normalizes them for a backbone.

        Args:
            image_size (tuple[int, int] | None): Height and width of the output. Defaults to ``None``:
                ``default_image_size``.
            backbone (str | None): Name of a timm model. Defaults to ``None``: the backbone of the model that receives
                the pre-processor.
        """
        return BackbonePreProcessor(image_size or cls.default_image_size, backbone)

    @classmethod
    def match_pre_processor(
        cls,
        pre_processor: nn.Module | bool,
        image_size: int | Sequence[int] | str | None,
        backbone: str,
    ) -> tuple[nn.Module | bool, tuple[int, int]]:
        """Return a pre-processor and an image size that match each other and the backbone.

        A pre-processor of :meth:`configure_pre_processor` receives the normalization of the backbone. Any other one is
        used unchanged, with a warning if its normalization does not match the backbone.

        Args:
            pre_processor (nn.Module | bool): Argument of the model. ``True``: the default pre-processor.
            image_size (int | Sequence[int] | str | None): Argument of the model. ``"auto"``: an
                :class:`AutoSizePreProcessor`, unless another pre-processor is given. ``None``: the output size of the
                pre-processor, or ``default_image_size`` if the pre-processor does not resize.
            backbone (str): Name of a timm model.

        Returns:
            tuple[nn.Module | bool, tuple[int, int]]: Pre-processor and (height, width).

        Raises:
            ArgumentError: If the pre-processor has another output size or is configured for another backbone.
        """
        if isinstance(image_size, str) and image_size != AUTO:
            msg = f"`image_size` must be a number, height and width, or {AUTO!r}, got {image_size!r}."
            raise ArgumentError(msg)
        if isinstance(image_size, str):
            image_size = None
            if pre_processor is True:
                multiple = size_multiple(backbone)
                size = choose_image_size([(1, 1)], prod(cls.default_image_size), multiple)
                return AutoSizePreProcessor(size, *normalization(backbone), multiple), size
        size = height_and_width(image_size or cls.default_image_size)
        if pre_processor is True:
            return cls.configure_pre_processor(size, backbone), size
        output_size = _output_size(pre_processor)
        if output_size is not None and image_size is not None and output_size != size:
            msg = (
                f"`image_size` must match the output size of `pre_processor`, {output_size}, got {image_size}. "
                "Remove `image_size` or set it to this size."
            )
            raise ArgumentError(msg)
        if isinstance(pre_processor, nn.Module):
            pre_processor = _match_normalization(pre_processor, backbone)
        return pre_processor, height_and_width(output_size or size)


def _output_size(pre_processor: nn.Module | bool) -> tuple[int, int] | None:
    """Return the output height and width of a pre-processor, ``None`` if they depend on the image."""
    size = None
    for step in steps_of(getattr(pre_processor, "transform", None)):
        if isinstance(step, (Resize, CenterCrop)):
            sides = tuple(step.size) if isinstance(step.size, Sequence) else ()
            size = (sides[0], sides[1]) if len(sides) == 2 else None
    return size


def _match_normalization(pre_processor: nn.Module, backbone: str) -> nn.Module:
    """Return a pre-processor with the normalization of the backbone, or the given one if its backbone is fixed."""
    expected, found = normalization(backbone), normalization_of(pre_processor)
    if isinstance(pre_processor, BackbonePreProcessor) and pre_processor.backbone is None:
        steps = list(steps_of(pre_processor.transform))
        for index, step in enumerate(steps):
            if isinstance(step, Normalize):
                steps[index] = Normalize(*expected)
        return ExportablePreProcessor(Compose(steps))
    if (tuple(found[0]), tuple(found[1])) == expected:
        return pre_processor
    if isinstance(pre_processor, BackbonePreProcessor):
        msg = (
            f"`pre_processor` must be configured for the backbone {backbone!r}, got {pre_processor.backbone!r}. "
            f"Use `configure_pre_processor(image_size, backbone={backbone!r})`."
        )
        raise ArgumentError(msg)
    logger.warning(
        "The pre-processor normalizes with mean %s and std %s, but the backbone %s expects mean %s and std %s. If "
        "this is unintended, use `configure_pre_processor(image_size)`.",
        *found,
        backbone,
        *expected,
    )
    return pre_processor
