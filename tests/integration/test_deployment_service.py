# Copyright (C) 2026 anomalib-fewshot contributors
# SPDX-License-Identifier: Apache-2.0

"""The example service returns the scores of `score_images.py`, and clear errors."""

import io
import json
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from score_images import Model, read_image

from anomalib_fewshot import ImageStatistic

EXAMPLES = Path(__file__).parents[2] / "docs" / "examples"
MAX_BYTES = 50_000


@pytest.fixture(scope="module")
def onnx_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    model = ImageStatistic(image_size=64)
    model.is_fitted.fill_(value=True)
    return model.eval().to_onnx(tmp_path_factory.mktemp("onnx"))


@pytest.fixture(scope="module")
def port(onnx_file: Path) -> Iterator[int]:
    """Start the service as a user does, on a free port."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        free = probe.getsockname()[1]
    command = [sys.executable, "service.py", str(onnx_file), "--port", str(free), "--max_bytes", str(MAX_BYTES)]
    process = subprocess.Popen(command, cwd=EXAMPLES)
    try:
        wait_until_healthy(free, process)
        yield free
    finally:
        process.terminate()
        process.wait(20)


def wait_until_healthy(port: int, process: subprocess.Popen) -> None:
    for _ in range(300):
        assert process.poll() is None, "the service ended"
        try:
            request(port, "GET", "/health")
        except ConnectionRefusedError:
            time.sleep(0.1)
        else:
            return
    pytest.fail("The service does not answer.")


def request(
    port: int,
    method: str,
    path: str,
    body: bytes | None = None,
    headers: dict[str, str] | None = None,
) -> tuple[int, dict[str, Any]]:
    connection = HTTPConnection("127.0.0.1", port, timeout=30)
    connection.request(method, path, body, headers or {})
    response = connection.getresponse()
    content = json.loads(response.read())
    connection.close()
    return response.status, content


def png(seed: int, size: tuple[int, int] = (50, 40), mode: str = "RGB") -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    file = io.BytesIO()
    image = Image.fromarray(pixels) if mode == "RGB" else Image.new(mode, size)
    image.save(file, "png")
    return file.getvalue()


def test_scores_equal_those_of_the_script(port: int, onnx_file: Path) -> None:
    model = Model(onnx_file)
    bodies = [png(seed, (50 + seed, 40)) for seed in range(8)]
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda body: request(port, "POST", "/inspect", body), bodies))
    sha256 = json.loads(onnx_file.with_name("metadata.json").read_text())["state_sha256"]
    for body, (status, answer) in zip(bodies, answers, strict=True):
        expected = model.score(read_image(io.BytesIO(body))[None])[0]
        assert status == 200
        assert answer.pop("milliseconds") > 0
        assert answer == {
            "score": pytest.approx(expected.score, abs=1e-6),
            "verdict": expected.verdict,
            "p_value": expected.p_value,
            "model": sha256,
        }
    assert request(port, "GET", "/health") == (200, {"status": "ok", "name": "ImageStatistic", "model": sha256})


@pytest.mark.parametrize(
    ("body", "status", "message"),
    [
        (b"", 400, "empty"),
        (b"no image", 400, "format is not known"),
        (png(0)[:3000], 400, "truncated"),
        (png(0, mode="I;16"), 400, "8 bits"),
        (bytes(MAX_BYTES + 1), 413, str(MAX_BYTES)),
    ],
)
def test_unusable_image_is_explained(port: int, body: bytes, status: int, message: str) -> None:
    found, answer = request(port, "POST", "/inspect", body)
    assert found == status
    assert message in answer["error"]
    assert request(port, "POST", "/inspect", png(0))[0] == 200  # the service still answers


def test_other_requests_are_refused(port: int) -> None:
    assert request(port, "GET", "/inspect")[0] == 405
    assert request(port, "GET", "/other")[0] == 404
    form = {"Content-Type": "multipart/form-data; boundary=x"}
    status, answer = request(port, "POST", "/inspect", b"--x--", form)
    assert status == 415
    assert "--data-binary" in answer["error"]


def test_wrong_model_is_explained_in_one_line(onnx_file: Path, tmp_path: Path) -> None:
    for name, content in (("model.onnx", onnx_file.read_bytes()), ("metadata.json", b"{}")):
        (tmp_path / name).write_bytes(content)
    command = [sys.executable, "service.py", str(tmp_path / "model.onnx")]
    run = subprocess.run(command, check=False, cwd=EXAMPLES, capture_output=True, text=True)
    assert run.returncode == 1
    (line,) = run.stderr.splitlines()
    assert line.startswith("The file is not the metadata of an export")


def test_truncated_headers_are_explained(port: int) -> None:
    """Pillow has an error class for each format."""
    for image_format in ("bmp", "jpeg", "png", "tiff", "webp"):
        file = io.BytesIO()
        Image.new("RGB", (50, 40)).save(file, image_format)
        for size in (6, 12, 20, 30):
            status, answer = request(port, "POST", "/inspect", file.getvalue()[:size])
            assert status == 400, (image_format, size)
            assert answer["error"].startswith("The image cannot be read: ")
