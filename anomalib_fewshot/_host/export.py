# Copyright (C) 2026 anomalib-fewshot contributors
# SPDX-License-Identifier: Apache-2.0

"""OpenVINO compression in anomalib's export."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from anomalib.data import AnomalibDataModule
    from anomalib.deploy import CompressionType
    from anomalib.models import AnomalibModule


class QuantizationHook:
    """Part of an anomalib model, before anomalib's own, that quantizes with :meth:`quantize_openvino`.

    Undocumented: that ``to_openvino`` calls the private method for ``int8_ptq``.
    """

    @staticmethod
    def quantize_openvino(model: Any, datamodule: "AnomalibDataModule | None") -> Any:  # noqa: ANN401
        """Return the quantized OpenVINO model."""
        raise NotImplementedError

    def _post_training_quantization_ov(
        self,
        model: Any,  # noqa: ANN401
        datamodule: "AnomalibDataModule | None" = None,
    ) -> Any:  # noqa: ANN401
        return self.quantize_openvino(model, datamodule)


def compress_openvino(
    model: "AnomalibModule",
    exported: Any,  # noqa: ANN401
    compression: "CompressionType",
    datamodule: "AnomalibDataModule",
) -> Any:  # noqa: ANN401
    """Return an OpenVINO model of an anomalib model, compressed as ``to_openvino`` compresses it.

    Undocumented: the private method. The public one would export the model once more.
    """
    return model._compress_ov_model(exported, compression, datamodule)  # noqa: SLF001
