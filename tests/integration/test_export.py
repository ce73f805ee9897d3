# Copyright (C) 2026 anomalib-fewshot contributors
# SPDX-License-Identifier: Apache-2.0

"""An exported model says of a file of any size what `predict` says, in each runtime: score, map, verdict and mask."""

import json
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from anomalib.data.utils import read_image
from anomalib.deploy import OpenVINOInferencer, TorchInferencer
from anomalib.engine import Engine
from anomalib.models import AnomalibModule, get_model
from anomalib.models.components.base.export_mixin import ExportMixin
from image_files import save_image
from small_models import MODELS, SMALL

from anomalib_fewshot import CoftAD, FewShot, ImageStatistic, MVTecFolder
from anomalib_fewshot.errors import MissingDependencyError
from anomalib_fewshot.models.components import export

FIELDS = ("pred_score", "anomaly_map", "pred_label", "pred_mask")
SIZES = [(64, 64), (50, 37), (301, 203), (1500, 1000)]  # width, height: the models' own, smaller, odd, of a camera
Outputs = dict[str, np.ndarray]


def photo(rng: np.random.Generator, size: tuple[int, int], *, defect: bool) -> np.ndarray:
    """Return a picture of a weave with noise of the sensor, and with a dark square if it is defective."""
    width, height = size
    x, y = ((np.arange(side) + 0.5) / side + rng.uniform(-0.01, 0.01) for side in size)
    image = 120 + 30 * np.sin(60 * x) + 20 * np.sin(80 * y)[:, None] + 10 * np.sin(1500 * x)
    if defect:
        image[height // 3 : height // 2, width // 3 : width // 2] = 10
    noise = rng.normal(0, 20, (height, width, 3))
    return (image[..., None] + noise).clip(0, 255).astype(np.uint8)


@dataclass
class Exported:
    """A model and the folder of its export."""

    model: AnomalibModule
    folder: Path

    def torch(self) -> Callable[[Path], Outputs]:
        """anomalib's inferencer of a `.pt` file."""
        inferencer = TorchInferencer(self.model.to_torch(self.folder), device="cpu")
        return torch.no_grad()(lambda path: plain(inferencer.predict(path)))

    def onnx(self) -> Callable[[Path], Outputs]:
        """ONNX Runtime."""
        session = onnxruntime.InferenceSession(self.to_onnx())
        names = [output.name for output in session.get_outputs()]
        return lambda path: {
            name: value[0] for name, value in zip(names, session.run(names, {"input": read(path)[None]}), strict=True)
        }

    def openvino(self) -> Callable[[Path], Outputs]:
        """anomalib's inferencer of OpenVINO, which reads ONNX files too."""
        pytest.importorskip("openvino")
        inferencer = OpenVINOInferencer(self.to_onnx(), device="CPU", config=export.OPENVINO_OPTIONS)
        return lambda path: plain(inferencer.predict(path))

    def to_onnx(self) -> Path:
        """Export once."""
        path = self.folder / "weights" / "onnx" / "model.onnx"
        return path if path.is_file() else self.model.eval().to_onnx(self.folder)


def read(path: Path) -> np.ndarray:
    return np.ascontiguousarray(read_image(path, as_tensor=True).numpy())


def plain(batch: object) -> Outputs:
    """Return the fields that are there of a batch of one image."""
    values = {name: getattr(batch, name) for name in FIELDS}
    return {name: np.asarray(value)[0] for name, value in values.items() if value is not None}


@pytest.fixture(scope="module")
def part(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder: 4 pictures of a camera to train by, and of each size 2 good ones and 1 with a defect."""
    root, rng = tmp_path_factory.mktemp("part"), np.random.default_rng(0)
    for index in range(4):
        save_image(photo(rng, (1500, 1000), defect=False), root / "weave/train/good" / f"{index}.png")
    for size in SIZES:
        for index in range(3):
            path = root / "weave/test" / ("hole" if index == 2 else "good") / f"{size[0]}_{index}.png"
            save_image(photo(rng, size, defect=index == 2), path)
    return root


@pytest.fixture(
    scope="module",
    params=[pytest.param(name, marks=pytest.mark.slow if name in {"RegAD", "UniAD"} else []) for name in MODELS],
)
def exported(request: pytest.FixtureRequest, part: Path, tmp_path_factory: pytest.TempPathFactory) -> Exported:
    folder = tmp_path_factory.mktemp(request.param)
    model = get_model(request.param, **SMALL[request.param], visualizer=False)
    source = MVTecFolder(part, "weave", num_workers=0, val_split_mode="none")
    fit = Engine(default_root_dir=folder, logger=False, enable_progress_bar=False, accelerator="cpu", devices=1).fit
    fit(model, datamodule=FewShot(source, k_shot=4))
    return Exported(model, folder)


def predicted(model: AnomalibModule, path: Path, folder: Path) -> dict[str, Outputs]:
    engine = Engine(default_root_dir=folder, logger=False, enable_progress_bar=False, accelerator="cpu", devices=1)
    items = [item for batch in engine.predict(model, data_path=path) for item in batch]
    fields = {item.image_path: {name: getattr(item, name) for name in FIELDS} for item in items}
    return {
        image: {name: np.asarray(value) for name, value in found.items() if value is not None}
        for image, found in fields.items()
    }


def compare(expected: dict[str, Outputs], infer: Callable[[Path], Outputs], tolerance: float) -> None:
    for path, wanted in expected.items():
        found = infer(Path(path))
        assert set(wanted) == set(found)
        for name in {"pred_score", "anomaly_map"} & set(wanted):
            np.testing.assert_allclose(
                found[name].squeeze(),
                wanted[name].squeeze(),
                rtol=0,
                atol=tolerance,
                err_msg=f"{name} of {path}",
            )
        assert bool(found["pred_label"]) == bool(wanted["pred_label"]), path
        if "pred_mask" in wanted:
            assert (found["pred_mask"].squeeze() != wanted["pred_mask"].squeeze()).mean() < 1e-3, path


@pytest.mark.parametrize(("runtime", "tolerance"), [("torch", 0), ("onnx", 1e-3), ("openvino", 1e-3)])
def test_every_runtime_says_what_predict_says(
    exported: Exported,
    part: Path,
    monkeypatch: pytest.MonkeyPatch,
    runtime: str,
    tolerance: float,
) -> None:
    monkeypatch.chdir(exported.folder)  # OpenVINO's cache
    monkeypatch.setenv("TRUST_REMOTE_CODE", "1")
    expected = predicted(exported.model, part / "weave/test", exported.folder)
    assert len(expected) == 3 * len(SIZES)
    assert {bool(found["pred_label"]) for found in expected.values()} == {False, True}
    compare(expected, getattr(exported, runtime)(), tolerance)


def test_openvino_export_says_how_to_load_it(
    exported: Exported,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def write(_: object, root: Path) -> Path:
        (root / "model.xml").write_text("<net/>", encoding="utf-8")
        return root / "model.xml"

    monkeypatch.setattr(export, "find_spec", lambda _: True)
    monkeypatch.setattr(ExportMixin, "to_openvino", write)
    monkeypatch.setattr(export, "_input_size", lambda _: None)
    exported.model.to_openvino(tmp_path)
    assert "OpenVINOInferencer(..., config={'EXECUTION_MODE_HINT': 'ACCURACY'})" in caplog.text


@pytest.mark.slow
def test_24_megapixels(exported: Exported, tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    for index in range(3):
        save_image(photo(rng, (6000, 4000), defect=index == 2), tmp_path / f"{index}.png")
    compare(predicted(exported.model, tmp_path, exported.folder), exported.onnx(), 1e-3)


def test_batch_of_one_size_is_its_images(exported: Exported, part: Path) -> None:
    session = onnxruntime.InferenceSession(exported.to_onnx())
    paths = sorted(part.glob("weave/test/*/301_*.png"))
    together = session.run(["pred_score"], {"input": np.stack([read(path) for path in paths])})[0]
    alone = [session.run(["pred_score"], {"input": read(path)[None]})[0] for path in paths]
    np.testing.assert_allclose(together.ravel(), np.concatenate(alone).ravel(), rtol=1e-4)


def test_onnx_is_one_file(exported: Exported) -> None:
    assert sorted(file.name for file in exported.to_onnx().parent.iterdir()) == ["metadata.json", "model.onnx"]


@pytest.mark.parametrize(
    ("limit", "given", "apart"),
    [(0, {}, True), pytest.param(2**31, {}, False, marks=pytest.mark.slow), (0, {"external_data": False}, False)],
)
def test_weights_beyond_the_limit_of_a_file_are_apart(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    limit: int,
    given: dict[str, bool],
    apart: bool,
) -> None:
    options: dict[str, Any] = {}
    export_onnx = torch.onnx.export

    def record(**found: Any) -> object:  # noqa: ANN401
        options.update(found)
        return export_onnx(**found)

    monkeypatch.setattr(torch.onnx, "export", record)
    monkeypatch.setattr(export, "MAX_ONNX_WEIGHTS", limit)
    path = fitted_plain_statistic().eval().to_onnx(tmp_path, **given)
    assert options["external_data"] is apart
    assert options["opset_version"] == 18
    names = ["metadata.json", "model.onnx", *(["model.onnx.data"] if apart else [])]
    assert sorted(file.name for file in path.parent.iterdir()) == names
    onnxruntime.InferenceSession(path)  # finds the weights after the move


def fitted_plain_statistic(score: float = 0.0) -> ImageStatistic:
    model = ImageStatistic(image_size=64)
    model.is_fitted.fill_(value=True)
    next(buffer for name, buffer in model.model.named_buffers()).fill_(score)
    return model


def test_warning_if_the_export_of_another_model_is_overwritten(
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    for folder, score in (("a", 0.0), ("b", 1.0), ("a", 0.0)):  # one folder for each model, and the first model again
        fitted_plain_statistic(score).to_torch(tmp_path / folder)
    fitted_plain_statistic(1.0).to_torch(tmp_path / "a", "other")
    assert "another model" not in caplog.text
    fitted_plain_statistic(2.0).to_torch(tmp_path / "b")
    path = tmp_path / "b" / "weights" / "torch" / "model.pt"
    assert (
        f"another model was overwritten. To keep both, set a different `export_root` for each model: {path}"
        in caplog.text
    )
    (path.parent / "metadata.json").write_text("{", encoding="utf-8")
    fitted_plain_statistic(3.0).to_torch(tmp_path / "b")  # without valid metadata there is no comparison
    assert caplog.text.count("another model") == 1


def test_a_model_need_not_have_an_image_size(tmp_path: Path) -> None:
    """Such as one of another package."""
    model = fitted_plain_statistic()
    path = model.to_torch(tmp_path)
    description = path.with_name("metadata.json")
    assert json.loads(description.read_text())["preprocess"]["image_size"] == 64
    del model.hparams["image_size"]
    model.to_torch(tmp_path)
    assert json.loads(description.read_text())["preprocess"]["image_size"] is None


@pytest.mark.parametrize(
    ("method", "missing", "extra"),
    [("to_openvino", "openvino", "openvino"), ("to_onnx", "onnx", "onnx"), ("to_onnx", "onnxscript", "onnx")],
)
def test_missing_package_is_named_before_anything_is_written(
    method: str,
    missing: str,
    extra: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(export, "find_spec", lambda name: None if name == missing else True)
    model = ImageStatistic(image_size=32)
    model.is_fitted.fill_(value=True)
    with pytest.raises(MissingDependencyError, match=rf"{missing},.*pip install 'anomalib-fewshot\[{extra}\]'"):
        getattr(model, method)(tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("size", "expected", "text"),
    [(None, None, "any size"), ((48, 64), [48, 64], "48 x 64 pixels")],
)
def test_metadata_states_the_size_that_the_graph_takes(
    tmp_path: Path,
    size: tuple[int, int] | None,
    expected: list[int] | None,
    text: str,
) -> None:
    path = fitted_plain_statistic().eval().to_onnx(tmp_path, input_size=size)
    described = json.loads(path.with_name("metadata.json").read_text())["preprocess"]
    assert described["input_size"] == expected
    assert text in described["input"]
    assert described["image_size"] == 64
    session = onnxruntime.InferenceSession(path)
    wrong = np.zeros((1, 3, 50, 37), dtype=np.float32)
    if size is None:
        session.run(None, {"input": wrong})
    else:
        session.run(None, {"input": np.zeros((2, 3, *size), dtype=np.float32)})
        with pytest.raises(onnxruntime.capi.onnxruntime_pybind11_state.InvalidArgument):
            session.run(None, {"input": wrong})


def contents(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


@pytest.fixture(scope="module")
def plain_exports(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder of both exports of a model."""
    folder = tmp_path_factory.mktemp("plain")
    fitted_plain_statistic().to_torch(folder)
    fitted_plain_statistic().eval().to_onnx(folder)
    return folder


@pytest.mark.parametrize("kind", ["torch", "onnx"])
@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt(), SystemExit(143)])
def test_export_that_fails_leaves_the_earlier_one(
    plain_exports: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    kind: str,
    error: BaseException,
) -> None:
    export_model = {"torch": "to_torch", "onnx": "to_onnx"}[kind]
    shutil.copytree(plain_exports, tmp_path, dirs_exist_ok=True)
    before = contents(tmp_path)

    def write_a_part(*_: object, f: str | Path, **__: object) -> None:
        Path(f).write_bytes(b"a part")
        raise error

    monkeypatch.setattr(torch, "save", write_a_part)
    monkeypatch.setattr(torch.onnx, "export", write_a_part)
    with pytest.raises(type(error)):
        getattr(fitted_plain_statistic(1.0).eval(), export_model)(tmp_path)
    assert contents(tmp_path) == before
    assert not list(tmp_path.rglob(".*"))


@pytest.mark.skipif(sys.platform != "linux", reason="limits the size of files")
def test_full_disk(tmp_path: Path) -> None:
    """For a moment, the files of this process may have 20 kB each."""
    import resource

    model = CoftAD("resnet18", pre_trained=False, image_size=64, num_steps=1, evaluator=False, visualizer=False)
    model.is_fitted.fill_(value=True)
    folder = fitted_plain_statistic().to_torch(tmp_path).parent
    before = contents(folder)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limits[1]))
    try:
        with pytest.raises((OSError, RuntimeError), match="unexpected pos|writing file|File too large"):
            model.to_torch(tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert contents(folder) == before
    assert sorted(path.name for path in folder.iterdir()) == ["metadata.json", "model.pt"]
