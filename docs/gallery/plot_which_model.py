# Copyright (C) 2026 anomalib-fewshot contributors
# SPDX-License-Identifier: Apache-2.0

"""
Comparison of models
====================

The plots show the result tables of the model pages, which describe the measurements: five industrial datasets, five
support sets, one backbone, and an input size of 320 or 224 pixels.
"""

import inspect
import re
from pathlib import Path

import matplotlib.pyplot as plt

DOCS = Path(inspect.getfile(lambda: None)).resolve().parents[1]  # sphinx-gallery does not define `__file__`
SHOTS = (1, 2, 4, 8)


def table(page, heading):
    """Return the columns and rows of the first table with this heading in its first column."""
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
    """Return the numbers in a cell. The cell of a failed run contains none."""
    return [float(number) for number in re.findall(r"\d?\.\d+", text)]


HEADING = "Image AUROC, k = 1 / 2 / 4 / 8"
results = {}  # cells by method and dataset
for page, methods in {
    "coft_ad.md": {"CoftAD": "CoftAD", "PatchCore": "anomalib's Patchcore"},
    "reg_ad.md": {"RegAD": "RegAD"},
    "uni_ad.md": {"UniAD": "UniAD"},
}.items():
    columns, rows = table(page, HEADING)
    for column, method in methods.items():
        results[method] = {name: cells[columns.index(column)] for name, cells in rows.items()}

# %%
# Mean over the number of normal images
# -------------------------------------
# Mean of the five datasets with one curve per method. The results of PatchCore are from the page of CoftAD.

curves = {method: cells["mean"].split() for method, cells in results.items()}
figure, axis = plt.subplots(figsize=(7, 4), layout="constrained")
for (name, cells), marker in zip(curves.items(), "osD^", strict=True):
    values = [numbers(cell)[0] for cell in cells]
    axis.plot(SHOTS, values, marker=marker, label=name)
    axis.annotate(f"{values[-1]:.3f}", (SHOTS[-1], values[-1]), (6, -3), textcoords="offset points", fontsize=9)
axis.set(xscale="log", xticks=SHOTS, xticklabels=SHOTS)
axis.set(xlabel="normal images, k", ylabel="image AUROC, mean of five datasets")
axis.minorticks_off()
axis.grid(alpha=0.3)
axis.legend(frameon=False)
plt.show()

# %%
# Each dataset
# ------------
# The ranking depends on the dataset: PatchCore leads on monocrystalline cells, CoftAD on magnetic tiles.

datasets = {}
for method, cells in results.items():
    for name, cell in cells.items():
        if name != "mean":
            datasets.setdefault(name, {})[method] = numbers(cell)

figure, axes = plt.subplots(1, len(datasets), figsize=(12, 3.4), sharey=True, layout="constrained")
for axis, (name, methods) in zip(axes, sorted(datasets.items()), strict=True):
    for (method, values), marker in zip(methods.items(), "osD^", strict=True):
        axis.plot(SHOTS, values, marker=marker, markersize=4, label=method)
    axis.set(title=name, xscale="log", xticks=SHOTS, xticklabels=SHOTS)
    axis.title.set_fontsize(10)
    axis.minorticks_off()
    axis.grid(alpha=0.3)
axes[0].set_ylabel("image AUROC")
axes[2].set_xlabel("normal images, k")
figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=4, frameon=False)
plt.show()
