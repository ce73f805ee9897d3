# Copyright (C) 2026 anomalib-fewshot contributors
# SPDX-License-Identifier: Apache-2.0

"""Fill the result tables of README and documentation from `standing.csv`.

    python docs/results/make_tables.py                                              # `make tables`
    python docs/results/make_tables.py --add results/fewshot/standing/results.csv   # first takes over new runs

A page contains `<!-- table: NAME -->` and `<!-- end of table -->`. The lines between them are replaced with the table
of the function NAME in `TABLES`. Runs that are taken over replace those with equal method, category, k and seed.
"""

import argparse
import re
from collections.abc import Callable
from pathlib import Path

import pandas as pd

from anomalib_fewshot.pipelines.report.statistics import paired_differences

ROOT = Path(__file__).parents[2]
STANDING = Path(__file__).with_name("standing.csv")
RUN = ["method", "dataset", "category", "k_shot", "seed"]
METRICS = [
    "image_AUROC", "image_AUPR", "image_F1Max", "pixel_AUROC", "pixel_AUPRO", "pixel_AP", "pixel_F1Max", "pixel_AUPIMO",
    "guaranteed_fpr", "false_alarms", "recall",
]  # fmt: skip
SETTINGS = [
    "status", "support", "fit_seconds", "image_size", "backbone", "backbone_weights", "train_on", "threads", "commit",
    "finished",
]  # fmt: skip
SHOTS = (1, 2, 4, 8)
NAMES = {
    "brick_cracks": "bricks",
    "cookies": "cookies",
    "elpv_mono": "solar cells, mono",
    "elpv_poly": "solar cells, poly",
    "magnetic_tile": "magnetic tiles",
    "mtoc_lens": "lenses",
    "mvtec_screw": "screws",
}
MARKERS = r"(<!-- table: {} -->\n).*?(<!-- end of table -->)"


def read(path: Path) -> pd.DataFrame:
    """Return the runs."""
    return pd.read_csv(path, dtype={"support": str, "backbone_weights": str, "commit": str})


def add(path: Path) -> None:
    """Take over the runs of a benchmark's ``results.csv``."""
    new = read(path)[[*RUN, *METRICS, *SETTINGS]]
    new[METRICS] = new[METRICS].round(4)
    new["fit_seconds"] = new["fit_seconds"].round(1)
    new["finished"] = new["finished"].str[:10]  # the date
    runs = pd.concat([read(STANDING), new]) if STANDING.exists() else new
    runs = runs.drop_duplicates(RUN, keep="last").sort_values(RUN)
    runs.to_csv(STANDING, index=False)


def shown(value: float, *, signed: bool = False) -> str:
    """Return a value between -1 and 1 with three decimals and without the zero before the point."""
    return re.sub(r"\b0\.", ".", f"{value:{'+' if signed else ''}.3f}")


