# Copyright (C) 2026 anomalib-fewshot contributors
# SPDX-License-Identifier: Apache-2.0

"""anomalib's memory banks, Patchcore, and the component settings in a checkpoint."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable

    import torch
    from anomalib.models import AnomalibModule
    from anomalib.models.image.patchcore.torch_model import PatchcoreModel
    from lightning.pytorch import LightningModule


def is_memory_bank(model: "LightningModule") -> bool:
    """Return whether an anomalib model is a memory bank, such as ``Patchcore``, which ``fit`` fits in one call.

    Undocumented: all these models, and no others, inherit from ``MemoryBankMixin``.
    """
    from anomalib.models.components import MemoryBankMixin  # imports all models, including those of this package

    return isinstance(model, MemoryBankMixin)


def is_memory_bank_class(cls: type) -> bool:
    """Return whether the models of a class are memory banks, see :func:`is_memory_bank`."""
    from anomalib.models.components import MemoryBankMixin

    return issubclass(cls, MemoryBankMixin)


def fit_memory_bank(model: "AnomalibModule", batches: "Iterable[torch.Tensor]") -> None:
    """Fit a memory bank to batches of pre-processed images, ``(B, 3, H, W)``, without Lightning's loop: one epoch.

    Undocumented: ``training_step`` and ``fit`` work without the loop. A ``self.log`` in ``training_step`` would log for
    the current hook.
    """
    from anomalib.data import ImageBatch

    for number, batch in enumerate(batches):
        model.training_step(ImageBatch(image=batch), number)
    model.fit()  # type: ignore[operator]


def patchcore_embedding(model: "PatchcoreModel", images: "torch.Tensor") -> "torch.Tensor":
    """Return the patch features that ``Patchcore`` stores in its memory bank, shape ``(B, C, H, W)``.

    Undocumented: the attributes ``feature_extractor`` and ``feature_pooler``, and the method ``generate_embedding``.
    """
    features = {layer: model.feature_pooler(part) for layer, part in model.feature_extractor(images).items()}
    return model.generate_embedding(features)


def pre_processor_settings(checkpoint: dict[str, Any]) -> dict[str, Any] | None:
    """Return the settings of the pre-processor in a checkpoint, for ``load_checkpoint_config``.

    ``None`` if the model had none. Undocumented: the key.
    """
    return checkpoint.get("anomalib_pre_processor_config")
