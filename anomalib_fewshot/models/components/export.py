# Copyright (C) 2026 anomalib-fewshot contributors
# SPDX-License-Identifier: Apache-2.0

"""Export of a model that can score, and what a deployment has to know about it."""

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

logger = logging.getLogger(__name__)

OPENVINO_OPTIONS = {"EXECUTION_MODE_HINT": "ACCURACY"}  # else it rounds to bf16 where a processor has it
DESCRIPTION = "metadata.json"
ONE_FILE = 2_000_000_000  # bytes of weights that an ONNX file holds, its limit of 2 GiB less some for the graph


class DescribedExportMixin(QuantizationHook, LightningModule):
    """Part of an anomalib model that writes ``metadata.json`` beside its exports, and exports none that cannot score.

    The names in the file are those of anomalib's plan for it, https://github.com/open-edge-platform/anomalib/pull/3570.
    """

    def check_fitted(self) -> None:
        """Raise if the model cannot score."""
        raise NotImplementedError

    def to_torch(self, export_root: Path | str, *args: Any, **kwargs: Any) -> Path:  # noqa: ANN401
        """Export as anomalib does."""
        self.check_fitted()
        export = super().to_torch  # type: ignore[misc]
        return self._export(lambda root: export(root, *args, **kwargs), export_root, ExportType.TORCH)

    def to_onnx(self, export_root: Path | str, *args: Any, **kwargs: Any) -> Path:  # type: ignore[override]  # noqa: ANN401
        """Export as anomalib does, to one file below ONNX's limit of 2 GB."""
        self.check_fitted()
        _require("onnx", "onnxscript", extra="onnx")
        size = sum(tensor.nbytes for tensor in (*self.parameters(), *self.buffers()))
        options = {"external_data": size > ONE_FILE, "opset_version": 18}  # torch converts from 18 to lower versions
        export: Any = super().to_onnx
        with _quiet_exporters():
            return self._export(lambda root: export(root, *args, **options | kwargs), export_root, ExportType.ONNX)

    def to_openvino(self, export_root: Path | str, *args: Any, **kwargs: Any) -> Path:  # noqa: ANN401
        """Export as anomalib does, with a full integer quantization that is calibrated on the support."""
        _require("openvino", extra="openvino")
        export = super().to_openvino  # type: ignore[misc]
        path = self._export(lambda root: export(root, *args, **kwargs), export_root, ExportType.OPENVINO)
        logger.warning(
            "OpenVINO rounds to half precision where a processor can, which may change verdicts. To get those of "
            f"`predict`, load the model with OpenVINOInferencer(..., config={OPENVINO_OPTIONS}).",
        )
        return path

    @staticmethod
    def quantize_openvino(model: Any, datamodule: AnomalibDataModule | None) -> Any:  # noqa: ANN401
        """Quantize an OpenVINO model by the support: few-shot data has no validation images, which anomalib takes.

        Matrix products stay in floating point: OpenVINO cannot run a quantized resize, and a density takes differences
        of near numbers.
        """
        _require("nncf", extra="openvino")
        import nncf

        if datamodule is None:
            msg = "`datamodule` must be given for `int8_ptq`, got None. Give the data of the support."
            raise ArgumentError(msg)
        datamodule.setup("fit")
        pictures = [item.image[None].numpy() for item in support_dataloader(datamodule).dataset]
        products = nncf.IgnoredScope(types=["MatMul"], validate=False)  # a model may have none
        return nncf.quantize(model, nncf.Dataset(pictures), ignored_scope=products)

    def _export(self, write: Callable[[Path], Path], export_root: Path | str, export_type: ExportType) -> Path:
        """Write an export to a temporary folder, and move its files when all of them are complete.

        After an error, such as a full disk, the files of an earlier export are unchanged.
        """
        folder = Path(export_root) / "weights" / export_type.value  # as anomalib names it
        folder.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(prefix=".export.", dir=folder) as temporary:
            written = write(Path(temporary))
            values = self._describe(written)
            written.with_name(DESCRIPTION).write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
            replaces_another = _is_of_another(folder / DESCRIPTION, values)
            for file in sorted(written.parent.iterdir(), key=lambda file: file.name == DESCRIPTION):  # it is the last
                file.replace(folder / file.name)
        if replaces_another:
            logger.warning(
                f"{folder / written.name} was the export of another model, and is now that of this one. Give each "
                "model a folder of its own, such as that of its run (`export_root`), to keep both.",
            )
        return folder / written.name

    def _describe(self, path: Path) -> dict[str, Any]:
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
                "image_size": self.hparams.get("image_size"),  # to which the graph resizes
                "input_size": input_size,  # which the graph takes, height and width
                "input": f"RGB from 0 to 1, of {pixels}",
            },
            "postprocess": post_processor.metadata() if isinstance(post_processor, SupportPostProcessor) else {},
        }

    def _state_sha256(self) -> str:
        """Return the SHA-256 of all parameters and buffers, by which an export is known."""
        digest = hashlib.sha256()
        for name, tensor in chain(self.named_parameters(), self.named_buffers()):
            digest.update(name.encode())
            digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
        return digest.hexdigest()


@contextmanager
def _quiet_exporters() -> Generator[None, None, None]:
    """Hide the messages of the exporters, which log every constant. Errors are raised as before."""
    levels = {name: logging.getLogger(name).level for name in ("onnx_ir", "onnxscript", "torch.onnx")}
    for name in levels:
        logging.getLogger(name).setLevel(logging.ERROR)
    try:
        yield
    finally:
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)


def _require(*packages: str, extra: str) -> None:
    """Raise if packages are not installed.

    Raises:
        MissingDependencyError: It names them and the extra of this package that installs them.
    """
    missing = [package for package in packages if find_spec(package) is None]
    if missing:
        msg = (
            f"The export needs {' and '.join(missing)}, which is not installed. Install it with "
            f"`pip install 'anomalib-fewshot[{extra}]'`."
        )
        raise MissingDependencyError(msg)


def _input_size(path: Path) -> list[int] | None:
    """Return the height and width that an exported graph is fixed to, ``None`` if it takes any."""
    if path.suffix == ".onnx":
        import onnx

        graph = onnx.load(path, load_external_data=False).graph
        sides = [side.dim_value for side in graph.input[0].type.tensor_type.shape.dim[2:]]  # 0 if any
    elif path.suffix == ".xml":
        import openvino

        shape = openvino.Core().read_model(path).input(0).partial_shape
        sides = [side.get_length() if side.is_static else 0 for side in list(shape)[2:]]
    else:
        return None
    return sides if all(sides) else None


def _is_of_another(description: Path, values: dict[str, Any]) -> bool:
    """Return whether a description is of the same file, but of another model."""
    try:
        before = json.loads(description.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return False
    return before.get("file") == values["file"] and before.get("state_sha256") != values["state_sha256"]
