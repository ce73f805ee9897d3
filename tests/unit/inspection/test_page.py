# Copyright (C) 2026 anomalib-fewshot contributors
# SPDX-License-Identifier: Apache-2.0

"""The page in a browser: layout, thresholds, marks and the copied command."""

import json
import re
import shlex
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from anomalib_fewshot import inspect
from anomalib_fewshot.inspection import inline
from anomalib_fewshot.inspection.page import _guarantee, write_page
from anomalib_fewshot.inspection.run_folder import Entry, RunFolder
from anomalib_fewshot.inspection.training import load
from anomalib_fewshot.post_processing import CalibrationScheme

BROWSER, DRIVER = (
    next(filter(None, map(shutil.which, names)), None)
    for names in (("chromium", "chromium-browser", "google-chrome"), ("chromedriver",))
)
FLAGS = ["--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"]
FLAGS += ["--hide-scrollbars", "--disable-component-update", "--host-resolver-rules=MAP * ~NOTFOUND"]


class Page:
    """Page in a browser."""

    def __init__(self, driver: Any, path: Path) -> None:  # noqa: ANN401  selenium is not always there
        self.driver = driver
        self.path = path

    def open(self, path: Path | None = None, width: int = 1280, scheme: str = "light") -> "Page":
        """Load the page or another file."""
        size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
        self.driver.get((path or self.path).as_uri())
        return self

    def js(self, script: str, *arguments: object) -> Any:  # noqa: ANN401
        """Run a script."""
        return self.driver.execute_script(script, *arguments)

    def one(self, selector: str) -> Any:  # noqa: ANN401
        """Return the first matching element."""
        return self.driver.find_element("css selector", selector)

    def text(self, selector: str) -> str:
        """Return the text of an element."""
        return self.js("return document.querySelector(arguments[0]).innerText", selector)

    def paths(self) -> list[str]:
        """Return the paths of the tiles in order."""
        return self.js("return [...document.querySelectorAll('.tile')].map(tile => tile.dataset.path)")

    def verdicts(self) -> list[str]:
        """Return the verdicts of the tiles."""
        return self.js("return [...document.querySelectorAll('.tile')].map(tile => tile.classList[1])")

    def press(self, selector: str, keys: str) -> None:
        """Send keys to an element."""
        self.js("document.querySelector(arguments[0]).focus()", selector)
        self.driver.switch_to.active_element.send_keys(keys)


@pytest.fixture(scope="module")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    webdriver = pytest.importorskip("selenium.webdriver")
    if BROWSER is None or DRIVER is None:
        pytest.skip("no Chromium or Chrome with its driver on the PATH")
    options = webdriver.ChromeOptions()
    options.binary_location = BROWSER
    for flag in [*FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('profile')}"]:
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options, webdriver.ChromeService(DRIVER))
    yield driver
    driver.quit()


@pytest.fixture
def page(driver: Any, trained: Path) -> Iterator[Page]:  # noqa: ANN401
    page = Page(driver, trained / "index.html").open()
    page.js("localStorage.clear()")
    driver.refresh()
    yield page
    assert driver.get_log("browser") == []  # neither errors nor blocked requests


@pytest.mark.parametrize(("width", "columns"), [(390, 2), (1280, 4)])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_looks(page: Page, width: int, columns: int, scheme: str, tmp_path: Path) -> None:
    page.open(width=width, scheme=scheme)
    assert page.js("return document.documentElement.scrollWidth") <= width
    lefts = page.js("return [...document.querySelectorAll('.tile')].map(tile => tile.getBoundingClientRect().left)")
    assert len(set(lefts)) == columns
    page.js("document.querySelectorAll('img').forEach(image => { image.loading = 'eager'; })")
    loaded = "return [...document.querySelectorAll('.tile img')].every(image => image.complete && image.naturalWidth)"
    assert page.driver.execute_async_script(f"setTimeout(() => arguments[0]((() => {{ {loaded} }})()), 300)")
    page.driver.save_screenshot(str(tmp_path / "page.png"))
    with Image.open(tmp_path / "page.png") as image:
        assert image.width == width
        assert (image.convert("L").getpixel((2, 2)) > 128) is (scheme == "light")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_contrast_of_text(page: Page, scheme: str) -> None:
    """WCAG AA requires a contrast of 4.5 between text and background."""
    page.open(scheme=scheme)
    page.one(".mark-good").click()
    page.one(".tile:last-child .mark-bad").click()
    pairs = page.js("""
      const behind = element => {
        for (; element; element = element.parentElement) {
          const color = getComputedStyle(element).backgroundColor;
          if (!color.endsWith(", 0)")) return color;
        }
        return "rgb(255, 255, 255)";
      };
      return [...document.querySelectorAll("main *")].filter(element => element.offsetParent &&
        [...element.childNodes].some(node => node.nodeType === 3 && node.data.trim()) && !element.closest("svg"))
        .map(element => [element.innerText, getComputedStyle(element).color, behind(element)]);""")
    assert len(pairs) > 30
    for text, *colors in pairs:
        one, other = sorted(luminance(color) for color in colors)
        assert (other + 0.05) / (one + 0.05) >= 4.5, (text, colors)


