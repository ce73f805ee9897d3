# Copyright (C) 2026 anomalib-fewshot contributors
# SPDX-License-Identifier: Apache-2.0

"""Make the picture of the page of `anomalib inspect`, from four good and forty new solar cells.

python docs/images/make_inspect_image.py

It requires the extras `elpv`, `inspect` and `test`, and Chromium with its driver.
"""

import io
import os
import runpy
import shutil
import tempfile
from pathlib import Path

from PIL import Image
from selenium import webdriver

from anomalib_fewshot import inspect

WIDTH, HEIGHT = 1400, 1330
EXAMPLE = Path(__file__).resolve().parents[1] / "examples" / "solar_cells.py"  # writes the pictures


def take_screenshot(page: Path, target: Path) -> None:
    """Save a screenshot of the upper part of a page."""
    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium") or shutil.which("google-chrome") or ""
    for flag in ("--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"):
        options.add_argument(flag)
    driver = webdriver.Chrome(options, webdriver.ChromeService(shutil.which("chromedriver")))
    size = {"width": WIDTH, "height": HEIGHT, "deviceScaleFactor": 1, "mobile": False}
    driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    driver.get(page.as_uri())
    driver.execute_async_script("setTimeout(arguments[0], 1000)")  # until the thumbnails are loaded
    with Image.open(io.BytesIO(driver.get_screenshot_as_png())) as image:
        image.convert("RGB").save(target, quality=85)
    driver.quit()


def main() -> None:
    """Write ``inspect.jpg`` next to this file."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        target = Path(__file__).resolve().with_name("inspect.jpg")
        os.chdir(root)  # the page shows relative paths
        runpy.run_path(str(EXAMPLE))["main"]()
        inspect("good", "new", name="Solar cells")
        take_screenshot(root / "results/inspect/v0/index.html", target)


if __name__ == "__main__":
    main()
