# Copyright (C) 2026 anomalib-fewshot contributors
# SPDX-License-Identifier: Apache-2.0

"""The report: its statements, incomplete sweeps."""

import io
import itertools
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from report_sweep import CATEGORIES, METHODS, MINUS, WITH_FEATURES, add_files, report, sweep

from anomalib_fewshot.pipelines.plan.job import Job
from anomalib_fewshot.pipelines.results.outcome import failed_outcome
from anomalib_fewshot.pipelines.results.store import Store


@pytest.fixture(scope="module")
def full(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a sweep of two datasets, with everything, and its report."""
    folder = tmp_path_factory.mktemp("full")
    parts = [sweep(failures=3), sweep(dataset="Parts", categories=("nut", "bolt"), masked=(), shots=(1, 4))]
    report(folder, pd.concat([add_files(folder, part) for part in parts]))
    return folder


def test_answers(tmp_path: Path) -> None:
    """Means of 0.9 and 0.8 that always differ by 0.1, and a third that is now above, now below the first."""
    rows = sweep(categories=("nut", "bolt"), shots=(4,), seeds=3, masked=())
    rows = rows[rows["method"].isin(["CoftAD", "Padim", "NoTraining"])]
    level = rows["method"].map({"CoftAD": 0.9, "Padim": 0.89, "NoTraining": 0.8})
    rows["image_AUROC"] = level + np.where(rows["method"] == "Padim", 0.02 * (rows["seed"] - 1), 0)
    html, markdown = report(tmp_path, rows)
    assert f"CoftAD 0.900 has the highest mean; CoftAD minus Padim is +0.010, [{MINUS}" in markdown
    assert "6 paired runs, not significant." in markdown
    space = "\N{NO-BREAK SPACE}"
    interval = f"[+0.100,{space}+0.100]"
    assert f"Baseline: CoftAD minus NoTraining is +0.100, {interval}, 6 paired runs. CoftAD takes" in markdown
    assert "<b>CoftAD 0.900</b> has the highest mean" in html
    html, markdown = report(tmp_path, rows[rows["method"] != "Padim"])
    assert "CoftAD 0.900 is best; CoftAD minus NoTraining is +0.100" in markdown
    html, markdown = report(tmp_path, rows[rows["method"] != "Padim"], "CoftAD")
    assert f"CoftAD 0.900 is best; NoTraining minus CoftAD is {MINUS}0.100, [{MINUS}0.100" in markdown


def test_no_verdict_at_one_shot(tmp_path: Path) -> None:
    """One normal image gives no verdict. A threshold from test images does."""
    rows = sweep(shots=(1, 4), seeds=2)
    rows.loc[rows["method"] == "Padim", "threshold"] = "test images"
    _, markdown = report(tmp_path, rows)
    header = next(line for line in markdown.splitlines() if "threshold from" in line and "image F1" in line)
    names = [name.strip() for name in header.split("|")]
    cells = {}
    for line in markdown.splitlines():
        parts = [part.strip() for part in line.split("|")]
        if len(parts) == len(names):
            cells[parts[1], parts[2]] = dict(zip(names, parts, strict=True))
    for metric in ("image F1", "false alarms", "recall", "guaranteed false-alarm rate"):
        assert cells["k = 1", "CoftAD"][metric] == "\N{EN DASH}"
        assert cells["k = 4", "CoftAD"][metric].startswith("0.")
    assert cells["k = 1", "CoftAD"]["image AUROC"].startswith("0.")
    assert cells["k = 1", "Padim"]["recall"].startswith("0.")


def test_few_seeds_are_the_first_warning(tmp_path: Path) -> None:
    rows = sweep(shots=(4,), seeds=5, failures=1)
    assert "only" not in report(tmp_path, rows)[1].split("##")[0]
    markdown = report(tmp_path, rows[rows["seed"] < 2])[1]
    warnings = [line for line in markdown.splitlines() if line.startswith("> **Warning.**")]
    assert "RealMini: only 2 seeds. The intervals are very wide" in warnings[0]


def test_categories_by_metric(tmp_path: Path) -> None:
    """Image AUROC is open, each other metric with values is folded, with the categories and methods that it has."""
    rows = sweep(shots=(4,), seeds=2)
    rows["pixel_AUPRO"] = np.nan
    html, markdown = report(tmp_path, rows)
    parts = markdown.split("### Categories")[1].split("### Cost")[0]
    titles = re.findall(r"^#### (.*)$", parts, re.MULTILINE)
    assert titles == ["image AUROC", "image AUPR", "image F1-max", "pixel AUROC", "pixel AP", "pixel F1-max"]
    pixel = parts[parts.index("#### pixel AUROC") : parts.index("#### pixel AP")]
    assert re.findall(r"^\| (\w+\\_\w+|cookies)", pixel, re.MULTILINE) == ["cookies", "magnetic\\_tile"]
    assert "Dfkde" in parts
    assert "Dfkde" not in pixel  # it has no anomaly maps
    assert "<h4>image AUROC</h4>" in html
    assert "<details><summary>pixel AUROC</summary>" in html
    assert "<summary>pixel PRO</summary>" not in html


def test_guaranteed_rate_is_marked_even_at_one_k(tmp_path: Path) -> None:
    """A line through one point would be invisible."""
    html, _ = report(tmp_path, sweep(shots=(4,), seeds=2))
    assert "false alarms (gray bars: guaranteed)" in html
    assert "stroke-dasharray" not in html
    figure = html[html.index('aria-label="false alarms') :]
    assert re.search(r"opacity: 0\.5[^>]*>", figure[: figure.index("</svg>")])


def test_recall_over_the_guaranteed_rate(tmp_path: Path) -> None:
    """One point for each k with a guarantee, for methods that have at least two."""
    rows = sweep(shots=(1, 2, 4, 8), seeds=2)
    of_padim = (rows["method"] == "Padim") & (rows["k_shot"] == 8)
    rows.loc[of_padim, "guaranteed_fpr"] = 1 / 9  # a guarantee at one k only
    html, markdown = report(tmp_path, rows)
    label = html[html.index('aria-label="recall over guaranteed false-alarm rate') :].split('"')[1]
    assert re.findall(r"(\w+) [\d.]+ at (0\.\d+)", label) == [
        ("CoftAD", "0.333"),
        ("CoftAD", "0.200"),
        ("CoftAD", "0.111"),
    ]
    table = markdown[markdown.index("**Recall at the guaranteed false-alarm rate") :].split("###")[0]
    lines = [line for line in table.splitlines() if line.startswith("| CoftAD")]
    cells = [[cell.strip().split(" ")[0] for cell in line.split("|")[1:5]] for line in lines]
    assert [cell[2:] for cell in cells] == [["0.333", "0.267"], ["0.200", "0.160"], ["0.111", "0.089"]]
    assert "| Padim" not in table
    html, markdown = report(tmp_path, sweep(shots=(1, 4), seeds=2))
    assert "at the guaranteed false-alarm rate" not in html + markdown
    assert not (tmp_path / "figures" / "RealMini-guarantee_recall.png").exists()


def test_heat_maps_of_all_methods(tmp_path: Path) -> None:
    """One row per image that several methods have: the image, and the heat map of each of them."""
    rows = sweep(shots=(4,), seeds=1, categories=("nut",), masked=())
    rows = add_files(tmp_path, rows)
    for row in rows.itertuples():
        folder = tmp_path / "examples" / row.key / "nut"
        names = ["common-1-aaaaaaaa", "common-normal-bbbbbbbb"] if row.method != "Dfkde" else []
        names += ["common-2-cccccccc"] if row.method == "Padim" else []  # no other method has it
        for name in names:
            for part in ("image", "map"):
                (folder / f"{name}-{part}.jpg").write_bytes((folder / "hit.jpg").read_bytes())
    html, _ = report(tmp_path, rows)
    assert html.count("<h3>Heat maps of all methods</h3>") == 1
    assert html.count('alt="nut: anomalous image 1"') == html.count('alt="nut: normal image"') == 1
    for method in METHODS:
        assert html.count(f'alt="nut, {method}: heat map of anomalous image 1"') == (method != "Dfkde")
    assert "anomalous image 2" not in html


def test_every_part_is_there(full: Path) -> None:
    html = (full / "report.html").read_text(encoding="utf-8")
    assert html.count('<svg role="img"') == (4 + 2 + 4 + 2) + (3 + 2 + 2)  # curves, guarantees, forests, costs
    assert html.count('<img src="data:image/jpeg;base64,') == (2 * 3 + len(WITH_FEATURES)) * (5 + 2)
    assert 'alt="bolt, Patchcore: projected features of support and test images"' in html
    assert 'alt="bolt, Patchcore: normal image with the highest score and its heat map"' in html
    assert "RuntimeError: &lt;memory&gt; | line 1" in html
    assert "RealMini cookies, seed 3, k = 1, 2, 4, 8" in html
    assert "Parts: the number of categories" not in html
    markdown = (full / "report.md").read_text(encoding="utf-8")
    assert "RuntimeError: &lt;memory&gt; \\| line 1 line 2" in markdown
    for part in (html, markdown):
        assert "29, 59 or 299 held-out normal images" in part
        assert "root: data" in part
        assert "Linux-x86" in part
        assert "RealMini: runs without an image AUROC" in part


def test_all_images_come_after_the_numbers(tmp_path: Path) -> None:
    """A sweep of k = 8, 16 and all 100 images, in memory or read from the table."""
    rows = sweep(shots=(8, 16, 100), seeds=2, failures=1)
    rows["k_shot"] = rows["k_shot"].astype(object).replace(100, "all")
    rows = add_files(tmp_path, rows)
    html, markdown = pages = report(tmp_path, rows)
    assert "5 categories · k = 8, 16, all · 2 seeds" in markdown
    assert "| method | k = 8 | k = 16 | k = all |" in markdown
    assert re.findall(r"- \*\*k = (\w+):\*\*", markdown) == ["8", "16", "all"]
    assert "| k = all | Padim |" in markdown
    assert "ImageStatistic 1 of 10 at k = all" in markdown
    assert "| RealMini | cookies | all | 1 | ImageStatistic |" in markdown
    ticks = re.findall(r"<text[^>]*>(\w+)</text>", html[html.index("over k = 8, 16, all for") :])
    assert ticks[:3] == ["8", "16", "all"]
    assert "image AUROC at k = all against seconds to fit" in html
    assert "from one run with k = all:" in html
    (images,) = re.findall(r"<dt>RealMini cookies, seed 1, k = 8, 16, all \(100\)</dt><dd[^>]*>(.*?)</dd>", html)
    assert images.count(".png, ") == 16
    assert images.endswith("and 84 more")
    assert not re.search(r"\binf\b|k = \d+\.\d", html + markdown)
    again = pd.read_csv(io.StringIO(rows.to_csv(index=False)), dtype=dict.fromkeys(("key", "support", "weights"), str))
    assert report(tmp_path, again) == pages


def test_all_images_and_a_method_without_chance(tmp_path: Path) -> None:
    """Its values are equal for all seeds: no interval has no width, and the report says why."""
    rows = sweep(shots=(100,), seeds=3, methods={name: METHODS[name] for name in ("Padim", "Patchcore")}, masked=())
    rows = rows.assign(k_shot="all")
    ease = rows["category"].map({category: number / 100 for number, category in enumerate(CATEGORIES)})
    rows["image_AUROC"] = rows["method"].map({"Padim": 0.7, "Patchcore": 0.8}) + ease
    html, markdown = report(tmp_path, rows, "Padim")
    assert (
        "**k = all:** Patchcore 0.820 has the highest mean; Patchcore minus Padim is +0.100, 15 paired runs, no"
        in markdown
    )
    assert "no interval because results do not depend on the seed." in markdown
    assert "[0.8" not in markdown
    assert "is best" not in html
    _, markdown = report(tmp_path, rows[rows["method"] == "Padim"], "Padim")
    assert "Padim 0.720, no other method to compare with." in markdown


def test_runs_that_an_override_leaves_out_are_not_lacking(tmp_path: Path) -> None:
    rows = sweep(shots=(1, 4), seeds=3, masked=(), categories=("nut", "bolt"), dataset="Parts", failures=1)
    jobs = [
        Job(method, "Parts", category, k, seed, {}, {}, {})
        for method, category, k, seed in itertools.product(METHODS, ("nut", "bolt"), (1, 4), range(3))
        if method != "Padim" or k == 4
    ]
    rows = rows[(rows["method"] != "Padim") | (rows["k_shot"] == 4)]
    _, markdown = report(tmp_path, rows, jobs=jobs)
    assert "Parts: runs without an image AUROC: ImageStatistic 1 of 6 at k = 4." in markdown
    assert "Padim 6 of 6 at k = 1" in report(tmp_path, rows)[1]  # where it is not known which were to be made


def test_tables_of_markdown_are_whole(full: Path) -> None:
    """Each line of a table has as many cells as its first."""
    lines = (full / "report.md").read_text(encoding="utf-8").splitlines()
    for before, line in itertools.pairwise(lines):
        if line.startswith("|") and before.startswith("|"):
            assert len(re.findall(r"(?<!\\)\|", line)) == len(re.findall(r"(?<!\\)\|", before)), line
    assert sum(line.startswith("| ---") for line in lines) == (2 + 1 + 1 + 7 * 4 + 1 + 1) + (1 + 1 + 3 * 2 + 1 + 1) + 2


def test_html_is_closed_and_ids_are_unique(full: Path) -> None:
    html = (full / "report.html").read_text(encoding="utf-8")
    for tag in ("svg", "table", "tr", "td", "th", "figure", "div", "dl", "section", "details", "ul", "g"):
        assert len(re.findall(rf"<{tag}[ >]", html)) == html.count(f"</{tag}>"), tag
    ids = re.findall(r'\bid="([^"]+)"', html)
    assert len(ids) == len(set(ids))
    assert set(re.findall(r"url\(#([^)]+)\)", html)) <= set(ids)
    assert not re.search(r"""(?:src|href)=["'](?!data:|#)|@import|<script|DejaVu|#0102""", html)


def test_same_rows_same_bytes(tmp_path: Path) -> None:
    """The order of the rows, and when it is written, change nothing."""
    rows = sweep(shots=(1, 2), seeds=2)
    assert report(tmp_path, rows) == report(tmp_path, rows.sample(frac=1, random_state=1))
    assert {path.name for path in tmp_path.glob("report*")} == {"report.html", "report.md"}


def test_unlabeled_images(tmp_path: Path) -> None:
    """Each pool has its own section, in which only its runs are compared. One more section compares the pools."""
    methods = {name: METHODS[name] for name in ("CoftAD", "Padim", "Patchcore")}
    rows = sweep(methods=methods, shots=(1, 4), seeds=3, masked=(), categories=("nut", "bolt"), dataset="Parts")
    parts = [rows]
    for size, share in ((16, 0.0), (60, 0.0), (60, 0.1)):
        part = rows[rows["method"] != "Padim"].assign(unlabeled=size, contamination=share)
        part["image_AUROC"] = part["image_AUROC"] + 0.02 * (size > 16) - share / 10
        part["key"] += f"{size}{share}"
        part["test_anomalous"] -= int(share * size)
        parts.append(part)
    html, markdown = report(tmp_path, pd.concat(parts), "Patchcore")
    assert re.findall(r"^## Parts.*", markdown, re.MULTILINE) == [
        "## Parts: effect of unlabeled images",
        "## Parts",
        "## Parts, 16 unlabeled images",
        "## Parts, 60 unlabeled images",
        "## Parts, 60 unlabeled images, 10 % of them anomalous",
    ]
    assert html.count("over unlabeled images = 0, 16, 60 for CoftAD, Patchcore") == 2  # one for each k
    assert html.count("over contamination = 0, 0.1 for CoftAD, Patchcore") == 2
    assert "unlabeled images: 0, 16, 60" in html
    pools = markdown[markdown.index("effect of unlabeled") : markdown.index("## Parts\n")]
    cells = [line.split("|")[1:4] for line in pools.splitlines() if line.startswith("| CoftAD")]
    assert [[cell.strip() for cell in line] for line in cells] == [
        ["CoftAD", "0", "\N{EN DASH}"], ["CoftAD", "16", "0"], ["CoftAD", "60", "0"], ["CoftAD", "60", "0.1"],
    ]  # fmt: skip
    assert "Padim" not in markdown[markdown.index("## Parts, 16") : markdown.index("## Failed runs")]
    for warning in ("runs without an image AUROC", "different support images", "the test images differ"):
        assert warning not in markdown
    alone = report(tmp_path / "alone", rows, "Patchcore")[1]
    assert alone[alone.index("## Parts") : alone.index("## Failed")] in markdown  # as without the other pools


NAME = "<b>A & B</b>|$x$_*y*"


@pytest.mark.parametrize(
    ("settings", "baseline", "says"),
    [
        ({"methods": {"Padim": METHODS["Padim"]}}, "Padim", "no other method to compare with"),
        ({"shots": (4,)}, "Padim", "k = 4"),
        ({"seeds": 1}, "Padim", "intervals need two or more seeds"),
        ({"categories": ("nut",)}, "Padim", "1 category"),
        ({"failures": 120}, "Padim", "No run succeeded"),
        ({"masked": ()}, "Padim", "Patchcore"),
        ({"failures": 61}, "Padim", "The means use only the other 2 categories"),
        ({"methods": {NAME: METHODS["CoftAD"], "Padim": METHODS["Padim"]}}, NAME, "Padim"),
        ({}, "Other", "RealMini: the baseline Other has no runs"),
    ],
    ids=[
        "one method",
        "one k",
        "one seed",
        "one category",
        "all failed",
        "no masks",
        "half failed",
        "a name",
        "no baseline",
    ],
)
def test_incomplete_sweeps(tmp_path: Path, settings: dict, baseline: str, says: str) -> None:
    """Each sweep has 120 runs or fewer, and no files beside the table."""
    rows = sweep(**{"shots": (1, 4), "seeds": 2, **settings})
    html, markdown = report(tmp_path, rows, baseline)
    assert says in html
    assert says in markdown
    assert not re.search(r"\bnan\b", re.sub(r"<style.*?</style>", "", html + markdown, flags=re.DOTALL), re.IGNORECASE)
    assert "pixel" not in html or rows["pixel_AUROC"].notna().any()


def test_nothing_measured(tmp_path: Path) -> None:
    """Where all runs failed, all figures of the table are empty."""
    job = Job("A", "parts", "bolt", 1, 0, {}, {}, {})
    store = Store(tmp_path)
    store.save(job, failed_outcome(job, "RuntimeError: no"))
    html, _ = report(tmp_path, store.table([job]), "A")
    assert "1 run (1 failed)" in html
    assert "RuntimeError" in html
    assert "No run succeeded" in html


def test_names_are_escaped(tmp_path: Path) -> None:
    rows = sweep(methods={NAME: METHODS["CoftAD"], "Padim": METHODS["Padim"]}, shots=(1,), seeds=2)
    html, markdown = report(tmp_path, rows, NAME)
    assert "<b>A" not in html
    assert "&lt;b&gt;A &amp; B&lt;/b&gt;|$x$_*y*" in html
    assert "&lt;b&gt;A &amp; B&lt;/b&gt;\\|$x$\\_\\*y\\*" in markdown


def test_what_is_not_comparable_is_said(tmp_path: Path) -> None:
    rows = sweep(shots=(1,), seeds=2, categories=("nut", "bolt"), masked=())
    padim = rows["method"] == "Padim"
    rows.loc[padim, ["torch", "device", "support"]] = ["2.10.0", "cuda", "other"]
    rows.loc[padim & (rows["category"] == "nut"), "test_normal"] = 59
    html, markdown = report(tmp_path, rows)
    for text in (
        "different versions of torch: 2.10.0, 2.9.1",
        "different devices or numbers of threads (cpu, 2 threads; cuda, 2 threads)",
        "In 4 cells, the methods used different support images",
        "RealMini nut: the test images differ between runs",
    ):
        assert text in html
        assert text in markdown
    assert "seconds to fit" not in html  # no picture of times that are not comparable


def test_eight_methods_fifteen_categories(tmp_path: Path) -> None:
    methods = {f"Method{number}": (0.7 + number / 50, 0.02, 1.0, 10.0) for number in range(8)}
    html, _ = report(
        tmp_path,
        sweep(methods=methods, categories=tuple(f"part{n}" for n in range(15)), seeds=2),
        "Method0",
    )
    assert html.count('<svg role="img"') == 1 + 4 + 2


def test_errors(tmp_path: Path) -> None:
    rows = sweep(shots=(1,), seeds=2)
    with pytest.raises(ValueError, match="without threads"):
        report(tmp_path, rows.drop(columns="threads"))
    with pytest.raises(ValueError, match="must have at least one run"):
        report(tmp_path, rows.iloc[:0])
    assert not list(tmp_path.glob("report*"))