def table(head: list[str], rows: list[list[str]]) -> str:
    """Return a Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def category_means(runs: pd.DataFrame, method: str, metric: str) -> pd.DataFrame:
    """Return the mean over seeds, with a row for each category and a column for each k."""
    return runs[runs["method"] == method].pivot_table(index="category", columns="k_shot", values=metric).dropna()


def curve(values: pd.Series) -> str:
    """Return the values at each k."""
    return " ".join(shown(values[k]) for k in SHOTS)


def differences(runs: pd.DataFrame, metric: str) -> list[str]:
    """Return the mean difference of CoftAD and Patchcore at each k with its 95 % interval, over all datasets."""
    both = runs[runs["method"].isin(["CoftAD", "Patchcore"])].assign(dataset="all")
    result = paired_differences(both, "Patchcore", metric).set_index("k_shot")
    return [f"{shown(row['mean'], signed=True)} [{shown(row.low)}, {shown(row.high)}]" for _, row in result.iterrows()]


def mean_image_auroc(runs: pd.DataFrame) -> str:
    """Return the mean of all datasets: the table of the README."""
    rows = []
    for method, name in {"CoftAD": "CoftAD", "Patchcore": "Patchcore (anomalib)"}.items():
        means = category_means(runs, method, "image_AUROC").mean()
        rows.append([name, *(f"{means[k]:.3f}" for k in SHOTS)])
    return table(["Normal images (k)", *map(str, SHOTS)], rows)


def by_dataset(runs: pd.DataFrame, metric: str) -> str:
    """Return the values of CoftAD and Patchcore on each dataset at k = 1, 2, 4 and 8."""
    coft_ad, patchcore = (category_means(runs, method, metric) for method in ("CoftAD", "Patchcore"))
    rows = [["**mean**", curve(coft_ad.mean()), curve(patchcore.mean())]]
    rows += [[NAMES[name], curve(coft_ad.loc[name]), curve(patchcore.loc[name])] for name in coft_ad.index]
    name = metric.replace("image_", "Image ").replace("pixel_", "Pixel ")
    return table([f"{name}, k = 1 / 2 / 4 / 8", "CoftAD", "PatchCore"], rows)


def several_categories(runs: pd.DataFrame, method: str) -> str:
    """Return the image AUROC of a method that is trained on several categories, and of Patchcore, on `realmini`."""
    runs = runs[runs["dataset"] == "realmini"]
    values, patchcore = (category_means(runs, name, "image_AUROC") for name in (method, "Patchcore"))
    rows = [["**mean**", curve(values.mean()), curve(patchcore.mean())]]
    rows += [[NAMES[name], curve(values.loc[name]), curve(patchcore.loc[name])] for name in values.index]
    sizes = [image_size(runs, name) for name in (method, "Patchcore")]
    return table(["Image AUROC, k = 1 / 2 / 4 / 8", f"{method}, {sizes[0]} px", f"PatchCore, {sizes[1]} px"], rows)


def image_size(runs: pd.DataFrame, method: str) -> str:
    """Return the most frequent image height of a method."""
    return runs.loc[runs["method"] == method, "image_size"].mode()[0].split("x")[0]


def models(runs: pd.DataFrame) -> str:
    """Return the mean image AUROC of each method over the five categories of `realmini`, the best at k = 4 first."""
    runs = runs[runs["dataset"] == "realmini"]
    means = runs.pivot_table(index=["method", "category"], columns="k_shot", values="image_AUROC")
    means = means.groupby("method").mean().sort_values(4, ascending=False)
    rows = []
    for method, values in means.iterrows():
        cells = ["" if pd.isna(values[k]) else shown(values[k]) for k in SHOTS]
        rows.append([str(method), image_size(runs, str(method)), *cells])
    return table(["", "Image size", *(f"k = {k}" for k in SHOTS)], rows)


def difference(runs: pd.DataFrame) -> str:
    """Return CoftAD minus Patchcore for several metrics."""
    rows = [
        [metric.replace("_", " "), *differences(runs, metric)]
        for metric in ("image_AUROC", "image_F1Max", "pixel_AUROC", "pixel_AUPRO", "pixel_AP")
    ]
    return table(["CoftAD minus PatchCore", *(f"k = {k}" for k in SHOTS)], rows)


def threshold(runs: pd.DataFrame) -> str:
    """Return the false-alarm rate and the recall of CoftAD at its default threshold."""
    rows = runs[(runs["method"] == "CoftAD") & (runs["k_shot"] > 1)]
    means = rows.groupby(["k_shot", "category"])[["guaranteed_fpr", "false_alarms", "recall"]].mean()
    means = means.groupby("k_shot").mean()
    names = {"guaranteed_fpr": "guaranteed, at most", "false_alarms": "false-alarm rate", "recall": "recall"}
    return table(
        ["", *(f"k = {k}" for k in means.index)],
        [[name, *map(shown, means[column])] for column, name in names.items()],
    )


TABLES: dict[str, Callable[[pd.DataFrame], str]] = {
    "mean image AUROC": mean_image_auroc,
    "image AUROC": lambda runs: by_dataset(runs, "image_AUROC"),
    "pixel AUROC": lambda runs: by_dataset(runs, "pixel_AUROC"),
    "models": models,
    "RegAD": lambda runs: several_categories(runs, "RegAD"),
    "UniAD": lambda runs: several_categories(runs, "UniAD"),
    "differences": difference,
    "threshold": threshold,
}


def fill(text: str, runs: pd.DataFrame) -> str:
    """Return the text of a page with its tables replaced.

    Raises:
        KeyError: If the page has a table that is not in ``TABLES``.
    """
    for name in re.findall(r"<!-- table: (.*?) -->", text):
        content = f"\n{TABLES[name](runs)}\n"  # Markdown needs empty lines around a table
        pattern = MARKERS.format(re.escape(name))
        text = re.sub(pattern, lambda match, content=content: match[1] + content + match[2], text, flags=re.DOTALL)
    return text


def pages() -> list[Path]:
    """Return the pages with a table."""
    paths = [ROOT / "README.md", *sorted(ROOT.glob("docs/*.md"))]
    return [path for path in paths if "<!-- table: " in path.read_text("utf-8")]


def main() -> None:
    """Fill the tables of all pages."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--add", type=Path, nargs="+", default=[], metavar="RESULTS.csv", help="runs to take over")
    for path in parser.parse_args().add:
        add(path)
    runs = read(STANDING)
    for page in pages():
        page.write_text(fill(page.read_text("utf-8"), runs), encoding="utf-8")


if __name__ == "__main__":
    main()
