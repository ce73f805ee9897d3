# Copyright (C) 2026 anomalib-fewshot contributors
# SPDX-License-Identifier: Apache-2.0

"""Rotated training images for anomalib's memory banks, as published for AnomalyDINO."""

import torch
from kornia.geometry import rotate
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn
from torch import nn
from torch.utils.hooks import RemovableHandle

from anomalib_fewshot._host import is_memory_bank


class RotatedReferences(Callback):
    """Fit a memory bank of anomalib, such as ``AnomalyDINO`` or ``Patchcore``, to rotations of the training images.

    AnomalyDINO's few-shot results (`arXiv 2405.14529 <https://arxiv.org/abs/2405.14529>`_) use eight rotations of each
    reference image by multiples of 45 degrees, which anomalib's model does not make. Images are rotated after the
    pre-processing, and the border is reflected. Thresholds from the support set use the rotations too.

    Args:
        num_angles (int): Number of rotations of each image, by equal angles and including none. Defaults to ``8``.

    Raises:
        TypeError: In a fit, if the model is not a memory bank.
        ValueError: If ``num_angles`` is not positive.

    Example:
        >>> from anomalib.engine import Engine
        >>> from anomalib.models import AnomalyDINO
        >>> Engine(callbacks=[RotatedReferences()]).fit(AnomalyDINO())  # doctest: +SKIP
    """

    def __init__(self, num_angles: int = 8) -> None:
        if num_angles < 1:
            msg = f"`num_angles` must be positive, got {num_angles}. Use 8 for rotations by 45 degrees."
            raise ValueError(msg)
        self.angles = [360 * step / num_angles for step in range(num_angles)]
        self._hook: RemovableHandle | None = None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Register a hook that rotates the images of the fit."""
        del trainer
        if stage != TrainerFn.FITTING:
            return
        if not is_memory_bank(pl_module):
            name = type(pl_module).__name__
            msg = f"The model of RotatedReferences must be a memory bank of anomalib, got {name}. Remove the callback."
            raise TypeError(msg)

        def add_rotations(model: nn.Module, inputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
            images, *others = inputs  # (B, 3, H, W)
            if not model.training:
                return inputs
            rotated = [images if angle == 0 else self._rotate(images, angle) for angle in self.angles]
            return (torch.cat(rotated), *others)

        model: nn.Module = pl_module.model  # type: ignore[assignment]
        self._hook = model.register_forward_pre_hook(add_rotations)

    @staticmethod
    def _rotate(images: torch.Tensor, angle: float) -> torch.Tensor:
        return rotate(images, torch.tensor(angle, device=images.device, dtype=images.dtype), padding_mode="reflection")

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Remove the hook."""
        del trainer, pl_module, stage
        if self._hook is not None:
            self._hook.remove()
            self._hook = None