def luminance(color: str) -> float:
    parts = [int(part) / 255 for part in re.findall(r"\d+", color)[:3]]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def test_all_controls_have_a_name(page: Page) -> None:
    tree = page.driver.execute_cdp_cmd("Accessibility.getFullAXTree", {})["nodes"]
    controls = [
        node for node in tree if node.get("role", {}).get("value") in {"button", "slider", "combobox", "checkbox"}
    ]
    assert len(controls) > 15
    assert all(node["name"]["value"].strip() for node in controls)
    assert page.js("return new Set([...document.querySelectorAll('[id]')].map(e => e.id)).size") == page.js(
        "return document.querySelectorAll('[id]').length",
    )


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_accessibility_rules(page: Page, scheme: str) -> None:
    """axe-core finds no violation on the page or the enlarged picture."""
    axe = pytest.importorskip("axe_selenium_python").Axe(page.driver)
    page.open(scheme=scheme)
    page.one(".mark-good").click()
    for opened in (False, True):
        if opened:
            page.one(".open").click()
        axe.inject()
        found = {rule["id"]: [node["html"] for node in rule["nodes"]] for rule in axe.run()["violations"]}
        if opened:
            found.pop("region", None)  # of an axe that does not know <dialog>
        assert found == {}


def test_sort_and_filter(page: Page, trained: Path) -> None:
    table = RunFolder(trained).table()
    assert page.paths() == list(table.path)
    assert page.verdicts() == list(table.verdict)
    for value, expected in (("low", list(table.path)[::-1]), ("name", sorted(table.path))):
        page.one(f"#sort option[value={value}]").click()
        assert page.paths() == expected
    page.one("#filters [data-filter=defect]").click()
    assert set(page.verdicts()) == {"defect"}
    assert page.text("#filters [data-filter=defect]") == f"defect {(table.verdict == 'defect').sum()}"


def test_thresholds_are_dragged(page: Page) -> None:
    from selenium.webdriver import ActionChains

    assert "At this threshold, at most 1 in 5 new good pictures is called a defect" in page.text("#guarantees")
    width = page.js("return document.querySelector('#histogram svg').getBoundingClientRect().width")
    ActionChains(page.driver).click_and_hold(page.one(".threshold.defect circle")).move_by_offset(
        int(width / 2) - 14,  # from the score 1 in the middle to the end
        0,
    ).perform()
    assert "defect" not in page.verdicts()  # updated while dragging
    assert "0 defect" in page.text("#summary")
    ActionChains(page.driver).release().perform()
    assert "Moved by hand: 0 of your 4 good pictures exceed it" in page.text("#guarantees")
    page.one("#reset").click()
    assert "Moved by hand" not in page.text("#guarantees")
    assert page.verdicts()[0] == "defect"


def test_lines_by_keys(page: Page) -> None:
    page.press(".threshold.review", "\ue011")  # Home
    assert page.one(".threshold.review").get_attribute("aria-valuenow") == "0.000"
    assert set(page.verdicts()) <= {"review", "defect"}
    assert "4 of your 4 good pictures exceed it" in page.text("#guarantees")
    page.press(".threshold.review", "\ue00f")  # page down
    page.press(".threshold.review", "\ue014\ue014\ue014")  # three times right: the focus stays
    assert page.one(".threshold.review").get_attribute("aria-valuenow") == "0.008"  # 0.0075 of the axis
    page.press(".threshold.review", "\ue010")  # End: the line of defects is moved along
    assert page.one(".threshold.defect").get_attribute("aria-valuenow") == "199.000"
    assert set(page.verdicts()) == {"good"}


