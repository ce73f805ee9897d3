# Copyright (C) 2026 anomalib-fewshot contributors
# SPDX-License-Identifier: Apache-2.0

"""
Which model when: the measured tables as plots
==============================================

Drawn from the tables of the pages of the models, which say how they were measured: the same backbone, at 320
pixels or 224, the same supports, five sets of industrial pictures, five choices of the good pictures.
"""

import inspect
import re
from pathlib import Path

import matplotlib.pyplot as plt

DOCS = Path(inspect.getfile(lambda: None)).resolve().parents[1]  # there is no `__file__` in a gallery
SHOTS = (1, 2, 4, 8)


def table(page, heading):
    """Return the first table of a page whose first column has the heading: cells by row and column."""
    lines = iter((DOCS / page).read_text(encoding="utf-8").splitlines())
    header = next(line for line in lines if line.startswith(f"| {heading} |"))
    next(lines)
    rows = {}
    for line in lines:
        if not line.startswith("|"):
            break
        name, *cells = (cell.strip() for cell in line.strip("|").split("|"))
        rows[name] = cells
    return [cell.strip() for cell in header.strip("|").split("|")][1:], rows


def numbers(text):
    """Return the figures of a cell. A run that failed has none."""
    return [float(number) for number in re.findall(r"\d?\.\d+", text)]


# %%
# Over the number of good pictures
# --------------------------------
# The mean of the five sets. A line is one method, from the page of its model; PatchCore is that of CoftAD's page.

_, coft_ad = table("coft_ad.md", "Image AUROC, mean over the sets")
_, reg_ad = table("reg_ad.md", "Image AUROC, mean over the sets")
_, uni_ad = table("uni_ad.md", "Mean of five sets")
lines = {
    "CoftAD": coft_ad["CoftAD"],
    "anomalib's Patchcore": coft_ad["PatchCore"],
    "RegAD": reg_ad["RegAD"],
    "UniAD": uni_ad["UniAD"],
}
figure, axis = plt.subplots(figsize=(7, 4), layout="constrained")
for (name, cells), marker in zip(lines.items(), "osD^", strict=True):
    values = [numbers(cell)[0] for cell in cells]
    axis.plot(SHOTS, values, marker=marker, label=name)
    axis.annotate(f"{values[-1]:.3f}", (SHOTS[-1], values[-1]), (6, -3), textcoords="offset points", fontsize=9)
axis.set(xscale="log", xticks=SHOTS, xticklabels=SHOTS)
axis.set(xlabel="good pictures, k", ylabel="image AUROC, mean of five sets")
axis.minorticks_off()
axis.grid(alpha=0.3)
axis.legend(frameon=False)
plt.show()

# %%
# Each set
# --------
# The mean hides where a model wins: PatchCore on the cells of one crystal, CoftAD on magnetic tiles.

sets = {}
for page, methods in {
    "coft_ad.md": {"CoftAD": "CoftAD", "PatchCore": "anomalib's Patchcore"},
    "reg_ad.md": {"RegAD": "RegAD"},
    "uni_ad.md": {"UniAD": "UniAD"},
}.items():
    heading = "k = 1 / 2 / 4 / 8" if page == "uni_ad.md" else "Image AUROC, k = 1 / 2 / 4 / 8"
    columns, rows = table(page, heading)
    for name, cells in rows.items():
        for method, shown in methods.items():
            sets.setdefault(name, {})[shown] = numbers(cells[columns.index(method)])

figure, axes = plt.subplots(1, len(sets), figsize=(12, 3.4), sharey=True, layout="constrained")
for axis, (name, methods) in zip(axes, sorted(sets.items()), strict=True):
    for (method, values), marker in zip(methods.items(), "osD^", strict=True):
        axis.plot(SHOTS, values, marker=marker, markersize=4, label=method)
    axis.set(title=name, xscale="log", xticks=SHOTS, xticklabels=SHOTS)
    axis.title.set_fontsize(10)
    axis.minorticks_off()
    axis.grid(alpha=0.3)
axes[0].set_ylabel("image AUROC")
axes[2].set_xlabel("good pictures, k")
figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=4, frameon=False)
plt.show()
