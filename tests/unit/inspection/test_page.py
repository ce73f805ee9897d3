# Copyright (C) 2026 anomalib-fewshot contributors
# SPDX-License-Identifier: Apache-2.0

"""The page in a browser, from a folder and from a server."""

import csv
import json
import re
import shlex
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from page_data import HEIGHT, QUOTED, WIDTH, page_data, serve, write_files
from PIL import Image
from rich.console import Console

from anomalib_fewshot import inspect
from anomalib_fewshot.data.validation.issue import DataIssue
from anomalib_fewshot.inspection import inline
from anomalib_fewshot.inspection.page import _guarantee, write_page
from anomalib_fewshot.inspection.page import page_data as inspection_data
from anomalib_fewshot.inspection.rendering import COLORS
from anomalib_fewshot.inspection.run_folder import Entry, RunFolder
from anomalib_fewshot.inspection.session import Session
from anomalib_fewshot.post_processing import CalibrationScheme

BROWSER, DRIVER = (
    next(filter(None, map(shutil.which, names)), None)
    for names in (("chromium", "chromium-browser", "google-chrome"), ("chromedriver",))
)
FLAGS = ["--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"]
FLAGS += ["--hide-scrollbars", "--disable-component-update"]
FLAGS += ["--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1"]  # the tests need no network
WEB = Path(inline.__file__).parent / "web"


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

    def open_address(self, address: str) -> "Page":
        """Load a page from a server."""
        self.driver.get(address)
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

    def wait_for(self, script: str) -> None:
        """Wait until an expression is true."""
        from selenium.webdriver.support.ui import WebDriverWait

        WebDriverWait(self.driver, 10, 0.05).until(lambda _: self.js(f"return {script}"), script)

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


def session_of(run: Path) -> Session:
    """Return the session of a finished run."""
    folder = RunFolder(run)
    session = Session(folder.settings, Console(quiet=True))
    session.resume(folder, watch=False)
    return session


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
    value = float(page.one(".threshold.review").get_attribute("aria-valuenow"))
    assert value == pytest.approx(0.0075, abs=0.001)  # three steps of 0.0025 on the axis
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
    opacities = "return [...document.querySelectorAll('.frame .layer')].map(layer => getComputedStyle(layer).opacity)"
    flagged = ["0" if verdict == "good" else "1" for verdict in page.verdicts()]
    assert page.js(opacities) == flagged
    assert set(flagged) == {"0", "1"}
    for expected in ({"1"}, {"0"}):
        page.press("#filters button", "h")
        assert set(page.js(opacities)) == expected
    page.press("#filters button", "h")
    assert page.js(opacities) == flagged
    assert page.one("#heat").get_attribute("value") == "flagged"


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

    assert not page.one("#train").is_displayed()
    path, bad = page.paths()[:2]
    page.press(".open", "g")
    page.one(".tile:nth-child(2) .mark-bad").click()
    page.driver.refresh()
    assert page.text("#filters [data-filter=marked]") == "marked 2"
    command = page.one("#command").get_attribute("value")
    words = shlex.split(command)
    assert words[:4] == ["anomalib", "inspect", "--good", str(part / "good")]
    marked = ["--marked_good", str(part / "new" / path), "--bad", str(part / "new" / bad)]
    assert words[4:] == ["--new", str(part / "new"), *marked]
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
    session = session_of(shutil.copytree(trained, tmp_path, dirs_exist_ok=True))
    session.run.entries.clear()
    session.run.add(Entry(f"{n:05}.png", "good", (n % 997) / 997, 0.5, 96, 64, n, n) for n in range(10_000))
    write_page(tmp_path, inspection_data(session))
    assert (tmp_path / "index.html").stat().st_size < 2_000_000
    page = Page(driver, tmp_path / "index.html").open()
    assert len(page.paths()) == 200
    assert page.text("#pages").split("\n")[1] == "Page 1 of 50"
    page.one("#pages button:last-child").click()
    assert "Page 2 of 50" in page.text("#pages")
    seconds = page.js("const t = performance.now(); move('review', .3); return (performance.now() - t) / 1000")
    assert seconds < 2
    driver.get_log("browser")  # missing images


