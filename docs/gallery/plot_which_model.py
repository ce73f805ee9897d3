# Copyright (C) 2026 anomalib-fewshot contributors
# SPDX-License-Identifier: Apache-2.0

"""
Comparison of models
====================

Image AUROC over the number of normal images, for each model and dataset. The runs are those of the result tables: five
industrial datasets, five support sets, and one backbone. The image size is the default of each model: about 320 x 320
pixels for CoftAD and Patchcore, 224 x 224 pixels for RegAD and UniAD.
"""

import inspect
from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd

DOCS = Path(inspect.getfile(lambda: None)).resolve().parents[1]  # sphinx-gallery does not define `__file__`
SHOTS = [1, 2, 4, 8]
MARKERS = {"CoftAD": "o", "Patchcore": "s", "RegAD": "D", "UniAD": "^"}

runs = pd.read_csv(DOCS / "results" / "standing.csv")
runs = runs[(runs["dataset"] == "realmini") & runs["method"].isin(MARKERS)]
table = runs.pivot_table(index=["method", "category"], columns="k_shot", values="image_AUROC")[SHOTS]

# %%
# Mean over the number of normal images
# -------------------------------------

figure, axis = plt.subplots(figsize=(7, 4), layout="constrained")
for method, values in table.groupby("method").mean().iterrows():
    axis.plot(SHOTS, values, marker=MARKERS[method], label=method)
    last = values[SHOTS[-1]]
    axis.annotate(f"{last:.3f}", (SHOTS[-1], last), (6, -3), textcoords="offset points", fontsize=9)
axis.set(xscale="log", xticks=SHOTS, xticklabels=SHOTS)
axis.set(xlabel="normal images, k", ylabel="image AUROC, mean of five datasets")
axis.minorticks_off()
axis.grid(alpha=0.3)
axis.legend(frameon=False)
plt.show()

# %%
# Each dataset
# ------------
# The ranking depends on the dataset: CoftAD leads clearly on magnetic tiles and polycrystalline cells, Patchcore
# slightly on bricks and, at two and four images, on monocrystalline cells.

categories = table.index.unique("category")
figure, axes = plt.subplots(1, len(categories), figsize=(12, 3.4), sharey=True, layout="constrained")
for axis, category in zip(axes, categories, strict=True):
    for method, values in table.xs(category, level="category").iterrows():
        axis.plot(SHOTS, values, marker=MARKERS[method], markersize=4, label=method)
    axis.set(title=category, xscale="log", xticks=SHOTS, xticklabels=SHOTS)
    axis.title.set_fontsize(10)
    axis.minorticks_off()
    axis.grid(alpha=0.3)
axes[0].set_ylabel("image AUROC")
axes[2].set_xlabel("normal images, k")
figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=4, frameon=False)
plt.show()
