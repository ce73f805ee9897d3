# Copyright (C) 2026 anomalib-fewshot contributors
# SPDX-License-Identifier: Apache-2.0

"""Export of fitted models, with a metadata file for deployment."""

import hashlib
import json
import logging
from collections.abc import Callable, Generator
from contextlib import contextmanager
from importlib.metadata import version
from importlib.util import find_spec
from itertools import chain
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from anomalib.data import AnomalibDataModule
from anomalib.deploy.export import ExportType
from lightning.pytorch import LightningModule

from anomalib_fewshot._host import QuantizationHook
from anomalib_fewshot.data.support import support_dataloader
from anomalib_fewshot.errors import ArgumentError, MissingDependencyError
from anomalib_fewshot.post_processing import SupportPostProcessor

from .image_size import AUTO
from .onnx_verdict import add_verdict

logger = logging.getLogger(__name__)

OPENVINO_OPTIONS = {"EXECUTION_MODE_HINT": "ACCURACY"}  # by default OpenVINO computes in bf16 on CPUs that support it
METADATA_FILE = "metadata.json"
MAX_ONNX_WEIGHTS = 2_000_000_000  # bytes in a single ONNX file: the limit is 2 GiB, and the graph needs some of it


class MetadataExportMixin(QuantizationHook, LightningModule):
    """Mixin for anomalib models that writes ``metadata.json`` with each export and refuses to export unfitted models.

    The file has the field names of https://github.com/open-edge-platform/anomalib/pull/3570.
    """

    def check_fitted(self) -> None:
        """Raise an error if the model is not fitted."""
        raise NotImplementedError

    def to_torch(self, export_root: Path | str, *args: Any, **kwargs: Any) -> Path:  # noqa: ANN401
        """Export with anomalib's ``to_torch`` and write the metadata."""
        self.check_fitted()
        export = super().to_torch  # type: ignore[misc]
        return self._export(lambda root: export(root, *args, **kwargs), export_root, ExportType.TORCH)

    def to_onnx(  # type: ignore[override]
        self,
        export_root: Path | str,
        *args: Any,  # noqa: ANN401
        verdict: bool = False,
        **kwargs: Any,  # noqa: ANN401
    ) -> Path:
        """Export with anomalib's ``to_onnx`` and write the metadata.

        The weights are in the ONNX file itself if they fit into its limit of 2 GB.

        Args:
            export_root (Path | str): Output folder.
            *args (Any): Arguments of anomalib's ``to_onnx``.
            verdict (bool): Whether the graph has the additional output ``verdict``: 0 for good, 1 for review, 2 for
                defect. anomalib's ``OpenVINOInferencer`` rejects additional outputs. Defaults to ``False``.
            **kwargs (Any): Arguments of anomalib's ``to_onnx``.

        Returns:
            Path: The ONNX file.

        Raises:
            ArgumentError: If ``verdict`` is set and the model has no thresholds.
        """
        self.check_fitted()
        settings = self._verdict_settings() if verdict else None
        _require("onnx", "onnxscript", extra="onnx")
        size = sum(tensor.nbytes for tensor in (*self.parameters(), *self.buffers()))
        # torch exports opset 18. For anomalib's default, 14, it would have to convert the graph.
        options = {"external_data": size > MAX_ONNX_WEIGHTS, "opset_version": 18}
        export: Any = super().to_onnx

        def write(root: Path) -> Path:
            path: Path = export(root, *args, **options | kwargs)
            if settings is not None:
                add_verdict(path, settings)
            return path

        with _quiet_exporters():
            return self._export(write, export_root, ExportType.ONNX)

    def to_openvino(self, export_root: Path | str, *args: Any, **kwargs: Any) -> Path:  # noqa: ANN401
        """Export with anomalib's ``to_openvino`` and write the metadata.

        The support set is the calibration set of ``int8_ptq``.
        """
        _require("openvino", extra="openvino")
        export = super().to_openvino  # type: ignore[misc]
        path = self._export(lambda root: export(root, *args, **kwargs), export_root, ExportType.OPENVINO)
        logger.warning(
            "OpenVINO computes in half precision on CPUs that support it, which may change verdicts. For the verdicts "
            f"of `predict`, load the model with OpenVINOInferencer(..., config={OPENVINO_OPTIONS}).",
        )
        return path

    @staticmethod
    def quantize_openvino(model: Any, datamodule: AnomalibDataModule | None) -> Any:  # noqa: ANN401
        """Quantize an OpenVINO model with the support set as calibration set.

        anomalib calibrates on validation images, which few-shot data does not have. Matrix products stay in floating
        point: OpenVINO cannot run a quantized resize, and densities subtract nearly equal numbers.

        Raises:
            ArgumentError: If ``datamodule`` is ``None``.
        """
        _require("nncf", extra="openvino")
        import nncf

        if datamodule is None:
            msg = "`datamodule` must be set for `int8_ptq`, got None. Pass the datamodule with the support set."
            raise ArgumentError(msg)
        datamodule.setup("fit")
        dataset: Any = support_dataloader(datamodule).dataset
        images = [item.image[None].numpy() for item in dataset]
        matrix_products = nncf.IgnoredScope(types=["MatMul"], validate=False)  # not every model has matrix products
        return nncf.quantize(model, nncf.Dataset(images), ignored_scope=matrix_products)

    def _export(self, write: Callable[[Path], Path], export_root: Path | str, export_type: ExportType) -> Path:
        """Write an export to a temporary folder, then move the complete files to their final folder.

        After an error, such as a full disk, the files of an earlier export are unchanged.
        """
        folder = Path(export_root) / "weights" / export_type.value  # anomalib's folder structure
        folder.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(prefix=".export.", dir=folder) as temporary:
            written = write(Path(temporary))
            metadata = self._metadata(written)
            written.with_name(METADATA_FILE).write_text(json.dumps(metadata, indent=2) + "\n", encoding="utf-8")
            replaces_other_model = _is_other_model(folder / METADATA_FILE, metadata)
            # The metadata is moved last, so that it never describes a file that is not there yet.
            for file in sorted(written.parent.iterdir(), key=lambda file: file.name == METADATA_FILE):
                file.replace(folder / file.name)
        if replaces_other_model:
            logger.warning(
                "The export of another model was overwritten. To keep both, set a different `export_root` for each "
                f"model: {folder / written.name}",
            )
        return folder / written.name

    def _verdict_settings(self) -> dict[str, Any]:
        """Return the thresholds of the verdicts, as in ``metadata.json``."""
        post_processor = getattr(self, "post_processor", None)
        if not isinstance(post_processor, SupportPostProcessor) or not post_processor.enable_thresholding:
            msg = "`verdict` requires thresholds, got a model without them. Use `SupportPostProcessor()`."
            raise ArgumentError(msg)
        return post_processor.metadata()

    def _metadata(self, path: Path) -> dict[str, Any]:
        """Return the content of ``metadata.json`` for an exported file."""
        input_size = _input_size(path)
        pixels = "any size" if input_size is None else f"{input_size[0]} x {input_size[1]} pixels (height x width)"
        post_processor = getattr(self, "post_processor", None)
        return {
            "schema_version": "1.0",
            "anomalib_version": version("anomalib"),
            "anomalib_fewshot_version": version("anomalib-fewshot"),
            "model": type(self).__name__,
            "file": path.name,
            "state_sha256": self._state_sha256(),
            "preprocess": {
                "image_size": self._image_size(),  # size that the graph resizes images to
                "input_size": input_size,  # height and width of the graph's input
                "input": f"RGB from 0 to 1, {pixels}",
            },
            "postprocess": post_processor.metadata() if isinstance(post_processor, SupportPostProcessor) else {},
        }

    def _image_size(self) -> Any:  # noqa: ANN401  a number, or height and width
        """Return the argument ``image_size``, or the size that the pre-processor has chosen."""
        image_size = self.hparams.get("image_size")
        model: Any = self.model
        return list(model.image_size) if image_size == AUTO else image_size

    def _state_sha256(self) -> str:
        """Return the SHA-256 of all parameters and buffers, which identifies the model of an export."""
        digest = hashlib.sha256()
        for name, tensor in chain(self.named_parameters(), self.named_buffers()):
            digest.update(name.encode())
            digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
        return digest.hexdigest()