def test_inlined_page_is_one_file(driver: Any, run: Path, tmp_path: Path) -> None:  # noqa: ANN401
    inspect(resume=run, inline=True, progress=False)
    (tmp_path / "mail").mkdir()
    page = Page(driver, Path(shutil.move(run / "index.html", tmp_path / "mail"))).open()
    shutil.rmtree(run)
    page.js("document.querySelectorAll('img').forEach(image => { image.loading = 'eager'; })")
    page.one(".open").click()
    loaded = (
        "return [...document.querySelectorAll('img[src]')].every(image => image.complete && image.naturalWidth > 0)"
    )
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
    assert len(html.encode()) < 1e6 * whole + 100_000


def test_names_cannot_close_the_script(driver: Any, trained: Path, tmp_path: Path) -> None:  # noqa: ANN401
    name = "</script><img src=x onerror=alert(1)>.png"
    session = session_of(shutil.copytree(trained, tmp_path, dirs_exist_ok=True))
    session.run.entries.clear()
    session.run.add([Entry(name, "good", 0.1, None, 96, 64, 1, 1)])
    session.pictures.issues[DataIssue(Path(name), "error", "<b>no</b>")] = None
    write_page(tmp_path, inspection_data(session))
    page = Page(driver, tmp_path / "index.html").open()
    assert page.paths() == [name]
    assert "<b>no</b>" in page.text(".issues")
    driver.get_log("browser")


def test_page_works_offline(trained: Path) -> None:
    html = (trained / "index.html").read_text(encoding="utf-8")
    assert "default-src 'none'" in html
    assert "connect-src" not in html
    assert not re.findall(r"https?://(?!www\.w3\.org/2000/svg)", html)
    data = json.loads(re.search(r'id="data">(.*?)</script>', html).group(1))
    scores = data["calibration_scores"]  # of each held-out picture
    assert scores == sorted(scores)
    assert len(set(scores)) == 4
    assert (data["review"], data["defect"]) == pytest.approx((scores[2], 1))
    assert scores[-1] == pytest.approx(1)


@pytest.fixture
def downloads(driver: Any, tmp_path: Path) -> Path:  # noqa: ANN401
    """Return the folder to which the browser downloads files."""
    folder = tmp_path / "downloads"
    folder.mkdir()
    driver.execute_cdp_cmd("Browser.setDownloadBehavior", {"behavior": "allow", "downloadPath": str(folder)})
    return folder


def downloaded(page: Page, path: Path) -> Path:
    """Wait for a downloaded file and return it."""
    from selenium.webdriver.support.ui import WebDriverWait

    WebDriverWait(page.driver, 10, 0.05).until(lambda _: path.is_file())
    return path


@pytest.fixture
def sample(driver: Any, tmp_path: Path) -> Iterator[Page]:  # noqa: ANN401
    """Return a page with invented results."""
    page = Page(driver, write_files(tmp_path, page_data())).open()
    page.js("localStorage.clear()")
    driver.refresh()
    yield page
    page.js("localStorage.clear()")
    assert driver.get_log("browser") == []  # neither errors nor blocked requests


@pytest.mark.parametrize("width", [390, 1280])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_complete_page_is_accessible(sample: Page, width: int, scheme: str) -> None:
    axe = pytest.importorskip("axe_selenium_python").Axe(sample.driver)
    sample.open(width=width, scheme=scheme)
    sample.js("mark('a/1.png', 'bad'); mark('b/0.png', 'good'); move('review', .5)")
    sample.js("document.querySelectorAll('details').forEach(element => { element.open = true; })")
    for opened in (False, True):
        if opened:
            sample.one(".open").click()
            sample.js("changeRectangles([[.1, .1, .2, .2]])")
        axe.inject()
        found = {rule["id"]: [node["html"] for node in rule["nodes"]] for rule in axe.run()["violations"]}
        if opened:
            found.pop("region", None)  # of an axe that does not know <dialog>
        assert found == {}
        for element in ("document.documentElement", "document.querySelector('#large')"):
            assert sample.js(f"return {element}.scrollWidth <= {element}.clientWidth")


