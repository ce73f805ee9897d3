# Copyright (C) 2026 anomalib-fewshot contributors
# SPDX-License-Identifier: Apache-2.0

"""The example for the browser returns the scores and verdicts of `score_images.py`. Downloads onnxruntime-web."""

import shutil
import subprocess
import tarfile
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
from anomalib.engine import Engine
from PIL import Image
from score_images import Model, read_image
from small_models import SMALL

from anomalib_fewshot import CoftAD, FewShot, MVTecFolder

PAGE = Path(__file__).parents[2] / "docs" / "examples" / "browser.html"
PACKAGE = "onnxruntime-web@1.30"
PACKAGE_FILES = ("ort.wasm.min.mjs", "ort-wasm-simd-threaded.mjs", "ort-wasm-simd-threaded.wasm")
BROWSER, DRIVER = (
    next(filter(None, map(shutil.which, names)), None)
    for names in (("chromium", "chromium-browser", "google-chrome"), ("chromedriver",))
)
FLAGS = ["--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"]
FLAGS += ["--disable-component-update", "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1"]
READ_ROWS = "return [...document.querySelectorAll('#results tr')].map(row => [...row.cells].map(c => c.innerText))"

pytestmark = pytest.mark.slow


class QuietHandler(SimpleHTTPRequestHandler):
    """Serves files and logs nothing."""

    def log_message(self, *_: object) -> None:
        """Do nothing."""


@pytest.fixture(scope="module")
def web_files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with the files of onnxruntime-web that the page lists."""
    npm = shutil.which("npm")
    if npm is None:
        pytest.skip("needs npm")
    folder = tmp_path_factory.mktemp("npm")
    try:
        command = [npm, "pack", "--silent", PACKAGE]
        subprocess.run(command, check=True, cwd=folder, capture_output=True, timeout=300)
    except (subprocess.CalledProcessError, subprocess.TimeoutExpired) as error:
        pytest.skip(f"npm cannot download {PACKAGE}: {type(error).__name__}")
    (archive,) = folder.glob("*.tgz")
    with tarfile.open(archive) as files:
        for name in PACKAGE_FILES:
            content = files.extractfile(f"package/dist/{name}")
            assert content is not None
            (folder / name).write_bytes(content.read())
    archive.unlink()
    return folder


@pytest.fixture(scope="module")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    webdriver = pytest.importorskip("selenium.webdriver", reason="needs selenium")
    if BROWSER is None or DRIVER is None:
        pytest.skip("no Chromium or Chrome with its driver on the PATH")
    options = webdriver.ChromeOptions()
    options.binary_location = BROWSER
    for flag in [*FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('profile')}"]:
        options.add_argument(flag)
    driver = webdriver.Chrome(options, webdriver.ChromeService(DRIVER))
    yield driver
    driver.quit()


@pytest.fixture(scope="module")
def fitted(mvtec_root: Path, tmp_path_factory: pytest.TempPathFactory) -> CoftAD:
    model = CoftAD(**SMALL["CoftAD"], visualizer=False)
    folder = tmp_path_factory.mktemp("fit")
    engine = Engine(default_root_dir=folder, logger=False, enable_progress_bar=False, accelerator="cpu", devices=1)
    engine.fit(model, datamodule=FewShot(MVTecFolder(mvtec_root, "bolt", num_workers=0), k_shot=4))
    return model.eval()


@pytest.fixture
def site(web_files: Path, tmp_path: Path) -> Iterator[tuple[Path, str]]:
    """Return a folder with the page and onnxruntime-web, and its address."""
    folder = tmp_path / "site"
    shutil.copytree(web_files, folder)
    shutil.copy(PAGE, folder)
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(QuietHandler, directory=folder))
    thread = Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield folder, f"http://127.0.0.1:{server.server_port}/browser.html"
    server.shutdown()
    server.server_close()
    thread.join(10)


def wait_for_status(driver: Any, text: str) -> None:  # noqa: ANN401
    from selenium.webdriver.support.ui import WebDriverWait

    def has_text(_: object) -> bool:
        return text in driver.find_element("id", "status").text

    WebDriverWait(driver, 60, 0.05).until(has_text, f"The status is not {text!r}.")


def test_scores_equal_those_of_the_script(
    driver: Any,  # noqa: ANN401
    fitted: CoftAD,
    site: tuple[Path, str],
    mvtec_root: Path,
    tmp_path: Path,
) -> None:
    folder, address = site
    onnx_file = fitted.to_onnx(tmp_path / "export", verdict=True)
    shutil.copy(onnx_file, folder)
    images = []
    for index, kind in enumerate(("good/000", "good/001", "hole/000", "hole/001")):
        image = Image.open(mvtec_root / "bolt" / "test" / f"{kind}.png")
        images.append(tmp_path / f"{index}.png")
        image.resize((64 + 30 * index, 64)).save(images[-1])  # each image has another size
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"no image")
    driver.get(address)
    wait_for_status(driver, "Ready.")
    driver.find_element("id", "files").send_keys("\n".join(map(str, [*images, broken])))
    rows_script = (
        "return [...document.querySelectorAll('#results tr')].map(row => [...row.cells].map(c => c.innerText))"
    )
    from selenium.webdriver.support.ui import WebDriverWait

    WebDriverWait(driver, 60, 0.05).until(lambda _: len(driver.execute_script(rows_script)) == 5)
    *rows, last = driver.execute_script(rows_script)
    model = Model(onnx_file)
    for image, (name, score, verdict) in zip(images, rows, strict=True):
        expected = model.score(read_image(image)[None])[0]
        assert name == image.name
        assert float(score) == pytest.approx(expected.score, abs=2e-4)
        assert verdict == expected.verdict
    assert len({row[2] for row in rows}) > 1
    assert last[0] == "broken.png"
    assert last[2].startswith("not scored")


def test_missing_output_is_explained(
    driver: Any,  # noqa: ANN401
    fitted: CoftAD,
    site: tuple[Path, str],
    tmp_path: Path,
) -> None:
    folder, address = site
    driver.get(address)
    wait_for_status(driver, "The model cannot be loaded")  # there is no model.onnx
    shutil.copy(fitted.to_onnx(tmp_path / "export"), folder)
    driver.get(address)
    wait_for_status(driver, "--onnx_kwargs.verdict true")
