# Copyright (C) 2026 anomalib-fewshot contributors
# SPDX-License-Identifier: Apache-2.0

"""The deployment example returns the results of `predict` without torch, anomalib and this package."""

import csv
import json
import os
import re
import resource
import runpy
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from anomalib.engine import Engine
from PIL import ExifTags, Image
from score_images import VERDICTS, Model, read_image
from small_models import SMALL

from anomalib_fewshot import CoftAD, FewShot, ImageStatistic, MVTecFolder

DOCS = Path(__file__).parents[2] / "docs"
EXAMPLE = DOCS / "examples" / "score_images.py"
EXAMPLE_AS_MAIN = f"import runpy; runpy.run_path({str(EXAMPLE)!r}, run_name='__main__')"
NEEDED = ("numpy*", "PIL", "pillow*", "onnxruntime*")


def engine(folder: Path) -> Engine:
    return Engine(default_root_dir=folder, logger=False, enable_progress_bar=False, accelerator="cpu", devices=1)


@pytest.fixture(scope="module", params=[pytest.param(1, marks=pytest.mark.slow), 4])
def fitted(request: pytest.FixtureRequest, mvtec_root: Path, tmp_path_factory: pytest.TempPathFactory) -> CoftAD:
    model = CoftAD(**SMALL["CoftAD"], visualizer=False)
    datamodule = FewShot(MVTecFolder(mvtec_root, "bolt", num_workers=0), k_shot=request.param)
    engine(tmp_path_factory.mktemp("fit")).fit(model, datamodule=datamodule)
    return model