def test_texts_of_the_run(sample: Page) -> None:
    assert sample.text("h1") == sample.driver.title == "Line 3: 6 pictures of new/"
    assert sample.text("#run") == "2026-11-29 · results/inspect/v0"
    assert sample.text("#notes") == "Calibrated on three good pictures."
    assert sample.text("#warnings") == "Warning: good/1.png is unusual."
    assert sample.text("#issues").startswith("3 data issues\nCannot be used: new/9.png cannot be read.")
    assert "findings.csv lists all of them" in sample.text("#issues")
    assert "Half of them." in sample.text("#guarantees")
    assert not sample.one("#filtered").text


def test_legend_has_the_colors_of_the_heat_maps() -> None:
    css = (WEB / "page.css").read_text(encoding="utf-8")
    scale = re.search(r"linear-gradient\((.*)\);", css).group(1)
    colors = [[int(number) for number in color] for color in re.findall(r"rgb\((\d+) (\d+) (\d+)", scale)]
    assert colors == COLORS.astype(int).tolist()


def test_region_and_nearest_good_picture(sample: Page) -> None:
    sample.one(".open").click()
    sample.wait_for("find('large-photo').complete && find('nearest-photo').naturalWidth > 0")
    assert sample.text("#region-text") == "Largest region: 24 x 16 pixels, area 300"
    assert "Most similar region: good/1.png" in sample.text("#nearest")
    position = """
      const [box, photo] = [arguments[0], arguments[1]].map(s => document.querySelector(s).getBoundingClientRect());
      return [(box.left - photo.left) / photo.width, (box.top - photo.top) / photo.height,
        box.width / photo.width, box.height / photo.height];"""
    region = sample.js(position, "#large-boxes .region", "#large-photo")
    assert region == pytest.approx([30 / WIDTH, 20 / HEIGHT, 24 / WIDTH, 16 / HEIGHT], abs=0.005)
    own = sample.js(position, "#large-boxes .compared", "#large-photo")  # the same share of width and height
    assert own == pytest.approx([0.4375 - 0.125, 0.4375 - 1 / 12, 0.25, 1 / 6], abs=0.005)
    compared = sample.js(position, "#nearest-boxes .compared", "#nearest-photo")  # this picture is turned
    assert compared == pytest.approx([42 / HEIGHT, 32 / WIDTH, 16 / HEIGHT, 16 / WIDTH], abs=0.005)
    ratio = "const box = document.querySelector(arguments[0]).getBoundingClientRect(); return box.width / box.height"
    assert sample.js(ratio, "#large-photo") == pytest.approx(WIDTH / HEIGHT, abs=0.01)
    assert sample.js(ratio, "#nearest-photo") == pytest.approx(HEIGHT / WIDTH, abs=0.01)

    sample.js("enlarge('b/0.png')")
    assert not sample.text("#region-text")
    assert not sample.one("#nearest").is_displayed()
    assert sample.js("return document.querySelectorAll('#large-boxes rect').length") == 0


def test_good_pictures(sample: Page) -> None:
    assert not sample.one("#good-list").is_displayed()
    sample.one("#good-title").click()
    assert sample.text("#good-list").split() == ["good/0.png", "good/1.png"]
    sample.wait_for("[...document.querySelectorAll('#good-list img')].every(image => image.naturalWidth > 0)")


def test_small_regions_are_good(driver: Any, tmp_path: Path) -> None:  # noqa: ANN401
    page = Page(driver, write_files(tmp_path, page_data(min_area=50))).open()
    assert page.verdicts() == ["defect", "good", "review", "good", "good", "good"]
    assert page.text("#filtered").startswith("1 picture above a threshold is called good")