@contextmanager
def _quiet_exporters() -> Generator[None, None, None]:
    """Suppress the messages of the exporters below the level ERROR. They log every constant."""
    levels = {name: logging.getLogger(name).level for name in ("onnx_ir", "onnxscript", "torch.onnx")}
    for name in levels:
        logging.getLogger(name).setLevel(logging.ERROR)
    try:
        yield
    finally:
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)


def _require(*packages: str, extra: str) -> None:
    """Check that packages are installed.

    Raises:
        MissingDependencyError: If a package is missing. The message names the extra that installs it.
    """
    missing = [package for package in packages if find_spec(package) is None]
    if missing:
        msg = (
            f"The export needs {' and '.join(missing)}, which is not installed. Install it with "
            f"`pip install 'anomalib-fewshot[{extra}]'`."
        )
        raise MissingDependencyError(msg)


def _input_size(path: Path) -> list[int] | None:
    """Return the static input height and width of an exported graph, ``None`` if they are dynamic."""
    if path.suffix == ".onnx":
        import onnx

        graph = onnx.load(path, load_external_data=False).graph
        sides = [side.dim_value for side in graph.input[0].type.tensor_type.shape.dim[2:]]  # 0 if dynamic
    elif path.suffix == ".xml":
        import openvino

        shape = openvino.Core().read_model(path).input(0).partial_shape
        sides = [side.get_length() if side.is_static else 0 for side in list(shape)[2:]]
    else:
        return None
    return sides if all(sides) else None


def _is_other_model(path: Path, metadata: dict[str, Any]) -> bool:
    """Return whether an existing metadata file describes another model under the same file name."""
    try:
        existing = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return False
    return existing.get("file") == metadata["file"] and existing.get("state_sha256") != metadata["state_sha256"]