@pytest.fixture(scope="module")
def onnx_file(fitted: CoftAD, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Export once: each export takes seconds."""
    return fitted.eval().to_onnx(tmp_path_factory.mktemp("onnx"))


@pytest.fixture(scope="module")
def packages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with only onnxruntime, numpy and Pillow."""
    folder = tmp_path_factory.mktemp("packages")
    installed = Path(np.__file__).parents[1]
    for pattern in NEEDED:
        for path in installed.glob(pattern):
            (folder / path.name).symlink_to(path)
    return folder


def run(packages: Path, code: str, *arguments: str, cwd: Path) -> str:
    """Run Python with the given packages only."""
    start = f"import sys; sys.path.append({str(packages)!r}); {code}"
    command = [sys.executable, "-I", "-S", "-c", start, *arguments]
    return subprocess.run(command, check=True, cwd=cwd, capture_output=True, text=True).stdout


@pytest.mark.parametrize("name", ["torch", "anomalib", "anomalib_fewshot", "lightning", "cv2", "scipy"])
def test_other_packages_are_missing(packages: Path, tmp_path: Path, name: str) -> None:
    with pytest.raises(subprocess.CalledProcessError) as error:
        run(packages, f"import {name}", cwd=tmp_path)
    assert f"No module named '{name}'" in error.value.stderr


def test_example_agrees_with_predict(
    fitted: CoftAD,
    onnx_file: Path,
    packages: Path,
    mvtec_root: Path,
    tmp_path: Path,
) -> None:
    images = sorted(map(str, mvtec_root.glob("bolt/test/*/*.png")))
    lines = run(packages, EXAMPLE_AS_MAIN, str(onnx_file), *images, cwd=tmp_path).splitlines()
    found = {line["path"]: line for line in map(json.loads, lines)}
    batches = engine(tmp_path / "predict").predict(
        fitted,
        data_path=mvtec_root / "bolt" / "test",
        return_predictions=True,
    )
    items = [item for batch in batches for item in batch]
    assert len(items) == len(found) == 8
    for item in items:
        line = found[item.image_path]
        assert line["score"] == pytest.approx(float(item.pred_score), abs=1e-4)
        verdict, *p_value = item.explanation.split(", p = ")
        assert line["verdict"] == verdict
        assert line["p_value"] == (pytest.approx(float(p_value[0]), abs=5e-3) if p_value else None)
    wanted = {"good", "review"} | ({"defect"} if len(fitted.model.ranked_score.out_of_fold_scores) > 0 else set())
    assert {line["verdict"] for line in found.values()} <= wanted


def run_example(packages: Path, *arguments: str | Path, cwd: Path) -> subprocess.CompletedProcess:
    """Run the example with the given packages only. Any exit status is accepted."""
    start = f"import sys; sys.path.append({str(packages)!r}); {EXAMPLE_AS_MAIN}"
    command = [sys.executable, "-I", "-S", "-c", start, *map(str, arguments)]
    return subprocess.run(command, check=False, cwd=cwd, capture_output=True, text=True)


@pytest.fixture(scope="module")
def statistic_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return an export with a fixed input size of 64 x 64 pixels and without a calibrated threshold."""
    model = ImageStatistic(image_size=64)
    model.is_fitted.fill_(value=True)
    return model.eval().to_onnx(tmp_path_factory.mktemp("statistic"), input_size=(64, 64))


@pytest.mark.parametrize("fitted", [4], indirect=True)
def test_batches_of_folders_equal_single_images(
    onnx_file: Path,
    packages: Path,
    mvtec_root: Path,
    tmp_path: Path,
) -> None:
    """Sizes alternate, so a batch must end where the size changes; and the results keep the order of the files."""
    folder = tmp_path / "new"
    shutil.copytree(mvtec_root / "bolt" / "test", folder)
    Image.new("RGB", (90, 70), "red").save(folder / "good" / "000_other_size.JPG")
    (folder / "notes.txt").write_text("no image", encoding="utf-8")
    (folder / "good" / "._000.png").write_bytes(b"system file")
    single = run_example(packages, onnx_file, "new", cwd=tmp_path)
    batched = run_example(packages, onnx_file, "new", "new/good", "--batch", "3", "--csv", "table.csv", cwd=tmp_path)
    assert single.returncode == batched.returncode == 0, single.stderr + batched.stderr
    expected = [json.loads(line) for line in single.stdout.splitlines()]
    found = [json.loads(line) for line in batched.stdout.splitlines()]
    images = sorted(Path("new") / path.relative_to(folder) for path in folder.rglob("[!.]*.[pJ]*"))
    assert [Path(line["path"]) for line in found] == [Path(line["path"]) for line in expected] == images
    assert len(found) == 9
    for line, other in zip(found, expected, strict=True):
        assert line["score"] == pytest.approx(other["score"], abs=1e-4)
        assert line["verdict"] == other["verdict"]
    with (tmp_path / "table.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [(row["path"], row["verdict"]) for row in rows] == [(line["path"], line["verdict"]) for line in found]
    assert not list(tmp_path.rglob("*.png.png"))  # heat maps are optional


@pytest.mark.parametrize("fitted", [4], indirect=True)
def test_heat_maps_of_equal_names_do_not_overwrite_each_other(
    onnx_file: Path,
    packages: Path,
    tmp_path: Path,
) -> None:
    for name, size in (("a/1.png", (80, 60)), ("b/1.png", (70, 50)), ("b/1.jpg", (60, 40))):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.new("RGB", size).save(tmp_path / name)
    for _ in range(2):  # the second time, the heat maps are in a scored folder
        run = run_example(packages, onnx_file, ".", "--heat_maps", "heat", cwd=tmp_path)
        assert len(run.stdout.splitlines()) == 3, run.stderr
    sizes = {str(path.relative_to(tmp_path / "heat")): Image.open(path).size for path in tmp_path.glob("heat/*/*")}
    assert sizes == {"a/1.png.png": (80, 60), "b/1.png.png": (70, 50), "b/1.jpg.png": (60, 40)}


def test_unreadable_images_are_reported_and_the_rest_is_scored(
    statistic_file: Path,
    packages: Path,
    tmp_path: Path,
) -> None:
    Image.new("RGB", (64, 64)).save(tmp_path / "1.png")
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "2.png")
    (tmp_path / "2.png").write_bytes((tmp_path / "2.png").read_bytes()[:5000])
    (tmp_path / "3.png").write_text("text", encoding="utf-8")
    Image.new("I;16", (64, 64)).save(tmp_path / "4.png")
    Image.new("RGB", (48, 64)).save(tmp_path / "5.png")
    Image.new("RGB", (64, 64), "white").save(tmp_path / "6.png")
    run = run_example(packages, statistic_file, tmp_path, "missing.png", "--batch", "9", cwd=tmp_path)
    assert run.returncode == 1
    assert [Path(json.loads(line)["path"]).name for line in run.stdout.splitlines()] == ["1.png", "6.png"]
    errors = run.stderr.splitlines()
    assert [error.split("/")[-1].split()[-1] for error in errors] == [*(f"{i}.png" for i in range(2, 6)), "missing.png"]
    assert "8 bits" in errors[2]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("none/model.onnx", "1.png"), "does not exist"),
        (("alone.onnx", "1.png"), "metadata.json"),
        (("broken/model.onnx", "1.png"), "cannot load the model"),
        (("model.onnx", "empty"), "contains no images: empty"),
        (("text/model.onnx", "1.png"), "not the metadata of an export"),
        (("list/model.onnx", "1.png"), "not the metadata of an export"),
        (("other_graph/model.onnx", "1.png"), "has no input `input`"),
        (
            ("model.onnx", "1.png", "--csv", "missing/scores.csv"),
            "cannot be written: No such file or directory: missing",
        ),
        (("model.onnx", "1.png", "--csv", "empty"), "cannot be written: Is a directory: empty"),
        (("model.onnx", "1.png", "--heat_maps", "1.png"), "cannot be written: File exists: 1.png"),
    ],
)
def test_wrong_arguments_are_explained_in_one_line(
    statistic_file: Path,
    packages: Path,
    tmp_path: Path,
    arguments: tuple[str, ...],
    message: str,
) -> None:
    for folder in ("empty", "broken", "other"):
        (tmp_path / folder).mkdir()
    for folder in (".", "text", "list", "other_graph"):
        shutil.copytree(statistic_file.parent, tmp_path / folder, dirs_exist_ok=True)
    (tmp_path / "text" / "metadata.json").write_text("no JSON", encoding="utf-8")
    (tmp_path / "list" / "metadata.json").write_text("[1]", encoding="utf-8")
    graph = onnx.load(tmp_path / "other_graph" / "model.onnx")
    onnx.save(rename_input(graph), tmp_path / "other_graph" / "model.onnx")
    Image.new("RGB", (64, 64)).save(tmp_path / "1.png")
    shutil.copy(tmp_path / "metadata.json", tmp_path / "broken")
    (tmp_path / "broken" / "model.onnx").write_bytes(b"no graph")
    if arguments[0] == "alone.onnx":
        shutil.move(tmp_path / "model.onnx", tmp_path / "other" / "model.onnx")
        arguments = ("other/model.onnx", arguments[1])
    run = run_example(packages, *arguments, cwd=tmp_path)
    assert run.returncode == 1
    (line,) = run.stderr.splitlines()
    assert message in line


def rename_input(graph: onnx.ModelProto) -> onnx.ModelProto:
    """Rename the input `input` to `x`."""
    graph.graph.input[0].name = "x"
    for node in graph.graph.node:
        for index, name in enumerate(node.input):
            if name == "input":
                node.input[index] = "x"
    return graph


@pytest.mark.parametrize("fitted", [4], indirect=True)
def test_odd_files_are_scored_or_reported_in_one_line(onnx_file: Path, packages: Path, tmp_path: Path) -> None:
    folder = tmp_path / "new"
    (folder / "sub" / "folder.png").mkdir(parents=True)
    for mode, suffix in (("RGBA", "png"), ("LA", "png"), ("P", "png"), ("1", "png"), ("CMYK", "jpg"), ("L", "tiff")):
        Image.new(mode, (60, 50)).save(folder / f"{mode}.{suffix}")
    Image.new("RGB", (1, 1)).save(folder / "sub" / "größe 画像.png")
    undecodable = Path(os.fsdecode(os.fsencode(folder) + b"/\xff.png"))
    try:
        Image.new("RGB", (60, 50)).save(undecodable)
    except OSError:  # the file system requires valid Unicode
        undecodable = folder / "RGBA.png"
    Image.new("1", (13_400, 13_400)).save(folder / "huge.png")  # more than 179 megapixels
    Image.new("F", (60, 50)).save(folder / "float.tiff")
    (folder / "empty.png").write_bytes(b"")
    (folder / "cut.png").write_bytes((folder / "RGBA.png").read_bytes()[:40])
    run = run_example(packages, onnx_file, folder, "--batch", "4", "--csv", "scores.csv", cwd=tmp_path)
    assert run.returncode == 1
    reported = [Path(line.rpartition(" ")[2]).name for line in run.stderr.splitlines()]
    assert sorted(reported) == ["cut.png", "empty.png", "float.tiff", "huge.png"], run.stderr
    scored = {Path(json.loads(line)["path"]).name for line in run.stdout.splitlines()}
    files = {path.name for path in folder.rglob("*.*") if path.is_file()}
    assert scored == files - set(reported)
    assert undecodable.name in scored
    with (tmp_path / "scores.csv").open(encoding="utf-8") as file:
        assert len(list(csv.DictReader(file))) == len(scored)


@pytest.fixture(scope="module")
def verdict_file(fitted: CoftAD, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return an export with the output `verdict`."""
    return fitted.eval().to_onnx(tmp_path_factory.mktemp("verdict"), verdict=True)


def test_each_field_of_the_metadata_is_documented(onnx_file: Path) -> None:
    reference = (DOCS / "export_metadata.md").read_text(encoding="utf-8")
    metadata = json.loads(onnx_file.with_name("metadata.json").read_text(encoding="utf-8"))
    for field in [*metadata, *metadata["preprocess"], *metadata["postprocess"]]:
        if field not in {"preprocess", "postprocess"}:
            assert re.search(rf"^\|.*\b{field}`.* \|", reference, flags=re.MULTILINE), field


def test_verdict_output_agrees_with_predict(fitted: CoftAD, verdict_file: Path, mvtec_root: Path) -> None:
    model = Model(verdict_file)
    assert model.outputs == ["pred_score", "pred_label", "anomaly_map", "pred_mask", "verdict"]
    seen = set()
    for path in mvtec_root.glob("bolt/test/*/*.png"):
        image = read_image(path)[None]
        verdict = model.session.run(["verdict"], {"input": image})[0]
        assert verdict.dtype == np.int64
        assert verdict.shape == (1,)
        with torch.no_grad():
            score = fitted(torch.from_numpy(image)).pred_score
        assert [VERDICTS[verdict.item()]] == fitted.post_processor.verdicts(score)
        assert model.score(image)[0].verdict == VERDICTS[verdict.item()]
        seen.add(verdict.item())
    assert len(seen) > 1


def test_verdict_output_of_openvino_in_cpp(verdict_file: Path, mvtec_root: Path, tmp_path: Path) -> None:
    """Build the C++ example with the OpenVINO of the Python package."""
    openvino_utils = pytest.importorskip("openvino.utils")
    cmake = shutil.which("cmake")
    if cmake is None or shutil.which("c++") is None:
        pytest.skip("needs CMake and a C++ compiler")
    source = ["-S", EXAMPLE.parent / "cpp", f"-DOpenVINO_DIR={openvino_utils.get_cmake_path()}"]
    subprocess.run([cmake, "-B", tmp_path / "build", *source], check=True, capture_output=True)
    subprocess.run([cmake, "--build", tmp_path / "build"], check=True, capture_output=True)
    expected = []
    for index, path in enumerate(sorted(mvtec_root.glob("bolt/test/*/*.png"))):
        Image.open(path).convert("RGB").save(tmp_path / f"{index}.ppm")
        expected.append(Model(verdict_file).score(read_image(path)[None])[0])
    command = [tmp_path / "build" / "score_image", verdict_file, *sorted(tmp_path.glob("*.ppm"))]
    lines = subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()
    assert len(lines) == len(expected)
    for line, result in zip(lines, expected, strict=True):
        _, score, verdict = line.split("\t")
        assert float(score) == pytest.approx(result.score, abs=1e-3)
        assert verdict == result.verdict


def test_heat_map_is_red_above_the_threshold() -> None:
    heat_map = runpy.run_path(str(EXAMPLE))["heat_map"]
    anomaly_map = np.full((4, 4), 0.4)
    anomaly_map[:, 3] = 1.0
    image = np.full((3, 8, 16), 0.5, dtype=np.float32)
    shown = np.asarray(heat_map(image, anomaly_map))
    assert shown.shape == (8, 16, 3)
    assert (shown[:, 0] == 63).all()  # half as bright, without red
    assert (shown[:, -1, 0] == 191).all()
    assert (shown[:, -1, 1:] == 63).all()


@pytest.mark.parametrize(
    ("settings", "score", "expected"),
    [
        ({}, 0.2, ("defect", None)),  # the model's label, of validation images
        ({"scheme": "self-views", "defect_score": None}, 0.9, ("review", None)),
        ({"scheme": "training"}, 0.9, ("defect", None)),
        ({"scheme": "jackknife+"}, 0.5, ("review", 2 / 3)),  # not above the threshold
        ({"scheme": "jackknife+"}, 0.9, ("defect", 1 / 3)),
        ({"scheme": "jackknife+"}, 0.1, ("good", 1.0)),
        ({"scheme": "jackknife+"}, float("nan"), ("unknown", None)),
    ],
)
def test_verdict(settings: dict[str, Any], score: float, expected: tuple[str, float | None]) -> None:
    p_values = [{"score_up_to": 0.3, "p": 1.0}, {"score_up_to": 0.5, "p": 2 / 3}]
    values = {"review_score": 0.3, "defect_score": 0.5, "num_normal": 2, "p_values": p_values}
    example = runpy.run_path(str(EXAMPLE))
    used = values | settings if settings else {}
    assert (example["verdict_of"](score, label=True, settings=used), example["p_value_of"](score, used)) == expected


def test_fixed_input_size_is_explained(statistic_file: Path, packages: Path, tmp_path: Path) -> None:
    Image.new("RGB", (80, 48)).save(tmp_path / "wrong.png")
    (line,) = run_example(packages, statistic_file, "wrong.png", cwd=tmp_path).stderr.splitlines()
    for part in ("wrong.png", "80 x 48", "64 x 64", "--input_size"):
        assert part in line


def test_example_reads_photographs_upright(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    Image.new("RGB", (80, 48)).save(tmp_path / "photo.jpg", exif=exif)
    assert runpy.run_path(str(EXAMPLE))["read_image"](tmp_path / "photo.jpg").shape == (3, 80, 48)


@pytest.mark.parametrize("fitted", [4], indirect=True)
def test_two_processes_agree(onnx_file: Path, packages: Path, mvtec_root: Path, tmp_path: Path) -> None:
    images = sorted(map(str, mvtec_root.glob("bolt/test/*/*.png")))
    with ThreadPoolExecutor(2) as pool:
        command = partial(run, packages, EXAMPLE_AS_MAIN, str(onnx_file), *images, cwd=tmp_path)
        one, two = (one_run.result() for one_run in [pool.submit(command) for _ in range(2)])
    assert one == two


def test_batch_of_32_agrees_with_single_images(fitted: CoftAD) -> None:
    images = torch.rand(32, 3, 80, 96, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        together = fitted.eval()(images)
        alone = [fitted(image[None]) for image in images]
    for name in ("pred_score", "anomaly_map"):
        parts = torch.cat([getattr(found, name) for found in alone])
        torch.testing.assert_close(getattr(together, name).view_as(parts), parts, rtol=0, atol=1e-4)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("runtime", ["torch", "onnx"])
def test_memory_is_constant_over_10000_images(fitted: CoftAD, onnx_file: Path, runtime: str) -> None:
    rng = np.random.default_rng(0)
    images = [rng.random((1, 3, *size), dtype=np.float32) for size in ((64, 64), (96, 80), (51, 117), (240, 320))]
    if runtime == "torch":
        infer = torch.no_grad()(lambda image: fitted.eval()(torch.from_numpy(image)))
    else:
        session = onnxruntime.InferenceSession(onnx_file)
        infer = partial(_run_session, session)
    used = []
    for index in range(10_001):
        if index in {0, 1_000, 5_000, 10_000}:
            used.append(_resident_mib())
        infer(images[index % len(images)])
    print(f"{runtime}: MiB after 0, 1000, 5000 and 10000 images: {used}")
    assert used[-1] - used[1] < 10


def _run_session(session: onnxruntime.InferenceSession, image: np.ndarray) -> None:
    session.run(None, {"input": image})


def _resident_mib() -> int:
    return int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1]) * resource.getpagesize() // 2**20
