# Copyright (C) 2026 anomalib-fewshot contributors
# SPDX-License-Identifier: Apache-2.0

"""OpenVINO compression in anomalib's export."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from anomalib.data import AnomalibDataModule
    from anomalib.deploy import CompressionType
    from anomalib.models import AnomalibModule


class QuantizationHook:
    """Mixin of an anomalib model that quantizes with :meth:`quantize_openvino`. It must precede anomalib's base class.

    Undocumented: ``to_openvino`` calls the private method for ``int8_ptq``.
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
    """Return an exported OpenVINO model with the compression of ``to_openvino``.

    Undocumented: the private method. The public method would export the model again.
    """
    return model._compress_ov_model(exported, compression, datamodule)  # noqa: SLF001