def test_lines_by_touch(page: Page) -> None:
    page.open(width=390)
    box = page.js(
        "const b = document.querySelector('.threshold.defect circle').getBoundingClientRect();"
        "return [b.x + 8, b.y + 8]",
    )
    for kind, x in (("touchStart", box[0]), ("touchMove", 380), ("touchEnd", None)):
        points = [] if x is None else [{"x": x, "y": box[1]}]
        page.driver.execute_cdp_cmd("Input.dispatchTouchEvent", {"type": kind, "touchPoints": points})
    assert float(page.one(".threshold.defect").get_attribute("aria-valuenow")) > 0.9


def test_heat_maps(page: Page) -> None:
    def opacity() -> str:
        return page.js("return getComputedStyle(document.querySelectorAll('.frame .layer')[1]).opacity")

    assert opacity() == "0"
    page.press(".open", "h")
    assert opacity() == "1"
    assert page.one("#heat").is_selected()


def test_enlarged(page: Page) -> None:
    from selenium.webdriver.support.ui import WebDriverWait

    first, second = page.paths()[:2]
    page.press(".open", "\ue007")
    assert page.text("#large-name").startswith(first)
    assert page.js("return document.querySelector('#large-heat').style.opacity") == "0.6"
    page.js("const o = document.querySelector('#opacity'); o.value = 20; o.dispatchEvent(new Event('input'))")
    assert page.js("return document.querySelector('#large-heat').style.opacity") == "0.2"
    page.press("#next", "\ue014")
    assert page.text("#large-name").startswith(second)
    page.press("#next", "b")
    page.press("#next", "\ue00c")  # Escape
    assert not page.js("return document.querySelector('#large').open")
    focused = "return document.activeElement.closest('.tile')?.dataset.path"
    WebDriverWait(page.driver, 10).until(lambda _: page.js(focused) == second)  # the close event is asynchronous
    assert page.one(".tile:nth-child(2) .mark-bad").get_attribute("aria-pressed") == "true"


def test_marks_are_stored_and_give_a_command(page: Page, part: Path) -> None:
    from selenium.webdriver import ActionChains
    from selenium.webdriver.support.ui import WebDriverWait

    assert not page.one("#marks").is_displayed()
    path = page.paths()[0]
    page.press(".open", "g")
    page.one(".tile:nth-child(2) .mark-bad").click()
    page.driver.refresh()
    assert page.text("#filters [data-filter=marked]") == "marked 2"
    command = page.one("#command").get_attribute("value")
    words = shlex.split(command)
    assert words[:4] == ["anomalib", "inspect", "--good", str(part / "good")]
    assert words[4:] == [str(part / "new" / path), "--new", str(part / "new")]
    page.one("#copy").click()
    WebDriverWait(page.driver, 10).until(lambda _: page.text("#copied"))  # the clipboard is asynchronous
    assert page.text("#copied").startswith("Copied.")
    page.js("document.body.insertAdjacentHTML('beforeend', '<textarea id=probe></textarea>')")
    page.js("document.querySelector('#probe').focus()")
    ActionChains(page.driver).key_down("\ue009").send_keys("v").key_up("\ue009").perform()
    assert page.one("#probe").get_attribute("value") == command
    page.press(".open", "g")  # the second press removes the mark
    assert page.text("#filters [data-filter=marked]") == "marked 1"


def test_ten_thousand_pictures_are_paged(driver: Any, trained: Path, tmp_path: Path) -> None:  # noqa: ANN401
    run = RunFolder(tmp_path)
    run.write_settings(**RunFolder(trained).settings)
    run.add(Entry(f"{n:05}.png", "good", (n % 997) / 997, 0.5, 96, 64, n, n) for n in range(10_000))
    write_page(run, load(trained).post_processor, [], "")
    assert (tmp_path / "index.html").stat().st_size < 1_000_000
    page = Page(driver, tmp_path / "index.html").open()
    assert len(page.paths()) == 200
    assert page.text("#pages").split("\n")[1] == "Page 1 of 50"
    page.one("#pages button:last-child").click()
    assert "Page 2 of 50" in page.text("#pages")
    seconds = page.js("const t = performance.now(); move('review', .3); return (performance.now() - t) / 1000")
    assert seconds < 2
    driver.get_log("browser")  # missing images


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    """Return a copy of a finished run."""
    return shutil.copytree(trained, tmp_path / "run")