def test_labels_are_evaluated(sample: Page) -> None:
    assert not sample.one("#evaluation").is_displayed()
    assert "Of " not in sample.text("#hint")
    sample.js("for (const path of ['a/0.png', 'b/0.png', arguments[0]]) mark(path, 'bad')", QUOTED)
    sample.js("for (const path of ['a/1.png', 'b/2.png']) mark(path, 'good')")
    rows = "return [...document.querySelectorAll('#confusion tr')].map(row => [...row.cells].map(c => c.innerText))"
    assert sample.js(rows) == [
        ["", "● good", "▲ review", "■ defect"],
        ["marked good", "1", "0", "1"],
        ["marked bad", "1", "1", "1"],
    ]
    assert "Of 3 pictures marked bad, 1 (33 %) is called good." in sample.text("#shares")
    assert "Of 3 pictures marked bad, 1 (33 %) is called good." in sample.text("#hint")
    assert "optimistic" in sample.text("#evaluation")
    suggested = "A review threshold of 0.65 finds 3 of your 3 defects, with 1 false alarm among your 2 good ones."
    assert sample.text("#suggested") == suggested
    sample.one("#use-threshold").click()
    assert sample.js("return thresholds.review === .65")
    assert not sample.one("#use-threshold").is_displayed()
    assert "Of 3 pictures marked bad, 0 (0 %) are called good." in sample.text("#shares")


def test_no_threshold_is_suggested_if_the_scores_do_not_fit(sample: Page) -> None:
    sample.js("mark('a/0.png', 'good'); mark('b/3.png', 'bad')")
    assert sample.text("#suggested").startswith("No review threshold finds more defects than false alarms")
    assert not sample.one("#use-threshold").is_displayed()


def test_export_and_import_of_labels(sample: Page, downloads: Path) -> None:
    sample.js("mark('a/0.png', 'bad'); mark(arguments[0], 'good')", QUOTED)
    sample.one("#export").click()
    exported = downloaded(sample, downloads / "labels.csv")
    with exported.open(encoding="utf-8", newline="") as file:
        assert list(csv.reader(file)) == [["path", "label"], ["a/0.png", "bad"], [QUOTED, "good"]]

    sample.js("mark('a/0.png', 'bad'); mark(arguments[0], 'good')", QUOTED)  # the second time removes them
    assert sample.text("#filters [data-filter=marked]") == "marked 0"
    sample.one("#import-file").send_keys(str(exported))
    sample.wait_for("find('imported').textContent")
    assert sample.text("#imported") == "Imported 2 labels from labels.csv."
    assert sample.js("return [...labels]") == [["a/0.png", "bad"], [QUOTED, "good"]]


def test_import_reports_what_it_skips(sample: Page, tmp_path: Path) -> None:
    path = tmp_path / "other.csv"
    path.write_bytes(
        b'\xef\xbb\xbfLabel,comment,Path\r\nBad,"two\nlines",b/2.png\r\nbad,,gone.png\r\nmaybe,,b/3.png\r\n\r\n',
    )
    sample.one("#import-file").send_keys(str(path))
    sample.wait_for("find('imported').textContent")
    assert sample.text("#imported") == (
        "Imported 1 label from other.csv. Skipped 1 row whose path is not among the pictures. "
        "Skipped 1 row whose label is neither good nor bad."
    )
    assert sample.js("return [...labels]") == [["b/2.png", "bad"]]
    for content, words in (("name\na", "must have the columns path and label"), ('path,label\n"a', "not valid CSV")):
        path.write_text(content, encoding="utf-8")
        sample.js("find('imported').textContent = ''")
        sample.one("#import-file").send_keys(str(path))
        sample.wait_for("find('imported').textContent")
        assert words in sample.text("#imported")


def test_labels_survive_into_the_next_run(sample: Page, tmp_path: Path) -> None:
    labels = {"a/0.png": "bad", "a/1.png": "good"}
    (tmp_path / "next").mkdir()
    path = write_files(tmp_path / "next", page_data(id="later", labels=labels))
    sample.js("mark('b/0.png', 'bad')")
    sample.open(path)
    assert dict(sample.js("return [...labels]")) == labels | {"b/0.png": "bad"}
    sample.one(".tile .mark-bad").click()  # removes the label of a/0.png
    sample.driver.refresh()
    assert dict(sample.js("return [...labels]")) == {"a/1.png": "good", "b/0.png": "bad"}


def test_command_stores_moved_thresholds(sample: Page) -> None:
    assert not sample.one("#store-thresholds").is_displayed()
    sample.press(".threshold.defect", "\ue014")  # right
    assert sample.one("#store-thresholds").is_displayed()
    command = sample.one("#threshold-command").get_attribute("value")
    assert command == "anomalib inspect --resume results/inspect/v0 --thresholds review=0.9,defect=1.0101"
    assert not sample.one("#apply").is_displayed()
    sample.one("#copy-thresholds").click()
    sample.wait_for("find('threshold-copied').textContent.startsWith('Copied.')")


