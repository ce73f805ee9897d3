# Copyright (C) 2026 anomalib-fewshot contributors
# SPDX-License-Identifier: Apache-2.0

"""The report in a real browser."""

import json
import re
import shutil
import subprocess
from pathlib import Path

import pandas as pd
import pytest
from report_sweep import add_files, report, sweep


@pytest.fixture(scope="module")
def full(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a sweep of two datasets, with everything, and its report."""
    folder = tmp_path_factory.mktemp("full")
    parts = [sweep(failures=3), sweep(dataset="Parts", categories=("nut", "bolt"), masked=(), shots=(1, 4))]
    report(folder, pd.concat([add_files(folder, part) for part in parts]))
    return folder


BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
FLAGS = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"]
FLAGS += ["--disable-background-networking", "--disable-component-update", "--hide-scrollbars"]
FLAGS += ["--host-resolver-rules=MAP * ~NOTFOUND", "--window-size=1400,1000"]
PROBE = """<script>parent.postMessage(JSON.stringify({
  width: innerWidth, page: document.documentElement.scrollWidth,
  background: getComputedStyle(document.body).backgroundColor,
  text: getComputedStyle(document.querySelector("figure svg text")).fill,
  images: [...document.images].every(image => image.complete && image.naturalWidth > 0)
}), "*")</script>"""
FRAME = """<!DOCTYPE html><meta name="color-scheme" content="light dark">
<script>onmessage = event => document.title = event.data</script>
<iframe src="probe.html" width="{}" height="900" frameborder="0">"""


def browse(folder: Path, page: Path, *flags: str) -> subprocess.CompletedProcess:
    if BROWSER is None:
        pytest.skip("no Chromium or Chrome on the PATH")
    command = [BROWSER, *FLAGS, f"--user-data-dir={folder / 'profile'}", *flags, page.as_uri()]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)


def probe(folder: Path, full: Path, *flags: str, width: int = 1280) -> dict:
    """Return what a script finds in a copy of the page, in a frame since a window cannot be as narrow as a phone."""
    html = (full / "report.html").read_text(encoding="utf-8")
    html = html.replace("default-src 'none'", "default-src 'none'; script-src 'unsafe-inline'")  # allows the probe
    (folder / "probe.html").write_text(html + PROBE, encoding="utf-8")
    frame = folder / "frame.html"
    frame.write_text(FRAME.format(width), encoding="utf-8")
    dom = browse(folder, frame, "--dump-dom", *flags).stdout
    return json.loads(re.search(r"<title>(.*?)</title>", dom).group(1))


def requests(folder: Path, page: Path, *flags: str) -> tuple[str, list[str]]:
    """Return what the browser says of a page, and the page's requests; the browser's own have no initiator."""
    log = folder / "net.json"
    done = browse(folder, page, f"--log-net-log={log}", "--enable-logging=stderr", *flags)
    return done.stderr, re.findall(r'"initiator":"(?:null|file)[^{}]*?\{', log.read_text(encoding="utf-8"))


@pytest.mark.parametrize("width", [390, 1280])
def test_page_is_not_wider_than_the_window(tmp_path: Path, full: Path, width: int) -> None:
    found = probe(tmp_path, full, width=width)
    assert found["width"] == width
    assert found["page"] <= width
    assert found["images"]


def test_dark_and_light(tmp_path: Path, full: Path) -> None:
    dark = probe(tmp_path, full, "--blink-settings=preferredColorScheme=0")
    light = probe(tmp_path, full, "--blink-settings=preferredColorScheme=1")
    assert light["background"] == "rgb(255, 255, 255)"
    assert dark["background"] == "rgb(20, 24, 28)"
    assert light["text"] != dark["text"]


def test_page_needs_no_network_and_prints(tmp_path: Path, full: Path) -> None:
    pdf = tmp_path / "report.pdf"
    said, requested = requests(tmp_path, full / "report.html", f"--print-to-pdf={pdf}")
    assert pdf.read_bytes().startswith(b"%PDF")
    assert pdf.stat().st_size > 50_000
    assert "CONSOLE" not in said
    assert not requested


def test_a_request_would_be_seen(tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    page.write_text('<img src="http://example.invalid/"><script>console.error("seen")</script>', encoding="utf-8")
    said, requested = requests(tmp_path, page, "--dump-dom")
    assert "CONSOLE" in said
    assert requested