def test_inlined_page_is_one_file(driver: Any, run: Path, tmp_path: Path) -> None:  # noqa: ANN401
    inspect(resume=run, inline=True, progress=False)
    (tmp_path / "mail").mkdir()
    page = Page(driver, Path(shutil.move(run / "index.html", tmp_path / "mail"))).open()
    shutil.rmtree(run)
    page.js("document.querySelectorAll('img').forEach(image => { image.loading = 'eager'; })")
    page.one(".open").click()
    loaded = "return [...document.images].every(image => image.complete && image.naturalWidth > 0)"
    assert page.driver.execute_async_script(f"setTimeout(() => arguments[0]((() => {{ {loaded} }})()), 300)")
    assert page.js("return performance.getEntriesByType('resource').filter(e => !e.name.startsWith('data:'))") == []
    assert driver.get_log("browser") == []


@pytest.mark.parametrize(
    ("share", "parts", "words"),
    [
        (1.01, {"photos", "thumbnails", "heat"}, ""),
        (0.99, {"thumbnails", "heat"}, "with thumbnails only. It contains thumbnails only"),
        (0.1, set(), "no picture is embedded"),
    ],
)
def test_limit_of_an_inlined_page(
    run: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    share: float,
    parts: set[str],
    words: str,
) -> None:
    whole = sum(path.stat().st_size for path in (run / "page").rglob("*.*g")) * 4 / 3e6
    monkeypatch.setattr(inline, "MAX_MEGABYTES", whole * share)
    inspect(resume=run, inline=True)
    said = capsys.readouterr().out
    assert re.search(words, said)
    assert ("The page would take" in said) is bool(words)
    html = (run / "index.html").read_text(encoding="utf-8")
    inlined = json.loads(re.search(r'id="data">(.*?)</script>', html).group(1))["inlined"] or {}
    assert {part for uris in inlined.values() for part in uris} == parts
    assert len(html.encode()) < 1e6 * whole + 60_000


def test_names_cannot_close_the_script(driver: Any, trained: Path, tmp_path: Path) -> None:  # noqa: ANN401
    run, name = RunFolder(tmp_path), "</script><img src=x onerror=alert(1)>.png"
    run.write_settings(**RunFolder(trained).settings)
    run.add([Entry(name, "good", 0.1, None, 96, 64, 1, 1)])
    write_page(run, load(trained).post_processor, [(name, "error", "<b>no</b>")], "<i>")
    page = Page(driver, tmp_path / "index.html").open()
    assert page.paths() == [name]
    assert "<b>no</b>" in page.text(".issues")
    driver.get_log("browser")


def test_page_works_offline(trained: Path) -> None:
    html = (trained / "index.html").read_text(encoding="utf-8")
    assert "default-src 'none'" in html
    assert not re.findall(r"https?://(?!www\.w3\.org/2000/svg)", html)
    data = json.loads(re.search(r'id="data">(.*?)</script>', html).group(1))
    scores = data["calibration_scores"]  # of each held-out picture
    assert scores == sorted(scores)
    assert len(set(scores)) == 4
    assert (data["review"], data["defect"]) == pytest.approx((scores[2], 1))
    assert scores[-1] == pytest.approx(1)


@pytest.mark.parametrize(
    ("scheme", "rank", "count", "words"),
    [
        (CalibrationScheme.JACKKNIFE_PLUS, 1, 4, "at most 1 in 5 new good pictures is"),
        (CalibrationScheme.JACKKNIFE_PLUS, 2, 8, "at most 3 in 9 new good pictures are"),
        (
            CalibrationScheme.JACKKNIFE_PLUS,
            2,
            2,
            "about 2 in 3 new good pictures are called a defect (not guaranteed)",
        ),
        (CalibrationScheme.CV_PLUS, 1, 200, "at most 28 % of new good pictures are"),
        (
            CalibrationScheme.LEAVE_ONE_OUT,
            1,
            4,
            "about 1 in 5 new good pictures are called a defect (not guaranteed)",
        ),
    ],
)
def test_guarantees(scheme: CalibrationScheme, rank: int, count: int, words: str) -> None:
    assert words in _guarantee(scheme, rank, count, "called a defect", num_folds=32)