def test_reset_returns_to_the_guaranteed_thresholds(driver: Any, tmp_path: Path) -> None:  # noqa: ANN401
    data = page_data(review=0.4, moved=True, guarantees={"review": "Set by hand.", "defect": ""})
    page = Page(driver, write_files(tmp_path, data)).open()
    assert "Set by hand." in page.text("#guarantees")
    assert not page.one("#store-thresholds").is_displayed()
    page.one("#reset").click()
    assert page.js("return thresholds") == {"review": 0.9, "defect": 1.0}
    assert page.one("#threshold-command").get_attribute("value").endswith("--thresholds guaranteed")
    assert not page.one("#reset").is_displayed()


def draw_rectangle(page: Page) -> None:
    """Drag from 1/4 to 3/4 of the width, and from the middle to the end of the height."""
    from selenium.webdriver import ActionChains

    photo = page.one("#large-photo")
    width, height = photo.size["width"], photo.size["height"]
    actions = ActionChains(page.driver).move_to_element_with_offset(photo, -int(width / 4), 0).click_and_hold()
    actions.move_by_offset(int(width / 2), int(height)).release().perform()


def test_regions_to_ignore(sample: Page, downloads: Path) -> None:
    sample.one(".open").click()
    draw_rectangle(sample)
    assert sample.js("return rectangles.length") == 0  # not drawing yet
    sample.one("#draw").click()
    draw_rectangle(sample)
    assert sample.js("return rectangles.flat()") == pytest.approx([0.25, 0.5, 0.5, 0.5], abs=0.01)
    assert "--ignore" not in sample.one("#command").get_attribute("value")
    sample.one("#save-mask").click()
    with Image.open(downloaded(sample, downloads / "ignore.png")) as image:
        mask = image.convert("L")
    assert mask.size == (WIDTH, HEIGHT)
    assert [mask.getpixel(xy) for xy in ((48, 48), (48, 16), (8, 48), (88, 48))] == [255, 0, 0, 0]
    assert set(mask.getdata()) == {0, 255}

    sample.press("#draw", "\ue00c")  # Escape ends the drawing only
    assert sample.one("#draw").get_attribute("aria-pressed") == "false"
    assert sample.js("return find('large').open")
    sample.press("#draw", "\ue00c")
    command = sample.one("#command").get_attribute("value")
    assert sample.one("#train").is_displayed()
    assert command == "anomalib inspect --good good --new new --ignore ignore.png --image_size 448"
    sample.js("enlarge('b/0.png')")
    assert len(sample.driver.find_elements("css selector", "#ignored-boxes .ignored")) == 1
    sample.one("#ignored button").click()
    assert sample.js("return rectangles.length") == 0
    assert "--ignore" not in sample.one("#command").get_attribute("value")


def test_hint_about_good_verdicts(sample: Page) -> None:
    assert sample.text("#hint").startswith("Pictures called good may still be defective. Select the good ones")
    sample.one("#filters [data-filter=good]").click()
    assert sample.text("#hint") == "Pictures called good may still be defective. Check the first row."


@pytest.fixture
def served(driver: Any, tmp_path: Path) -> Iterator[tuple[Page, Any]]:  # noqa: ANN401
    """Return a page that a server provides, and the server."""
    data = page_data(server={"token": "secret"})
    with serve(tmp_path, data) as server:
        page = Page(driver, write_files(tmp_path, data)).open_address(server.address)
        yield page, server
        page.driver.get("about:blank")
    driver.get_log("browser")  # refused requests


def test_server_stores_labels_and_thresholds(served: tuple[Page, Any]) -> None:
    page, server = served
    page.wait_for("version === 1")
    page.one(".mark-bad").click()
    assert page.one(".mark-bad").get_attribute("aria-pressed") == "true"  # at once
    page.wait_for("version === 2")
    assert page.one(".mark-bad").get_attribute("aria-pressed") == "true"
    page.one(".mark-bad").click()
    page.js("move('review', .85)")
    page.one("#apply").click()
    page.wait_for("version === 4")
    assert not page.one("#apply").is_displayed()
    assert page.js("return [thresholds.review, localStorage.length]") == [0.85, 0]
    page.one("#reset").click()
    page.one("#apply").click()
    page.wait_for("version === 5")
    assert server.posts == [
        ("/api/labels", {"labels": {"a/0.png": "bad"}}),
        ("/api/labels", {"labels": {"a/0.png": None}}),
        ("/api/thresholds", {"thresholds": {"review": 0.85, "defect": 1.0}}),
        ("/api/thresholds", {"thresholds": None}),
    ]


def test_server_errors(served: tuple[Page, Any]) -> None:
    page, server = served
    page.wait_for("version === 1")
    assert not page.text("#error")
    server.refuses = True
    page.one(".mark-bad").click()
    page.wait_for("find('error').textContent === 'Wait for the end of the training.'")
    page.wait_for("labels.size === 0")  # the mark was not stored
    server.refuses = False
    server.state["error"] = "The training failed."
    page.one(".mark-bad").click()
    page.wait_for("find('error').textContent === 'The training failed.'")


def test_server_trains_again(served: tuple[Page, Any]) -> None:
    page, server = served
    assert page.one("#train-again").is_displayed()
    assert not page.one("#command").is_displayed()
    page.one("#train-again").click()
    page.wait_for("find('job-text').textContent === 'Training on 6 good pictures (3 of 10)'")
    assert page.js("return find('progress').value === .3")
    assert not page.one("#train-again").is_enabled()
    server.state["job"] = None
    page.wait_for("find('job').hidden")
    assert page.one("#train-again").is_enabled()
    assert server.posts == [("/api/train", {})]


def test_server_stores_regions_to_ignore(served: tuple[Page, Any]) -> None:
    page, server = served
    page.wait_for("version === 1")
    page.one(".open").click()
    page.js("changeRectangles([[.25, .5, .5, .25]])")
    page.one("#save-mask").click()
    page.wait_for("version === 2")
    assert server.posts == [("/api/ignore", {"path": "a/0.png", "rectangles": [[0.25, 0.5, 0.5, 0.25]]})]
    assert page.text("#mask-saved") == "Saved. Train again to use it."
    server.data["ignore"] = "results/inspect/v0/ignore.png"
    server.state["version"] += 1
    page.wait_for("!find('remove-mask').hidden")
    page.one("#remove-mask").click()
    page.wait_for("rectangles.length === 0")
    assert server.posts[-1][1]["rectangles"] == []


def test_page_is_updated_in_place(served: tuple[Page, Any]) -> None:
    page, server = served
    page.wait_for("version === 1")
    page.one("#filters [data-filter=good]").click()
    page.one("#sort option[value=low]").click()
    page.js("document.body.style.minHeight = '5000px'; window.scrollTo(0, 500); enlarge('b/2.png')")
    new = [one | {"score": one["score"] + 0.05} for one in server.data["pictures"]]
    server.data |= {"id": "later", "title": "Trained again", "pictures": new, "support": []}
    server.state["version"] += 1
    page.wait_for("document.title === 'Trained again'")
    assert page.paths() == ["b/3.png", "b/2.png", QUOTED]
    assert page.text("#large-verdict") == "● good · 0.550"
    assert page.js("return [find('large').open, window.scrollY]") == [True, 500]
    assert page.js("return find('large-photo').getAttribute('src')") == "page/photos/b/2.png.jpg?v=later"
    assert "?v=later" in page.one(".tile img").get_attribute("src")
    assert not page.one("#good-pictures").is_displayed()
    server.data["pictures"] = new[:2]
    server.state["version"] += 1
    page.wait_for("!find('large').open")  # the enlarged picture is gone


def test_stopped_server(driver: Any, tmp_path: Path) -> None:  # noqa: ANN401
    data = page_data(server={"token": "secret"})
    with serve(tmp_path, data) as server:
        page = Page(driver, write_files(tmp_path, data)).open_address(server.address)
        page.wait_for("version === 1")
    page.wait_for("find('error').textContent")
    assert page.text("#error") == (
        "The server has stopped. Start it again with: anomalib inspect --resume results/inspect/v0 --serve"
    )
    driver.get("about:blank")
    driver.get_log("browser")


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
